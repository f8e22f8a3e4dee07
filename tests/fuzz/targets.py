"""The parsers of untrusted input, each with a check of its result; an exception means a failure.

`TARGETS` has them by name, with the words that inputs are made of. The tests of this package combine those words with
hypothesis; `python -m tests.fuzz NAME` uses atheris, for any length of time.
"""

import base64
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import attrs
from urllib3.util import parse_url

from dockyard.access.jwks import KeysUnavailable
from dockyard.access.keys import KeySet, parse_key_set
from dockyard.access.networks import client_address, parse_networks
from dockyard.access.tokens import Tokens
from dockyard.config.htpasswd import parse_htpasswd
from dockyard.config.loader import SettingsError, load, show
from dockyard.config.settings import JwtIssuer
from dockyard.errors import (
    BadUpstream,
    DigestInvalid,
    LoginRequired,
    NameInvalid,
    RangeNotSatisfiable,
    ReferenceInvalid,
    RegistryError,
    RequestInvalid,
)
from dockyard.oci.challenge import is_realm_trusted, parse_challenges, usable_challenges
from dockyard.oci.login import parse_authorization
from dockyard.oci.manifest import Manifest
from dockyard.oci.origin import Origin
from dockyard.oci.ranges import MAX_RANGES, parse_ranges
from dockyard.oci.reference import Digest, Name, Tag, parse_reference
from dockyard.oci.schema1 import find_payload
from dockyard.routing import Router
from dockyard.storage.keys import blob_key, manifest_key, tag_key
from dockyard.upstream.credential_helper import HelperFailed, _parse
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.keychain import Keychain
from dockyard.upstream.network_zones import find_literal_zone, find_zone
from dockyard.upstream.urls import InvalidUrl, Url, parse_http_url, resolve_redirect
from dockyard.web.paths import PathRouter
from dockyard.web.request_filter import MAX_PATH_BYTES, check_request
from tests.support.schema1 import sign
from tests.support.token_issuer import TokenIssuer, encode, key_set
from tests.unit.oci.test_reference import is_component
from tests.unit.web.test_paths import Endpoint

CANARY = "canary-2b9e"
HEX = "0123456789abcdef" * 4
KINDS = ("manifests", "blobs", "tags", "referrers")
HERE = Url(Origin("https", "registry.example.com", 443), "/v2/a/blobs/x?y=1")


@attrs.frozen
class Target:
    """A parser to fuzz, the words that inputs are made of, and what an input may begin with."""

    feed: Callable[[bytes], None]
    words: Sequence[bytes]
    begins: Sequence[bytes] = (b"",)


# Paths


_ROUTER = PathRouter(Endpoint("base"), {kind: Endpoint(kind) for kind in KINDS}, {})
_ROUTES = Router(load(None, {"HOME": "/nonexistent"}).upstreams)
_PATH_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~!$&'()*+,;=:@-/")


def feed_path(data: bytes) -> None:
    """A path is rejected, or parsed as a simple parser from the right does, and its keys stay below the prefix."""
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "headers": [(b"host", b"h")], "raw_path": data}
    plain = data.replace(b"%3A", b":").replace(b"%3a", b":")
    is_fine = plain[:1] == b"/" and _PATH_BYTES.issuperset(plain) and not {b".", b".."} & set(plain.split(b"/"))
    try:
        check_request(scope)
    except RegistryError:
        assert not is_fine or len(data) > MAX_PATH_BYTES
        return
    assert is_fine
    path = plain.decode("ascii")
    found = _ROUTER.find(path)
    parts = path.split("/")
    first = next((place for place, part in enumerate(parts[:-1]) if part == "v2" and place > 0), None)
    if first is None or first == len(parts) - 2 or (first > 1 and parts[1] == "" and first == 2):
        return  # no endpoint, or the base path
    kind = parts[-2]
    is_endpoint = kind in KINDS and len(parts) - first >= 4 and (kind != "tags" or parts[-1] == "list")
    if found is None or found[0].name == "base":
        assert not is_endpoint or found is not None
        return
    assert found[0].name == kind
    assert found[2]["name"] == "/".join(parts[first + 1 : -2])
    assert found[2]["reference"] == parts[-1]
    _judge_name(found[2]["name"])
    _judge_reference(found[2]["reference"])
    _judge_keys(found[2]["name"], found[2]["reference"])


def _judge_name(text: str) -> None:
    expected = len(text) <= 255 and all(is_component(part) for part in text.split("/"))
    try:
        assert str(Name.parse(text)) == text
        assert expected
        with suppress(RegistryError):
            assert _ROUTES.route(text).name.components[-1] == text.rpartition("/")[2]
    except NameInvalid:
        assert not expected


def _judge_reference(text: str) -> None:
    algorithm, colon, encoded = text.partition(":")
    is_digest = {"sha256": 64, "sha512": 128}.get(algorithm) == len(encoded) and set(encoded) <= set("0123456789abcdef")
    is_tag = 0 < len(text) <= 128 and text[0] not in ".-" and all(char.isalnum() or char in "._-" for char in text)
    try:
        assert str(parse_reference(text)) == text
        assert is_digest if colon else is_tag and text.isascii()
    except DigestInvalid:
        assert colon
        assert not is_digest
    except ReferenceInvalid:
        assert not colon
        assert not is_tag


def _judge_keys(name: str, reference: str) -> None:
    with suppress(RegistryError):
        parsed, where = parse_reference(reference), Name.parse(name)
        keys = [tag_key("p/", where, parsed)] if isinstance(parsed, Tag) else [manifest_key("p/", where, parsed)]
        keys += [] if isinstance(parsed, Tag) else [blob_key("p/", parsed)]
        for key in keys:
            assert key.startswith(("p/manifests/", "p/blobs/"))
            assert not {"", ".", ".."} & set(key.split("/"))
            assert key.isascii()
            assert key.isprintable()


# Ranges


def feed_range(data: bytes) -> None:
    """The ranges of a small body are the bytes that a byte-by-byte evaluation finds."""
    size, header = (data[0] % 50 if data else 0), data[1:].decode("latin-1")
    expected = _read_ranges(header, size)
    try:
        found = parse_ranges(header, size)
    except RangeNotSatisfiable:
        assert expected == []
    except RequestInvalid:
        specs = [part for part in header.partition("=")[2].split(",") if part.strip(" \t")]
        assert len(specs) > MAX_RANGES or sum(map(len, expected or [])) > 2 * size
    else:
        assert (found is None) == (expected is None)
        assert [list(range(part.start, part.stop)) for part in found or ()] == (expected or [])


def _read_ranges(header: str, size: int) -> list[list[int]] | None:
    unit, equals, text = header.partition("=")
    specs = [spec for part in text.split(",") if (spec := part.strip(" \t"))]
    if not equals or unit.strip().lower() != "bytes" or not specs:
        return None
    found = []
    for spec in specs:
        first, dash, last = spec.partition("-")
        if not dash or first + last == "" or not set(first + last) <= set("0123456789"):
            return None
        low, high = (int(text.lstrip("0")[:30] or "0") if text else None for text in (first, last))
        if low is None:
            found.append(list(range(size))[-high:] if high else [])
        else:
            found.append([place for place in range(size) if place >= low and (high is None or place <= high)])
    return [places for places in found if places]


# Challenges and realms


def feed_challenge(data: bytes) -> None:
    """Challenges never raise; a realm that gets credentials is https at the registry's site, for two URL parsers."""
    text = data.decode("latin-1")
    challenges = parse_challenges(text.split("\n"))
    for challenge in challenges:
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)
    realms = [challenge.parameters.get("realm", "") for challenge in usable_challenges(challenges)]
    for realm in (text, f"https://{text}", *realms):
        try:
            place = parse_http_url(realm)
        except InvalidUrl:
            continue
        if is_realm_trusted(realm, HERE.origin):
            host = place.origin.host
            assert place.origin.scheme == "https"
            assert host == "example.com" or host.endswith(".example.com")
            assert (parse_url(realm).host or "").strip("[]") == host
            assert parse_url(realm).auth is None


# Manifests


def feed_manifest(data: bytes) -> None:
    """A body is an unambiguous manifest that a strict JSON parser reads the same way, or BadUpstream."""
    content_type, _, body = data.rpartition(b"\0")
    try:
        manifest = Manifest.parse(body, content_type.decode("latin-1") if content_type else None, None)
    except BadUpstream:
        return
    document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique)
    assert isinstance(document, dict)
    assert (
        sum(({"manifests"} <= set(document), bool({"config", "layers"} & set(document)), "fsLayers" in document)) <= 1
    )
    said = content_type.decode("latin-1").partition(";")[0].strip().lower()
    assert document.get("mediaType") in (None, "", manifest.media_type) or said == manifest.media_type
    assert re.fullmatch(r"[!-~]+/[!-~]+", manifest.media_type)
    again = Manifest.stored(manifest.body, manifest.digest, manifest.media_type)
    assert again == manifest
    if manifest.digest != Digest.of(body):
        _check_signed(body, document, manifest.digest)
    assert all(isinstance(each, Digest) for each in (*again.children, *again.blobs))


def _check_signed(body: bytes, document: dict[str, object], digest: Digest) -> None:
    """The payload has the digest, and the body has its members, signatures at the end, and nothing else."""
    payload = find_payload(body)
    assert payload is not None
    assert Digest.of(payload) == digest
    signed = json.loads(payload, object_pairs_hook=_unique)
    assert [*signed.items(), ("signatures", document["signatures"])] == list(document.items())


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    assert len(found) == len(pairs)
    return found


# Locations


def feed_location(data: bytes) -> None:
    """A Location that is followed means the same to another URL parser, and is checked by its address."""
    text = data.decode("latin-1")
    try:
        place = resolve_redirect(HERE, text)
    except InvalidUrl:
        return
    other = parse_url(place.text)
    assert place.origin.scheme == other.scheme == "https"
    assert other.auth is None
    assert (other.host or "").strip("[]") == place.origin.host
    assert (other.port or 443) == place.origin.port
    assert place.text.isascii()
    assert place.text.isprintable()
    assert " " not in place.text
    find_literal_zone(place.origin.host)
    if ":" in place.origin.host:
        assert find_literal_zone(place.origin.host) is find_zone(place.origin.host)


# Settings and keychains


_ROOM = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def feed_settings(data: bytes) -> None:
    """A file is settings or a list of errors; neither the errors nor the displayed settings contain a secret."""
    path = _ROOM / "config.yaml"
    for text in (data, _with_secrets(data.decode("latin-1")).encode()):
        path.write_bytes(text)
        try:
            settings = load(path, {"HOME": "/nonexistent", "X": CANARY})
            output = repr(settings) + show(settings)
        except SettingsError as exc:
            output = str(exc)
        assert text is data or CANARY not in output


def _with_secrets(text: str) -> str:
    secret = json.dumps(f"{text}{CANARY}")
    return (
        f"storage: {{secret_key: {secret}, max_size: {json.dumps(text[:20])}}}\n"
        f"upstreams:\n- {{prefix: a.test, registry: b.test, proxy: {json.dumps(f'http://u:{CANARY}@{text[:20]}')},\n"
        f"   auth: {{type: {json.dumps(text[:8] or 'basic')}, username: u, password: {secret}}}}}\n"
    )


def feed_keychain(data: bytes) -> None:
    """A keychain file gives a login, or an error without its text; so does the output of a helper."""
    (_ROOM / "config.json").write_bytes(data)
    # No helper is run: this PATH is empty.
    keychain = Keychain({"DOCKER_CONFIG": str(_ROOM), "PATH": str(_ROOM)})
    for host in ("ghcr.io", "registry-1.docker.io", "a.test:5000"):
        assert CANARY not in _visible_text(lambda host=host: keychain.credential_for(host, "library/app", 1.0))
    assert CANARY not in _visible_text(lambda: _parse("x", data))


def _visible_text(parse: Callable[[], object]) -> str:
    """The visible text of a result, or of the error raised instead."""
    try:
        return repr(parse())
    except UpstreamError as exc:
        return exc.error.message
    except HelperFailed as exc:
        return str(exc)


# Addresses and logins of clients


_PROXIES = parse_networks(("10.0.0.0/8", "fd00::/8"))


def feed_client_address(data: bytes) -> None:
    """What a client sends changes nothing of what a proxy adds after it, on the same line or on another.

    A simple parser finds the same hop.
    """
    for header, real in (("x-forwarded-for", b"203.0.113.9"), ("forwarded", b'for="[2001:db8::9]:80";host="a,b"')):
        name = header.encode()
        address = {"x-forwarded-for": "203.0.113.9", "forwarded": "2001:db8::9"}[header]
        for headers in (
            [(name, data + b", " + real)],
            [(name, data), (name, real)],
            [(name, data + b"," + real + b" , " + (b"10.0.0.2" if header[0] == "x" else b"for=10.0.0.2;by=x"))],
        ):
            assert str(client_address("10.0.0.1", headers, _PROXIES, header)) == address  # type: ignore[arg-type]
        assert str(client_address("192.0.2.1", [(name, data)], _PROXIES, header)) == "192.0.2.1"  # type: ignore[arg-type]
    found = client_address("10.0.0.1", [(b"x-forwarded-for", data)], _PROXIES, "x-forwarded-for")
    assert str(found) == _read_hops(data.decode("latin-1"))


def _read_hops(text: str) -> str:
    """The right-most hop that is no proxy, by a simple parser."""
    last = "10.0.0.1"
    for hop in reversed([part.strip(" \t") for part in text.split(",") if part.strip(" \t")]):
        host = re.sub(r"^\[([^\[\]]*)\](?::[0-9]{1,5})?$", r"\1", hop)
        host = re.sub(r"^([0-9.]+):[0-9]{1,5}$", r"\1", host)
        if "%" in host or len(host) > 45:
            break
        try:
            address = ip_address(host)
        except ValueError:
            break
        last = str(getattr(address, "ipv4_mapped", None) or address)
        if not last.startswith(("10.", "fd")):
            break
    return last


def feed_authorization(data: bytes) -> None:
    """A header is a login that another parser reads the same way, or ValueError without its text."""
    text = data.decode("latin-1")
    if message := _error_of(lambda: parse_authorization(text)):
        assert len(message) < 100
        assert CANARY not in message
        return
    login = parse_authorization(text)
    scheme, value = text.strip().split(" ", 1)
    assert CANARY not in repr(login)
    if login.is_bearer:
        assert (scheme.lower(), value.strip(), login.username) == ("bearer", login.password, "")
        return
    assert scheme.lower() == "basic"
    sent = base64.b64decode(value.strip() + "==")
    assert sent in (f"{login.username}:{login.password}".encode(code) for code in ("utf-8", "latin-1") if sent)
    assert ":" not in login.username


class _Source:
    """The keys of an issuer, in memory."""

    may_refresh = False

    def __init__(self, keys: KeySet | None) -> None:
        self._keys = keys

    def read(self) -> KeySet:
        if self._keys is None:
            raise KeysUnavailable(1.0)
        return self._keys

    refresh = read

    def find(self) -> KeySet | None:
        return self._keys


_ISSUER = TokenIssuer()
_SETTINGS = JwtIssuer("ci", _ISSUER.url, _ISSUER.audience, "x", groups_claim="/g/0", algorithms=("RS256", "ES256"))
_TOKENS = Tokens([_SETTINGS], lambda _: _Source(parse_key_set(key_set(_ISSUER.jwk()))))
_HEADER = encode(json.dumps(_ISSUER.header()).encode())


def feed_token(data: bytes) -> None:
    """Signed claims give a name or an error; a token with anything changed, or with other claims, is an error."""
    head, _, claims = data.rpartition(b"\0")
    signed = f"{_HEADER}.{encode(claims)}"
    token = f"{signed}.{encode(_ISSUER.signature(signed.encode()))}"
    for text, is_signed in (
        (token, True),
        (f"{encode(head)}.{encode(claims)}.{token.rpartition('.')[2]}", False),
        (f"{signed}.{encode(head)}", False),
        (data.decode("latin-1"), False),
    ):
        is_ours = _TOKENS.is_ours(text)
        if message := _error_of(lambda text=text: _TOKENS.verify(text)):
            assert CANARY not in message
            continue
        identity = _TOKENS.verify(text)
        assert is_signed
        assert is_ours
        _judge_identity(identity.name, identity.groups, json.loads(claims, object_pairs_hook=_unique))


def _judge_identity(name: str, groups: frozenset[str], claims: dict[str, object]) -> None:
    assert name == f"ci:{claims['sub']}"
    assert (claims["iss"], float(str(claims["exp"])) > 0) == (_ISSUER.url, True)
    assert _ISSUER.audience in ([claims["aud"]] if isinstance(claims["aud"], str) else claims["aud"])  # type: ignore[operator]
    for text in (name, *groups):
        assert text.isprintable()
        assert text.startswith("ci:")


def feed_key_set(data: bytes) -> None:
    """A key set is public keys, or ValueError without its text."""
    if message := _error_of(lambda: parse_key_set(data)):
        assert CANARY not in message
        return
    for key in parse_key_set(data).keys:
        assert not any("private" in name for name in dir(key.value))
        assert key.algorithms
        assert not {name for name in key.algorithms if name.startswith(("HS", "none"))}


def feed_htpasswd(data: bytes) -> None:
    """Each user has one bcrypt hash; lines that are wrong admit nobody, and no message quotes them."""
    users = parse_htpasswd(data)
    assert not users.unusable & users.hashes.keys()
    for name, found in users.hashes.items():
        assert re.fullmatch(rb"\$2[aby]\$[01][0-9]\$[./A-Za-z0-9]{53}", found)
        assert name.isprintable()
        assert data.count(f"{name}:".encode()) >= 1
    assert CANARY not in "".join(users.problems)


def _error_of(parse: Callable[[], object]) -> str:
    """What the client and the log get if a login is not accepted; empty if it is."""
    try:
        parse()
    except LoginRequired as exc:
        return str(exc.log_fields())
    except ValueError as exc:
        return str(exc)
    return ""


def _json_words(*keys: str) -> list[bytes]:
    return [json.dumps(key).encode() for key in keys] + [
        *(bytes([char]) for char in b'{}[],:"\\'),
        *(b"null", b"true", b"1", b"-1", b"1e999", b"NaN", b"\\ud800", b"\\u0061", b"{}", b"[]", b"[{}]"),
    ]


_DIGEST = f'"sha256:{HEX}"'.encode()

_MANIFESTS = [
    b"",
    b'{"schemaVersion":2,"config":{"digest":' + _DIGEST + b'},"layers":[{"digest":' + _DIGEST + b"}]}",
    b'application/vnd.oci.image.manifest.v1+json\0{"schemaVersion":2,"config":{},"layers":[]}',
    b'{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":' + _DIGEST + b"}]}",
    b'{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[]}',
    b'{"schemaVersion":1,"fsLayers":[],"signatures":[{}]}',
    b'{"manifests":[],"a":"',
    sign({"schemaVersion": 1, "fsLayers": []}).body,
]

_CLAIMS = json.dumps(_ISSUER.claims()).encode()
_JWK = json.dumps(_ISSUER.jwk()).encode()

TARGETS = {
    "client addresses": Target(
        feed_client_address,
        [
            *(
                b"for=",
                b"by=",
                b"proto=https",
                b'"',
                b"\\",
                b",",
                b";",
                b"=",
                b" ",
                b"\t",
                b"[",
                b"]",
                b":",
                b"%",
                b"_x",
            ),
            *(
                b"unknown",
                b"10.0.0.2",
                b"198.51.100.7",
                b"fd00::1",
                b"2001:db8::7",
                b"[fd00::2]:80",
                b"::ffff:10.0.0.9",
            ),
            *(b'for="', b'";', b'for="[fd00::1]"', b"\0", b"\xff", b"999", b"0x7f", b"/8"),
        ],
        [b"", b"10.0.0.2, ", b'for="', b"for=10.0.0.2, "],
    ),
    "authorization": Target(
        feed_authorization,
        [
            *(b"Basic ", b"bearer ", b"Digest ", b" ", b"\t", b",", b"=", b"==", b":", b"\0", b"\xff", CANARY.encode()),
            *(b"YTpi", b"OmI=", b"Og==", b"dTpjYW5hcnktMmI5ZQ==", b"/+8=", b"-_", b"\r\n", b"a.b.c"),
        ],
        [b"", b"Basic ", b"BEARER  "],
    ),
    "tokens": Target(
        feed_token,
        [
            *_json_words("iss", "aud", "exp", "nbf", "iat", "sub", "g", "alg", "kid", "typ", "crit", "jwk", CANARY),
            *(b'"https://issuer.test"', b'"dockyard"', b'"RS256"', b'"none"', b'"HS256"', b'"key-1"', b"9999999999"),
            *(b"\0", b".", b'"a\\nb"', b'["x"]', _CLAIMS, _CLAIMS[:-1], _CLAIMS[1:], _HEADER.encode()),
        ],
        [b"", _CLAIMS, _CLAIMS[:-1] + b', "g": [', b"\0" + _CLAIMS[:-1], b'{"alg": "none"}\0' + _CLAIMS],
    ),
    "key sets": Target(
        feed_key_set,
        [
            *_json_words("keys", "kty", "kid", "use", "alg", "key_ops", "n", "e", "x", "y", "crv", "d", "k", CANARY),
            *_json_words("RSA", "EC", "OKP", "oct", "P-256", "Ed25519", "sig", "enc", "RS256", "HS256", "AQAB"),
            _JWK,
            _JWK[:-1],
        ],
        [b"", b'{"keys": [', b'{"keys": [' + _JWK + b"]}", b'{"keys": [' + _JWK[:-1] + b","],
    ),
    "htpasswd": Target(
        feed_htpasswd,
        [
            *(
                b"alice:",
                b"bob:",
                b":",
                b"\n",
                b"\r\n",
                b"#",
                b" ",
                b"*",
                b"\0",
                b"\xff",
                b"\xef\xbb\xbf",
                b"anonymous",
            ),
            *(b"$2y$05$" + b"a" * 53, b"$2b$", b"$apr1$", b"{SHA}", b"$2y$99$" + b"a" * 53, CANARY.encode()),
        ],
        [b"", b"alice:$2y$05$" + b"a" * 53 + b"\n"],
    ),
    "paths": Target(
        feed_path,
        [
            *(b"/v2/", b"/", b"v2", b"a", b"docker.io", b"library", b"latest", b"list", b".", b"..", b"_", b"-", b"//"),
            *(b"sha256:", b"sha256%3A", b"%3a", b"%2e", b"%2f", b"%00", b"\xff", b"A", b"a" * 130, b"a" * 64),
            *(HEX.encode(), *(kind.encode() for kind in KINDS), b"/manifests/", b"/blobs/", b"/tags/list", b"sha512:"),
        ],
        [
            *(b"", b"/v2/library/app/manifests/latest", b"/v2/a/blobs/sha256:" + HEX.encode(), b"/v2/a/manifests/"),
            *(b"/docker.io/v2/alpine/tags/list", b"/v2/ghcr.io/a/b/referrers/", b"/v2/docker.io/app/manifests/v1"),
        ],
    ),
    "ranges": Target(
        feed_range,
        [
            b"\x20bytes=",
            b"bytes",
            b"=",
            b"-",
            b",",
            b"0",
            b"1",
            b"9",
            b"49",
            b"0-",
            b"-1",
            b" ",
            b"\t",
            b"9" * 30,
            b"0" * 30,
            b"0-0,",
        ],
        [b"", b"\x20bytes=", b"\x31bytes=0-5", b"\x14bytes=-3,", b"\x0abytes=5-,", b"\x0abytes=" + b"0-0," * 300],
    ),
    "challenges": Target(
        feed_challenge,
        [
            *(
                b"Bearer ",
                b"Basic ",
                b"realm=",
                b'"',
                b",",
                b"=",
                b" ",
                b"\\",
                b"service=",
                b"scope=",
                b"\n",
                b"\t",
                b"@",
            ),
            *(b"https://", b"http://", b"registry.example.com", b"auth.example.com", b"evil.test", b"/token", b":443"),
            *(b":", b"[::1]", b"127.0.0.1", b"2130706433", b"example.com.", b"%2e", b"#", b"?", b"\xe9", b"."),
        ],
        [
            b"",
            b'Bearer realm="https://auth.example.com/token",service="s",scope="repository:a:pull"',
            b'Basic realm="x", Bearer realm="https://registry.example.com',
            b"auth.example.com",
            b"[::1]:5000/token",
        ],
    ),
    "manifests": Target(
        feed_manifest,
        [
            *_json_words(
                "schemaVersion", "mediaType", "manifests", "config", "layers", "fsLayers", "blobs", "digest", "size"
            ),
            *(
                _DIGEST,
                b"application/vnd.oci.image.manifest.v1+json",
                b'"mediaType":"application/vnd.oci.image.index.v1+json"',
            ),
            *(b'"layers":[]', b'"config":{}', b'"manifests":[]', b"\0", b"\xff", b"\xef\xbb\xbf", b" "),
            b'{"schemaVersion":2,"config":{"digest":' + _DIGEST + b'},"layers":[{"digest":' + _DIGEST + b"}]}",
            b'{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":' + _DIGEST + b"}]}",
            b'{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[]}',
            b'{"schemaVersion":1,"fsLayers":[],"signatures":[{}]}',
        ],
        _MANIFESTS,
    ),
    "locations": Target(
        feed_location,
        [
            *(
                b"https://",
                b"http://",
                b"//",
                b"/",
                b"..",
                b"?",
                b"#",
                b"@",
                b":",
                b"\\",
                b"%",
                b"%00",
                b" ",
                b"\t",
                b"\n",
            ),
            *(b"cdn.test", b"[::1]", b"[::ffff:127.0.0.1]", b"[fe80::1%25eth0]", b"127.1", b"0x7f.1", b"2130706433"),
            *(b"localhost.", b":443", b":0", b":65536", b"file:", b"u:p@", b"\xe9", b"a", b".", b"-", b";", b"xn--"),
        ],
        [b"", b"https://cdn.test/a?b=c", b"//", b"/v2/", b"https://[::1]:444/", b"https://127.1/", b"http://cdn.test/"],
    ),
    "settings": Target(
        feed_settings,
        [
            *(
                b"server:",
                b"port:",
                b"storage:",
                b"upstreams:",
                b"- ",
                b"prefix:",
                b"registry:",
                b"auth:",
                b"type:",
                b"basic",
            ),
            *(
                b"password:",
                b"\n",
                b"  ",
                b": ",
                b"{",
                b"}",
                b"[",
                b"]",
                b"&a",
                b"*a",
                b"!!python/object",
                b"|",
                b"'",
                b'"',
            ),
            *(
                b"${X}",
                b"${",
                b"$",
                b"docker.io",
                b"1m30s",
                b"50GiB",
                b"8080",
                b"true",
                b"#",
                b"---",
                b"\xff",
                b"\0",
                b"<<",
            ),
        ],
        [
            b"",
            b"server:\n  port: 8080\n  workers: 2\n",
            b"storage:\n  max_size: 50GiB\n  bucket: b\n",
            b"upstreams:\n- prefix: a.test\n  registry: https://b.test/path\n  auth: {type: basic, username: u}\n",
            b"upstream:\n  check_timeout: 1m30s\n",
            b"logger: {level: ${X}, encoding: json}\n",
        ],
    ),
    "keychains": Target(
        feed_keychain,
        [
            *_json_words(
                "auths", "credHelpers", "credsStore", "auth", "username", "password", "identitytoken", "Username"
            ),
            *_json_words("Secret", "ghcr.io", "https://index.docker.io/v1/", "a.test:5000", "registrytoken", CANARY),
            *(b'"dTpjYW5hcnktMmI5ZQ=="', b'"../x"', b'"ecr-login"', b'{"auths":{"ghcr.io":{'),
        ],
        [
            b"",
            b'{"auths":{"ghcr.io":{"auth":"dTpjYW5hcnktMmI5ZQ=="}}}',
            b'{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"canary-2b9e"}}}',
            b'{"credHelpers":{"ghcr.io":"x"},"credsStore":"y"}',
            b'{"Username":"u","Secret":"canary-2b9e"}',
        ],
    ),
}

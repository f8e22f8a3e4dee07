"""Names, references, ranges and methods, as they arrive over the wire."""

import random
from collections.abc import Callable

import pytest

from dockyard.web.paths import PathRouter
from tests.security.canaries import WatchedDeployment
from tests.security.conftest import PASSWORD
from tests.security.raw_connection import send_bytes
from tests.support.deployment import upstream
from tests.support.fake_registry import OCI_MANIFEST, FakeRegistry, basic
from tests.support.http_client import parse_multipart
from tests.unit.web.test_paths import Endpoint

HEX = "0123456789abcdef" * 4
BLOB = random.Random(7).randbytes(100_000)
SIZE = len(BLOB)

BAD_NAMES = [
    *("", "/", "//", "a//b", "a/", "/a", "a/./b", "a/../b", "..", ".", "../a", "./a", "a/.."),
    *(".a", "a.", "-a", "a-", "_a", "a_", "a/.b", "a/b.", "a/-b", "a/b-", "a/_b", "a/b_", "a..b", "a.-b", "a-.b"),
    *("A", "aB", "UP.TEST/a", "a/B", "a___b", "a_.b", "a._b", "a" * 256, "a" * 300, "a/" * 127 + "ab", "a" * 2000),
    *("a\x01b", "a\x7fb", "a\tb", "a\x1b[31m", "a\x00", "a%0ab", "a%00b", "a%20b", "a%2fb", "a%2e%2e", "%61"),
    *("\u0430", "a\u0301", "\uff41", "\u2024", "\u2215", "\U0001f600"),
    *("_catalog", "a\\b", "a:b", "a@b", "a,b", "a=b", "a;b", "a!b", "a~b", "a+b", "a(b)", "a'b"),
]


@pytest.mark.usefixtures("no_backend_requests")
def test_n1_bad_names(empty_bucket_deployment: WatchedDeployment) -> None:
    """A name outside the grammar is 400 NAME_INVALID, or no endpoint at all; no file, no key, no upstream request."""
    assert len(set(BAD_NAMES)) >= 60
    files = set(empty_bucket_deployment.dockyard.storage.rglob("*"))
    wrong = {}
    for name in BAD_NAMES:
        request = f"GET /v2/up.test/{name}/manifests/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        result = send_bytes(empty_bucket_deployment.address, request.encode())
        is_refused = result.statuses in ((400,), (404,)) and b"NAME_UNKNOWN" not in result.received
        if result.statuses == (400,) and b"NAME_INVALID" not in result.received:
            is_refused = not name.isprintable()  # Granian rejects control characters itself
        if not is_refused:
            wrong[name] = result
    assert wrong == {}
    assert set(empty_bucket_deployment.dockyard.storage.rglob("*")) == files


BAD_TAGS = ["a" * 129, ".x", "-x", "a+b", "a~b", "a!b", "a@b", "a,b", "a$b", "a&b", "a=b", "a;b", "a(b", "a'b", "a*b"]
BAD_DIGESTS = [
    *(f"sha256:{HEX[:63]}", f"sha256:{HEX}0", f"sha256:{HEX.upper()}", f"sha256:{'g' * 64}", "sha256:", "sha256:a"),
    *(f"sha256:..{HEX[2:]}", "sha256:..", f"sha256:{HEX[:62]}..", f"sha256:{HEX}:", f":{HEX}", f"sha256::{HEX[1:]}"),
    *(f"md5:{HEX[:32]}", f"sha1:{HEX[:40]}", f"sha384:{HEX}{HEX[:32]}", f"blake3:{HEX}", f"SHA256:{HEX}", "x:y"),
    *(f"sha512:{HEX}", f"sha512:{HEX}{HEX[:63]}", f"sha512:{HEX}{HEX}0", f"sha256+b64:{HEX}", f"sha256:{HEX},", "a:"),
    *(f"sha256:{'0' * 63}~", f"sha256%3a{HEX[:63]}", f"sha256:-{HEX[1:]}"),
]


@pytest.mark.usefixtures("no_backend_requests")
def test_n2_bad_references(empty_bucket_deployment: WatchedDeployment) -> None:
    """An invalid tag is MANIFEST_INVALID, an invalid digest DIGEST_INVALID, each 400, for manifests and blobs."""
    assert len({*BAD_TAGS, *BAD_DIGESTS}) >= 40
    wrong = []
    for reference in BAD_TAGS:
        response = empty_bucket_deployment.get(f"/v2/up.test/app/manifests/{reference}")
        wrong += [reference] * ((response.status, response.error) != (400, "MANIFEST_INVALID"))
    for reference in BAD_DIGESTS:
        for path in (f"manifests/{reference}", f"blobs/{reference}", f"referrers/{reference}"):
            response = empty_bucket_deployment.get(f"/v2/up.test/app/{path}")
            wrong += [path] * ((response.status, response.error) != (400, "DIGEST_INVALID"))
    for reference in (f"sha256-{HEX}", "latest"):  # these are valid tags, and so no digests of blobs
        response = empty_bucket_deployment.get(f"/v2/up.test/app/blobs/{reference}")
        wrong += [reference] * ((response.status, response.error) != (400, "DIGEST_INVALID"))
    assert wrong == []


def test_n3_names_with_protocol_keywords() -> None:
    """A path is parsed from the right, whatever its name consists of; a simple parser agrees each time."""
    kinds = ("manifests", "blobs", "tags", "referrers")
    router = PathRouter(Endpoint("base"), {kind: Endpoint(kind) for kind in kinds}, {})
    words = random.Random(3)
    for _ in range(20_000):
        name = "/".join(words.choice([*kinds, "v2", "list", "a", "uploads"]) for _ in range(words.randint(1, 6)))
        kind = words.choice(kinds)
        reference = "list" if kind == "tags" else words.choice(["x", f"sha256:{HEX}", "blobs", "v2"])
        found = router.find(f"/v2/{name}/{kind}/{reference}")
        assert found is not None
        assert found[0].name == kind
        assert found[2] == {"path_prefix": "", "name": name, "reference": reference}


NEIGHBOURS = ["ghcr.io/my-org-evil/x", "ghcr.io/my-orgx/y", "ghcr.io//my-org/x", "GHCR.IO/my-org/x", "ghcr.io/my_org/x"]


def test_n4_a_similar_prefix_does_not_get_the_login(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """A name that only resembles one of `ghcr.io/my-org` goes to the catch-all upstream, or is rejected."""
    login = {"type": "basic", "username": "ann", "password": PASSWORD.text}
    deployment = make_deployment(
        upstreams=[
            upstream("ghcr.io/my-org", f"{fake_registry.url}/my-org", auth=login),
            upstream("ghcr.io", fake_registry.url),
        ]
    )
    fake_registry.on(
        None, lambda request, response: response.of(401).with_header("WWW-Authenticate", 'Basic realm="x"')
    )
    for name in NEIGHBOURS:
        assert deployment.get(f"/v2/{name}/manifests/v1").status in (400, 404), name
    assert {each.request.header("Authorization") for each in fake_registry.received()} == {None}
    assert deployment.get("/v2/ghcr.io/my-org/x/manifests/v1").status == 403
    sent = {each.request.header("Authorization") for each in fake_registry.received(repo="my-org/x")}
    assert sent == {None, basic("ann", PASSWORD.text)}


def test_n5_one_path_at_two_upstreams(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """The same repository and tag of two upstreams are two objects, each stored separately."""
    deployment = make_deployment(
        upstreams=[upstream("one.test", f"{fake_registry.url}/one"), upstream("two.test", f"{fake_registry.url}/two")]
    )
    images = {name: fake_registry.add_image(f"{name}/a/b", "v1", [name.encode()]) for name in ("one", "two")}
    for _ in range(2):
        for name, image in images.items():
            response = deployment.get(f"/v2/{name}.test/a/b/manifests/v1")
            assert (response.status, response.header("Docker-Content-Digest")) == (200, image.digest)
    assert images["one"].digest != images["two"].digest
    pointers = [path for path in deployment.dockyard.storage.rglob("tags/v1") if path.is_file()]
    assert {path.read_text().split()[0][:71] for path in pointers} == {image.digest for image in images.values()}


def test_n6_duplicate_ns_parameters(deployment: WatchedDeployment) -> None:
    """The same `ns` twice counts once, a different second one is 400, and the cache key is that of the prefix."""
    image = deployment.fake_registry.add_image("library/ns", "v1")
    path = "/v2/library/ns/manifests/"
    assert deployment.get(f"{path}{image.digest}?ns=docker.io&ns=docker.io").status == 200
    before = deployment.fake_registry.count()
    for query in ("ns=docker.io&ns=169.254.169.254", "ns=other.io&ns=docker.io", "ns=docker.io&ns=DOCKER.IO&ns=x"):
        assert deployment.get(f"{path}{image.digest}?{query}").status == 400
    for query in ("", "?ns=docker.io", "?x=1&x=2", "?ns="):
        assert deployment.get(f"{path}{image.digest}{query}").status == 200
    assert deployment.fake_registry.count() == before


RANGES: dict[str, int | bytes | list[bytes]] = {
    "bytes=0-0": BLOB[:1],
    "bytes=-1": BLOB[-1:],
    "bytes=5-": BLOB[5:],
    "bytes=0-": BLOB,
    "bytes=10-19": BLOB[10:20],
    f"bytes=0-{SIZE}": BLOB,
    f"bytes={SIZE - 1}-": BLOB[-1:],
    f"bytes=-{SIZE * 2}": BLOB,
    f"bytes=-{10**30}": BLOB,
    f"bytes=0-{10**30}": BLOB,
    f"bytes=0-{'9' * 5000}": BLOB,
    "Bytes=0-0": BLOB[:1],
    "bytes= 0-0": BLOB[:1],
    "bytes=0-0,": BLOB[:1],
    "bytes=0-0,5-6": [BLOB[:1], BLOB[5:7]],
    "bytes=5-6,0-0": [BLOB[5:7], BLOB[:1]],
    "bytes=0-1,999999-": BLOB[:2],
    f"bytes={SIZE}-": 416,
    f"bytes={10**30}-": 416,
    "bytes=9-8": 416,
    "bytes=-0": 416,
    "bytes=" + ",".join(["0-"] * 200): 400,
    "bytes=" + ",".join(["0-0"] * 1000): 400,
    "bytes=-": 200,
    "bytes=a-b": 200,
    "bytes=+0-1": 200,
    "bytes=0--1": 200,
    "bytes=0x0-0x1": 200,
    "bytes 0-1": 200,
    "items=0-1": 200,
    "bytes=0-1;2-3": 200,
    "bytes=0.0-1": 200,
}


def test_n7_ranges(deployment: WatchedDeployment) -> None:
    """206 with exactly those bytes, one part for each of several ranges, 416, 400 for too many, or 200 with all."""
    digest = deployment.fake_registry.add_blob(BLOB)
    assert len(RANGES) >= 30
    for range_header, expected in RANGES.items():
        response = deployment.get(f"/v2/up.test/app/blobs/{digest}", Range=range_header)
        match expected:
            case int(status):
                assert response.status == status, range_header
                assert response.body == BLOB if status == 200 else len(response.body) < 500, range_header
                if status == 416:
                    assert response.header("Content-Range") == f"bytes */{SIZE}"
            case bytes(part):
                assert (response.status, response.body) == (206, part), range_header
            case parts:
                assert response.status == 206, range_header
                assert [body for _, body in parse_multipart(response)] == parts


def test_n8_head_is_get_without_a_body(deployment: WatchedDeployment) -> None:
    """HEAD has the status and the headers of GET, Content-Length included, no body, and starts no download."""
    image = deployment.fake_registry.add_image("heads", "v1", [b"a layer for HEAD"])
    layer = deployment.fake_registry.add_blob(BLOB + b"a cold one")
    cold = f"/v2/up.test/heads/blobs/{layer}"
    assert deployment.head(cold).header("Content-Length") == str(SIZE + 10)
    assert deployment.fake_registry.count("blob", "GET", reference=layer) == 0
    paths = [
        *("/v2/", "/version", "/healthz", "/readyz", "/v2/_catalog", "/nothing", "/v2/up.test/A/manifests/x", cold),
        *(f"/v2/up.test/heads/manifests/{reference}" for reference in ("v1", image.digest, "none", f"sha256:{HEX}")),
        *(f"/v2/up.test/heads/blobs/{digest}" for digest in (*image.layers, f"sha256:{HEX}", "sha256:x")),
        *("/v2/up.test/heads/tags/list", f"/v2/up.test/heads/referrers/{image.digest}", "/v2/unknown.test/a/blobs/x"),
    ]
    for path in paths:
        deployment.get(path)
        get, head = deployment.get(path), deployment.head(path)
        assert head.body == b""
        assert head.status == get.status, path
        assert _comparable(head.headers) == _comparable(get.headers), path


def _comparable(headers: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The headers without those that differ between two responses."""
    return {name: value for name, value in headers if name not in {"date", "cache-status", "age"}}


ACCEPTS = [
    "",
    OCI_MANIFEST,
    "*/*",
    "application/vnd.docker.distribution.manifest.v1+json",
    f"{OCI_MANIFEST};q=0, */*;q=0.1, text/html;q=0.9",
    ", ".join(f"application/vnd.odd{number}+json" for number in range(50)),
]


def test_n10_accept_changes_nothing(deployment: WatchedDeployment) -> None:
    """Whatever a client accepts, a digest and a tag have the same bytes and the same type, fetched once."""
    image = deployment.fake_registry.add_image("accepts", "v1", [b"a layer for all"])
    for reference in (image.digest, "v1"):
        for accept in ACCEPTS:
            response = deployment.get(
                f"/v2/up.test/accepts/manifests/{reference}", **({"Accept": accept} if accept else {})
            )
            assert (response.status, response.body) == (200, image.body), accept
            assert (response.header("Docker-Content-Digest"), response.header("Content-Type")) == (
                image.digest,
                OCI_MANIFEST,
            )
    assert deployment.fake_registry.count("manifest", "GET", repo="accepts") == 1

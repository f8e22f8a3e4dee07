"""Rules for the settings of access: who, which repositories, and from where logins come. Reads the files they name."""

import contextlib
import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs

from dockyard.config.certificates import check_authorities, check_readable
from dockyard.config.hosts import DOCKER_HUB_HOSTS, is_loopback, parse_authority, parse_network
from dockyard.config.htpasswd import read_htpasswd
from dockyard.config.settings import (
    DAY_S,
    TOKEN_PATH,
    AccessRule,
    AccessSettings,
    Group,
    JwtIssuer,
    Network,
    ServerSettings,
    Upstream,
)
from dockyard.config.token_key import read_token_key
from dockyard.config.who import GROUP, NETWORK, RESERVED_NAMES, ClientKind, Clients
from dockyard.oci.patterns import ANY_COMPONENTS, ANY_TEXT, NamePattern

ACTIONS: Final = ("pull", "list", "status")
ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
MAX_GRACE_S: Final = 30 * DAY_S
MAX_JWKS_BYTES: Final = 2**20
MAX_SHOWN: Final = 10

_URL: Final = re.compile(r"https?://[A-Za-z0-9._:\[\]-]+(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*", re.ASCII)
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", re.ASCII)
_WRITERS: Final = ("push", "write", "delete", "publish", "upload")

Error = tuple[str, str]


def find_access_errors(
    access: AccessSettings, upstreams: Sequence[Upstream], server: ServerSettings
) -> Iterator[Error]:
    """Yield each rule that is violated, as key and message."""
    yield from _connection_errors(server)
    yield from _login_errors(access)
    yield from _name_errors("access.jwt", access.jwt)
    yield from _name_errors("access.networks", access.networks)
    yield from _name_errors("access.groups", access.groups)
    issuers: dict[tuple[str, str], str] = {}
    for index, issuer in enumerate(access.jwt):
        key = f"access.jwt[{index}]"
        yield from _issuer_errors(key, issuer)
        if (first := issuers.setdefault((issuer.issuer, issuer.audience), key)) != key:
            yield (
                f"{key}.issuer",
                f"is that of {first} too, with the same audience: remove one, or correct the audience",
            )
    for index, network in enumerate(access.networks):
        yield from _address_errors(f"access.networks[{index}].addresses", network.addresses)
    names = _Names(access)
    for index, group in enumerate(access.groups):
        for place, member in enumerate(group.members):
            yield from _check(f"access.groups[{index}].members[{place}]", names.check_member, member)
    checker = _PatternChecker.of(upstreams)
    for index, rule in enumerate(access.rules):
        yield from _rule_errors(f"access.rules[{index}]", rule, names, checker)
    for index, upstream in enumerate(upstreams):
        yield from _upstream_errors(f"upstreams[{index}]", upstream)


def find_access_warnings(
    access: AccessSettings, upstreams: Sequence[Upstream], server: ServerSettings
) -> Iterator[str]:
    """Yield what is allowed but probably not intended."""
    if _is_every_address(server.trusted_proxies):
        yield (
            "server.trusted_proxies: contains every address, so that each client can claim to have any address: write "
            "the addresses of the proxies only"
        )
    yield from _challenge_warnings(access, upstreams)
    for index, issuer in enumerate(access.jwt):
        for name in ("ca_file", "token_file"):
            if getattr(issuer, name) and "://" not in issuer.jwks:
                yield f"access.jwt[{index}].{name}: has no effect, because jwks is a file"
    for index, rule in enumerate(access.rules):
        if rule.allow and rule.hide:
            yield (
                f"access.rules[{index}].hide: has no effect in a rule that allows: write it in a later rule that "
                "denies the same repositories to others"
            )
    for index, upstream in enumerate(upstreams):
        if upstream.access == "upstream" and upstream.insecure_skip_verify:
            yield (
                f"upstreams[{index}]: logins of clients are sent to this registry, whose certificate is not verified: "
                "set ca_file instead of insecure_skip_verify"
            )
    yield from _empty_warnings(access)


def _challenge_warnings(access: AccessSettings, upstreams: Sequence[Upstream]) -> Iterator[str]:
    has_logins = bool(access.htpasswd or access.jwt) or any(upstream.access == "upstream" for upstream in upstreams)
    if access.challenge == "bearer" and not has_logins:
        yield (
            "access.challenge: bearer has no effect, because there is no way to log in: set access.htpasswd or "
            "access.jwt, or access: upstream for an upstream"
        )
    for name in ("token_url", "token_key_file"):
        if getattr(access, name) and access.challenge != "bearer":
            yield f"access.{name}: has no effect without access.challenge: bearer"


def _is_every_address(texts: Sequence[str]) -> bool:
    """Whether networks contain all IPv4 addresses, or all IPv6 addresses, alone or together."""
    networks: list[IPv4Network | IPv6Network] = []
    for text in texts:
        with contextlib.suppress(ValueError):  # an error of this key
            networks.append(parse_network(text))
    four = collapse_addresses(network for network in networks if isinstance(network, IPv4Network))
    six = collapse_addresses(network for network in networks if isinstance(network, IPv6Network))
    return any(network.prefixlen == 0 for network in four) or any(network.prefixlen == 0 for network in six)


def _empty_warnings(access: AccessSettings) -> Iterator[str]:
    for index, network in enumerate(access.networks):
        if not network.addresses:
            yield f"access.networks[{index}]: has no addresses, so that no client is in network:{network.name}"
    for index, group in enumerate(access.groups):
        if not group.members:
            yield f"access.groups[{index}]: has no members, so that no client is in group:{group.name}"


def _check_htpasswd(path: str) -> None:
    try:
        read_htpasswd(path)
    except ValueError as exc:
        is_missing = isinstance(exc.__cause__, FileNotFoundError)
        raise ValueError(f"{exc}{': make it with `dockyard passwd`' if is_missing else ''}") from exc


def _login_errors(access: AccessSettings) -> Iterator[Error]:
    """What is wrong with the ways in which clients log in."""
    if access.htpasswd:
        yield from _check("access.htpasswd", _check_htpasswd, access.htpasswd)
    if access.token_key_file:
        yield from _check("access.token_key_file", _check_token_key, access.token_key_file)
    if access.token_url:
        yield from _check("access.token_url", _check_token_url, access.token_url)


def _connection_errors(server: ServerSettings) -> Iterator[Error]:
    if server.client_ca and not server.tls:
        yield "server.client_ca", "needs server.tls: without TLS, clients show no certificate; set server.tls: true"
    if server.client_ca:
        yield from _check("server.client_ca", check_authorities, server.client_ca)
    yield from _address_errors("server.trusted_proxies", server.trusted_proxies)


def _address_errors(key: str, addresses: Sequence[str]) -> Iterator[Error]:
    for place, address in enumerate(addresses):
        yield from _check(f"{key}[{place}]", parse_network, address)


def _name_errors(key: str, entries: Sequence[JwtIssuer | Network | Group]) -> Iterator[Error]:
    """What is wrong with the names in a list of issuers, networks or groups."""
    known: dict[str, str] = {}
    for index, entry in enumerate(entries):
        own = f"{key}[{index}]"
        if not _NAME.fullmatch(entry.name):
            likely = re.sub(r"[^a-z0-9.]+", "-", entry.name.lower()).strip("-.")
            hint = f": write {likely}" if _NAME.fullmatch(likely) else ""
            yield f"{own}.name", f"must consist of lower-case letters, digits, dots and hyphens{hint}"
        elif entry.name in RESERVED_NAMES:
            yield f"{own}.name", "has a meaning of its own in `who`: choose another name"
        elif (first := known.setdefault(entry.name, own)) != own:
            yield f"{own}.name", f"is the name of {first} too: write one entry with all, or choose another name"


def _issuer_errors(key: str, issuer: JwtIssuer) -> Iterator[Error]:
    for name in ("issuer", "audience", "name_claim"):
        if not getattr(issuer, name).strip():
            yield f"{key}.{name}", "must not be empty"
    for name in ("name_claim", "groups_claim"):
        claim = getattr(issuer, name)
        if claim.startswith("/") and re.search(r"~(?![01])", claim):
            yield (
                f"{key}.{name}",
                "must have ~0 instead of ~ in a JSON Pointer (RFC 6901), and ~1 instead of / in a key",
            )
    check = _check_jwks_url if "://" in issuer.jwks else _check_jwks_file
    yield from _check(f"{key}.jwks", check, issuer.jwks)
    if issuer.ca_file:
        yield from _check(f"{key}.ca_file", check_authorities, issuer.ca_file)
    if issuer.token_file:
        yield from _check(f"{key}.token_file", check_readable, issuer.token_file)
    if not issuer.algorithms:
        yield f"{key}.algorithms", f"must have at least one, such as {ALGORITHMS[0]}"
    for place, algorithm in enumerate(issuer.algorithms):
        yield from _check(f"{key}.algorithms[{place}]", _check_algorithm, algorithm)


def _check_token_key(path: str) -> None:
    try:
        read_token_key(path)
    except ValueError as exc:
        is_missing = isinstance(exc.__cause__, FileNotFoundError)
        raise ValueError(f"{exc}{': make it with `openssl rand -hex 32`' if is_missing else ''}") from exc


def _check_token_url(text: str) -> None:
    """Raise ValueError unless a text is the URL of a token service, which can be sent to clients."""
    example = "such as https://dockyard.example/token"
    if not _URL.fullmatch(text):
        raise ValueError(f"must be an http or https URL without a user, a query and a fragment, {example}")
    parts = urlsplit(text)
    parse_authority(parts.netloc)
    if parts.path in {"", "/"}:
        raise ValueError(f"must have a path: it is the URL of {TOKEN_PATH}, {example}")


def _check_jwks_url(text: str) -> None:
    try:
        parts = urlsplit(text)
    except ValueError as exc:
        raise ValueError("must be an https URL, such as https://gitlab.example/oauth/discovery/keys") from exc
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must be an https URL, or the path of a file")
    if "@" in parts.netloc:
        raise ValueError("must not contain a user or a password")
    if parts.fragment:
        raise ValueError("must not have a fragment")
    host, _ = parse_authority(parts.netloc)
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError(
            "must be an https URL: over plain HTTP, the keys of everybody else could be put in their place"
        )
    if parts.path.endswith("/.well-known/openid-configuration"):
        raise ValueError("must be the URL of the keys: it is the value of jwks_uri in that document")


def _check_jwks_file(path: str) -> None:
    if not path:
        raise ValueError("must be the URL of the keys, or the path of a file with them")
    check_readable(path)
    with Path(path).open("rb") as file:
        data = file.read(MAX_JWKS_BYTES + 1)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise ValueError("must be a file with a JSON Web Key Set: it is not JSON") from exc
    if not (isinstance(document, dict) and isinstance(document.get("keys"), list)):
        raise ValueError(  # noqa: TRY004  about a value in a file
            'must be a file with a JSON Web Key Set: a JSON object with a list "keys"'
        )


def _check_algorithm(name: str) -> None:
    if name in ALGORITHMS:
        return
    if name.lower() == "none":
        raise ValueError("must not be none: everybody can make a token without a signature")
    if name.upper().startswith("HS"):
        raise ValueError(
            "must be an algorithm with a public key: HS algorithms verify with the secret that signs, so that "
            f"everybody who has the keys in jwks could sign; choose one of {', '.join(ALGORITHMS)}"
        )
    usual = {algorithm.upper(): algorithm for algorithm in ALGORITHMS}.get(name.upper())
    raise ValueError(f"must be one of {', '.join(ALGORITHMS)}{f': write {usual}' if usual else ''}")


def _rule_errors(key: str, rule: AccessRule, names: "_Names", checker: "_PatternChecker") -> Iterator[Error]:
    for place, text in enumerate(rule.repositories):
        yield from _check(f"{key}.repositories[{place}]", checker.check, text)
    for place, entry in enumerate(rule.who):
        yield from _check(f"{key}.who[{place}]", names.check_client, entry)
    for place, action in enumerate(rule.actions):
        yield from _check(f"{key}.actions[{place}]", _check_action, action)
    if "status" in rule.actions and rule.repositories:
        problem = "must not have status together with repositories, because the status of the server is none of them"
        yield f"{key}.actions", f"{problem}: write a rule of its own for it"


def _check_action(action: str) -> None:
    if action in ACTIONS:
        return
    known = ", ".join(ACTIONS)
    if action.lower() == "admin":
        raise ValueError(f"must be one of {known}: there is no admin API in this version, so remove it")
    if action.lower() in _WRITERS:
        raise ValueError(f"must be one of {known}: Dockyard is read-only, so remove it")
    if action == ANY_TEXT:
        raise ValueError(f"must be one of {known}: write those that are meant; none means pull and list")
    nearest = difflib.get_close_matches(action.lower(), ACTIONS, 1)
    raise ValueError(f"must be one of {known}{f': write {nearest[0]}' if nearest else ''}")


def _upstream_errors(key: str, upstream: Upstream) -> Iterator[Error]:
    if not 0 < upstream.access_ttl <= DAY_S:
        yield f"{key}.access_ttl", "must be more than 0, and 24h or less"
    if upstream.access_grace > MAX_GRACE_S:
        yield f"{key}.access_grace", f"must be {MAX_GRACE_S / 3600:.0f}h (30 days) or less"
    if upstream.access == "upstream" and _is_in_clear_text(upstream):
        problem = "must not be upstream for a registry without HTTPS, to which logins of clients would go in clear text"
        yield f"{key}.access", f"{problem}: write https:// in registry, or access: rules"


def _is_in_clear_text(upstream: Upstream) -> bool:
    try:
        return upstream.origin.scheme == "http" and not is_loopback(upstream.origin.host)
    except ValueError:  # an error of `registry`
        return False


class _Names:
    """The names that `who` and `members` can refer to."""

    def __init__(self, access: AccessSettings) -> None:
        self._issuers = {issuer.name: issuer for issuer in access.jwt}
        self._groups = [group.name for group in access.groups]
        self._networks = [network.name for network in access.networks]

    def check_client(self, entry: str) -> None:
        """Check an entry of `who`. Raises ValueError with the remedy."""
        clients = Clients.parse(entry)
        match clients.kind:
            case ClientKind.GROUP:
                if clients.name in self._issuers:
                    raise ValueError(
                        f"{clients.name} is an issuer of tokens: for a group in them write group:{clients.name}:NAME"
                    )
                _require(clients.name, self._groups, "access.groups", f"{GROUP}:")
            case ClientKind.NETWORK:
                _require(clients.name, self._networks, "access.networks", f"{NETWORK}:")
            case ClientKind.TOKEN:
                self._require_issuer(clients)
            case ClientKind.TOKEN_GROUP:
                _require(clients.name, self._issuers, "access.jwt", f"{GROUP}:")
                if not self._issuers[clients.name].groups_claim:
                    raise ValueError(
                        f"tokens of {clients.name} have no groups: set groups_claim of this issuer in access.jwt"
                    )

    def check_member(self, entry: str) -> None:
        """Check a member of a group. Raises ValueError with the remedy."""
        clients = Clients.parse(entry)
        if clients.kind not in {ClientKind.USER, ClientKind.TOKEN}:
            raise ValueError(
                "is not a member: groups consist of users (NAME) and tokens (ISSUER:NAME); write anything else in `who`"
            )
        if clients.kind is ClientKind.TOKEN:
            self._require_issuer(clients)

    def _require_issuer(self, clients: Clients) -> None:
        if clients.name.lower() in {"user", "users", "htpasswd", "basic"}:
            raise ValueError(f"a user is written without {clients.name}: before it: write {clients.text}")
        nearest = difflib.get_close_matches(clients.name.lower(), [GROUP, NETWORK], 1)
        if nearest and clients.name not in self._issuers:
            raise ValueError(f"there is no such issuer in access.jwt: write {nearest[0]}:{clients.text}")
        _require(clients.name, self._issuers, "access.jwt", "")


def _require(name: str, known: Iterable[str], key: str, before: str) -> None:
    names = list(known)
    if name in names:
        return
    nearest = difflib.get_close_matches(name.lower(), names, 1)
    what = f"write {before}{nearest[0]}" if nearest else f"the names in {key} are {_list(names)}"
    raise ValueError(f"there is no such name in {key}: {what}")


@attrs.frozen
class _PatternChecker:
    """Checks patterns for repositories against the names that upstreams have. Without any, only their form."""

    names: Mapping[str, NamePattern]
    upstreams: Sequence[Upstream]

    @classmethod
    def of(cls, upstreams: Sequence[Upstream]) -> "_PatternChecker":
        found = {upstream.prefix: _find_names(upstream) for upstream in upstreams}
        usable = {prefix: names for prefix, names in found.items() if names}
        return cls(usable if len(usable) == len(upstreams) else {}, upstreams)

    def check(self, text: str) -> None:
        """Raises ValueError with the remedy for a pattern that no repository of an upstream matches."""
        pattern = NamePattern.parse(text)
        if not self.names or self._has_names(pattern):
            return
        likely = next((found for found in self._suggest(pattern) if self._has_names(found)), None)
        problem = "matches no repository name: names begin with the prefix of an upstream"
        if likely and str(likely).replace("/library/", "/") == text:
            last = pattern.components[-1]
            whole = "" if ANY_TEXT in last else f", or {text}/** for the images of the organization {last}"
            raise ValueError(
                "matches no repository name: images of Docker Hub without an organization are in library: "
                f"write {likely}{whole}"
            )
        if likely and text in self.names:
            problem = "matches no repository name: it is only the prefix of an upstream"
        raise ValueError(f"{problem}: {f'write {likely}' if likely else f'the prefixes are {_list(self.names)}'}")

    def _has_names(self, pattern: NamePattern) -> bool:
        return any(next(pattern.find_within(names), None) for names in self.names.values())

    def _suggest(self, pattern: NamePattern) -> Iterator[NamePattern]:
        """Yield patterns that are likely meant, each also within `library`."""
        for upstream, count in self._likely_upstreams(pattern.components):
            rest = pattern.components[count:] or (ANY_COMPONENTS,)
            for middle in ((), ("library",)):
                yield NamePattern((*upstream.prefix.split("/"), *middle, *rest))

    def _likely_upstreams(self, components: tuple[str, ...]) -> Iterator[tuple[Upstream, int]]:
        """Yield upstreams, each with the number of components that its prefix replaces."""
        first = components[0]
        for upstream in self.upstreams:
            depth = upstream.prefix.count("/") + 1
            if "/".join(components[:depth]) == upstream.prefix:
                yield upstream, depth
            if first == upstream.origin.host != upstream.prefix.partition("/")[0]:
                registry = f"{upstream.origin.host}/{upstream.path}".rstrip("/").split("/")
                yield upstream, len(registry) if list(components[: len(registry)]) == registry else 1
            elif first in DOCKER_HUB_HOSTS and upstream.is_hub:
                yield upstream, 1
        nearest = difflib.get_close_matches(first, [upstream.prefix for upstream in self.upstreams], 1, 0.7)
        yield from ((upstream, 1) for upstream in self.upstreams if upstream.prefix in nearest)
        yield from ((upstream, 0) for upstream in self.upstreams if upstream.default and "." not in first)


def _find_names(upstream: Upstream) -> NamePattern | None:
    """The names of an upstream; None if its registry is not valid."""
    try:
        return upstream.names
    except ValueError:
        return None


def _list(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - MAX_SHOWN} more" if len(known) > MAX_SHOWN else ""
    return (", ".join(known[:MAX_SHOWN]) or "none") + more


def _check(key: str, check: Callable[[str], object], text: str) -> Iterator[Error]:
    """Yield an error when `check` raises ValueError."""
    try:
        check(text)
    except ValueError as exc:
        yield key, str(exc)

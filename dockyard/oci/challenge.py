"""Parses WWW-Authenticate headers, and decides which token realms may get credentials.

The headers are untrusted input: the parser never raises and does bounded work, and a realm gets no credentials unless
it belongs to the site of the registry. Otherwise one 401 could send them to any host (CVE-2026-33540).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final
from urllib.parse import SplitResult, urlsplit

import attrs

from dockyard.oci.origin import Origin, bracket, join_host_port

MAX_HEADERS_CHARS: Final = 64 * 1024
MAX_CHALLENGES: Final = 64
MAX_PARAMETERS: Final = 32
MAX_REALM_CHARS: Final = 2048

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SEPARATORS: Final = r"[ \t,]*"
# No two parts of these patterns can match the same text, so they take linear time.
_PARAMETER: Final = re.compile(
    rf"{_SEPARATORS}(?P<name>{_WORD})[ \t]*=[ \t]*"
    rf'(?:"(?P<quoted>[^"\\]*(?:\\.[^"\\]*)*)"|(?P<token>{_WORD})(?=[ \t,]|\Z))',
    re.ASCII | re.DOTALL,
)
# A scheme may be followed by a token68, as in Negotiate. Its value is ignored.
_SCHEME: Final = re.compile(
    rf"{_SEPARATORS}(?P<scheme>{_WORD})(?=[ \t,]|\Z)(?:[ \t]+[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|\Z)))?", re.ASCII
)
_AUTHORITY: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)  # no user, no %
_QUOTED_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)


@attrs.frozen
class Challenge:
    """One challenge. The scheme and the names of the parameters are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all WWW-Authenticate headers of a response, in their order (RFC 9110 section 11.6.1).

    A header is parsed up to the first text in it that is neither a scheme nor a parameter. Of a repeated parameter the
    first counts. Headers beyond 64 KiB, challenges beyond 64, and parameters of one challenge beyond 32 are ignored.
    """
    challenges: list[Challenge] = []
    left = MAX_HEADERS_CHARS
    for header in headers:
        left -= len(header)
        if left < 0:
            break  # not truncated, because half a realm is a different realm
        _parse_header(header, challenges)
    return tuple(challenges)


def usable_challenges(challenges: Iterable[Challenge]) -> list[Challenge]:
    """Return the challenges that can be satisfied, the preferred ones first: Bearer with a realm, then Basic."""
    usable = [challenge for challenge in challenges if challenge.scheme == "basic" or _is_usable_bearer(challenge)]
    return sorted(usable, key=lambda challenge: challenge.scheme != "bearer")


def is_realm_trusted(realm: str, registry_origin: Origin, trusted_hosts: Collection[str] = ()) -> bool:
    """Return whether credentials for this registry may be sent to this realm.

    The realm must be an https URL, or http if the registry itself is reached by http. Its host must be the registry's,
    or listed in `trusted_hosts` (`host` or `host:port`), or in the registry's registrable domain. The address that it
    resolves to is checked when the connection is made.
    """
    split = _split_realm(realm)
    if split is None or (split.scheme != "https" and registry_origin.scheme != "http"):
        return False
    host, port = split.hostname or "", split.port or (443 if split.scheme == "https" else 80)
    if not {entry.lower() for entry in trusted_hosts}.isdisjoint({host, bracket(host), join_host_port(host, port)}):
        return True
    return registrable_domain(host) == registrable_domain(_strip_brackets(registry_origin.host))


# Second-level labels of country suffixes: co.uk, com.au, or.jp. The public suffix list has thousands of entries and
# changes weekly; these labels cover nearly all country suffixes. A label too many costs an operator a line in
# `trusted_hosts`; a label too few would treat unrelated domains under one suffix as one site.
_COUNTRY_SECOND_LABELS: Final = frozenset(
    {"ac", "co", "com", "edu", "gen", "go", "gob", "gouv", "gov", "govt", "id", "ltd", "me", "mil", "ne", "net"}
    | {"nhs", "nom", "or", "org", "plc", "sch"}
)
# Domains of hosting services, whose customers get a subdomain: each host there is a site of its own.
_SHARED_DOMAINS: Final = (
    "amazonaws.com",
    "amazonaws.com.cn",
    "azurecontainerapps.io",
    "azurecr.cn",
    "azurecr.io",
    "azurewebsites.net",
    "cloudapp.azure.com",
    "cloudfront.net",
    "fly.dev",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "netlify.app",
    "ngrok.io",
    "on.aws",
    "onrender.com",
    "pages.dev",
    "run.app",
    "vercel.app",
    "workers.dev",
)


def registrable_domain(host: str) -> str:
    """Return the registrable part of a host name: `docker.io` for `auth.docker.io`.

    It is the last two labels, or three below a suffix such as co.uk. Addresses, single labels and hosts of shared
    domains are returned whole, so that each is a site of its own.
    """
    labels = host.split(".")
    is_shared = any(host == domain or host.endswith(f".{domain}") for domain in _SHARED_DOMAINS)
    if is_shared or not _is_domain_name(host):
        return host
    is_country_suffix = len(labels[-1]) == 2 and labels[-2] in _COUNTRY_SECOND_LABELS
    return ".".join(labels[-3:] if is_country_suffix else labels[-2:])


def _parse_header(header: str, challenges: list[Challenge]) -> None:
    parameters: dict[str, str] | None = None
    position = 0
    while True:
        if parameters is not None and (match := _PARAMETER.match(header, position)):
            if len(parameters) < MAX_PARAMETERS:
                value = match["token"] if match["quoted"] is None else _QUOTED_PAIR.sub(r"\1", match["quoted"])
                parameters.setdefault(match["name"].lower(), value)
        elif (match := _SCHEME.match(header, position)) and len(challenges) < MAX_CHALLENGES:
            parameters = {}
            challenges.append(Challenge(match["scheme"].lower(), parameters))
        else:
            return
        position = match.end()


def _is_usable_bearer(challenge: Challenge) -> bool:
    return challenge.scheme == "bearer" and bool(challenge.parameters.get("realm"))


def _split_realm(realm: str) -> SplitResult | None:
    """Split an http or https URL that all URL parsers read alike; None for any other text."""
    # urlsplit() drops tabs and line breaks, and parsers disagree about backslashes.
    if len(realm) > MAX_REALM_CHARS or not re.fullmatch(r"[!-~]+", realm) or "\\" in realm:
        return None
    try:
        split = urlsplit(realm)
        is_port_valid = split.port != 0  # .port raises ValueError unless it is a number up to 65535
    except ValueError:
        return None
    is_usable = split.scheme in {"http", "https"} and is_port_valid and _AUTHORITY.fullmatch(split.netloc)
    return split if is_usable else None


def _strip_brackets(host: str) -> str:
    return host.lower().removeprefix("[").removesuffix("]")


def _is_domain_name(host: str) -> bool:
    """Return whether this is a name of at least two labels: not an address in any notation, not below localhost."""
    labels = host.split(".")
    if len(labels) < 2 or not all(labels) or labels[-1] == "localhost" or ":" in host:
        return False
    # Resolvers take 127.1, 0x7f.1 and 2130706433 as addresses. No top-level domain begins with a digit.
    return not labels[-1][0].isdigit()

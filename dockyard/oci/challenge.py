"""WWW-Authenticate headers, and which token realms to believe.

Both are written by the upstream, or by whoever answers in its place. So the parser never raises and does bounded work,
and a realm gets no credentials unless it belongs to the registry's own site: otherwise a single 401 could send them
anywhere (CVE-2026-33540).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final, Protocol
from urllib.parse import SplitResult, urlsplit

import attrs

MAX_HEADERS_CHARS: Final = 64 * 1024
MAX_CHALLENGES: Final = 64
MAX_PARAMETERS: Final = 32
MAX_REALM_CHARS: Final = 2048

_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SEPARATORS: Final = re.compile(r"[ \t,]*")
# No two parts of these patterns can match the same text, so they take linear time.
_PARAMETER: Final = re.compile(
    rf'(?P<name>{_WORD})[ \t]*=[ \t]*(?:"(?P<quoted>[^"\\]*(?:\\.[^"\\]*)*)"|(?P<token>{_WORD})(?=[ \t,]|\Z))',
    re.ASCII | re.DOTALL,
)
# A scheme may be followed by a token68, such as the Basic and Negotiate schemes use; nothing here needs its value.
_SCHEME: Final = re.compile(
    rf"(?P<scheme>{_WORD})(?=[ \t,]|\Z)(?:[ \t]+[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|\Z)))?", re.ASCII
)
_AUTHORITY: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)  # no user, no %
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


@attrs.frozen
class Challenge:
    """One challenge. The scheme and the names of the parameters are in lower case."""

    scheme: str
    parameters: Mapping[str, str]


class Origin(Protocol):
    """Where a registry listens."""

    @property
    def scheme(self) -> str: ...

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...


def parse_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Return the challenges of all WWW-Authenticate headers of a response, in their order (RFC 9110 section 11.6.1).

    A header is read up to the first thing in it that is neither a scheme nor a parameter. Of a parameter that comes
    twice the first counts. What is beyond 64 KiB, 64 challenges, or 32 parameters of one is passed over.
    """
    challenges: list[Challenge] = []
    left = MAX_HEADERS_CHARS
    for header in headers:
        left -= len(header)
        if left < 0:
            break  # not cut: half a realm is another realm
        _read_header(header, challenges)
    return tuple(challenges)


def pick_challenge(challenges: Iterable[Challenge]) -> Challenge | None:
    """Return the challenge to answer: Bearer if it says where tokens are, else Basic, else None."""
    usable = [challenge for challenge in challenges if challenge.scheme == "basic" or _is_usable_bearer(challenge)]
    return min(usable, key=lambda challenge: challenge.scheme != "bearer", default=None)


def is_realm_trusted(realm: str, registry_origin: Origin, trusted_hosts: Collection[str] = ()) -> bool:
    """Tell whether credentials for this registry may be sent to this realm.

    The realm is an https URL; http only where the registry itself is asked by http. It is on the registry's host, or
    listed in `trusted_hosts` (`host`, or `host:port`), or has a name in the registry's registrable domain. What it
    resolves to is checked where the connection is made.
    """
    split = _split_realm(realm)
    if split is None or (split.scheme != "https" and registry_origin.scheme != "http"):
        return False
    host, port = split.hostname or "", split.port or (443 if split.scheme == "https" else 80)
    written = f"[{host}]" if ":" in host else host
    if not {entry.lower() for entry in trusted_hosts}.isdisjoint({host, written, f"{written}:{port}"}):
        return True
    return registrable_domain(host) == registrable_domain(_bare(registry_origin.host))


# Second labels under which countries sell names: co.uk, com.au, or.jp. The public suffix list has thousands of entries
# and changes weekly; this is what nearly all of them for countries look like. One label too many costs a line in
# `trusted_hosts`, one too few would make strangers under one suffix trust each other.
_COUNTRY_SECOND_LABELS: Final = frozenset(
    {"ac", "co", "com", "edu", "gen", "go", "gob", "gouv", "gov", "govt", "id", "ltd", "me", "mil", "ne", "net"}
    | {"nhs", "nom", "or", "org", "plc", "sch"}
)
# Domains under which anybody gets a host: there each host is a site of its own.
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
    """Return the part of a host name that somebody registered: `docker.io` for `auth.docker.io`.

    These are the last two labels, or three below a suffix such as co.uk. Addresses, single labels and hosts of shared
    domains are returned whole: they are related to themselves only.
    """
    labels = host.split(".")
    is_shared = any(host == domain or host.endswith(f".{domain}") for domain in _SHARED_DOMAINS)
    if is_shared or not _is_domain_name(host):
        return host
    is_country_suffix = len(labels[-1]) == 2 and labels[-2] in _COUNTRY_SECOND_LABELS
    return ".".join(labels[-3:] if is_country_suffix else labels[-2:])


def _read_header(header: str, challenges: list[Challenge]) -> None:
    parameters: dict[str, str] | None = None
    position = 0
    while True:
        position = _end_of(_SEPARATORS.match(header, position), position)
        if parameters is not None and (match := _PARAMETER.match(header, position)):
            if len(parameters) < MAX_PARAMETERS:
                value = match["token"] if match["quoted"] is None else _ESCAPED.sub(r"\1", match["quoted"])
                parameters.setdefault(match["name"].lower(), value)
        elif (match := _SCHEME.match(header, position)) and len(challenges) < MAX_CHALLENGES:
            parameters = {}
            challenges.append(Challenge(match["scheme"].lower(), parameters))
        else:
            return
        position = match.end()


def _end_of(match: re.Match[str] | None, position: int) -> int:
    return match.end() if match else position


def _is_usable_bearer(challenge: Challenge) -> bool:
    return challenge.scheme == "bearer" and bool(challenge.parameters.get("realm"))


def _split_realm(realm: str) -> SplitResult | None:
    """Return the parts of an http or https URL that all readers of URLs read alike; None for any other text."""
    # urlsplit() drops tabs and line ends, and readers disagree about backslashes.
    if len(realm) > MAX_REALM_CHARS or not re.fullmatch(r"[!-~]+", realm) or "\\" in realm:
        return None
    try:
        split = urlsplit(realm)
        is_port_fine = split.port != 0  # .port raises when it is not a number up to 65535
    except ValueError:
        return None
    is_usable = split.scheme in {"http", "https"} and is_port_fine and _AUTHORITY.fullmatch(split.netloc)
    return split if is_usable else None


def _bare(host: str) -> str:
    return host.lower().removeprefix("[").removesuffix("]")


def _is_domain_name(host: str) -> bool:
    """Tell whether this is a name of at least two labels: no address in any spelling, nothing below localhost."""
    labels = host.split(".")
    if len(labels) < 2 or not all(labels) or labels[-1] == "localhost" or ":" in host:
        return False
    # 127.1, 0x7f.1 and 2130706433 are addresses to a resolver. No top-level domain begins with a digit.
    return not labels[-1][0].isdigit()

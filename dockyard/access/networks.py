"""The address of a client, and the names of the networks that contain it. Pure.

Behind proxies the address is taken from a header, to which each proxy adds the address that it has received the request
from. Only what a trusted proxy has added is believed: the search begins at the end of the header, and ends at the first
address that is not one of a trusted proxy. What a client itself has sent is further left and never read.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from dockyard.config.hosts import parse_network
from dockyard.config.settings import AccessSettings
from dockyard.config.types import ProxyHeader

Address = IPv4Address | IPv6Address
IPNetworks = Sequence[IPv4Network | IPv6Network]

UNKNOWN_ADDRESS = IPv6Address("::")
MAX_HOPS = 64
MAX_CACHED_ADDRESSES = 4096

# RFC 7239 section 6. An IPv6 address is in brackets there; in X-Forwarded-For it is often not.
_FORWARDED_NODE = re.compile(
    r"(?:([0-9.]{7,15})|\[([0-9A-Fa-f:.]{2,45})\])(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]{1,64}))?", re.ASCII
)
_PLAIN_NODE = re.compile(
    r"(?:([0-9.]{7,15})(?::[0-9]{1,5})?|\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9A-Fa-f:.]{2,45}))", re.ASCII
)
# RFC 7239 section 4: pairs with semicolons between them, without spaces around the equals sign.
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  what RFC 9110 calls a token
_QUOTED = r'"(?:[^"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t\x20-\x7e\x80-\xff])*"'
_PAIR = re.compile(rf"[ \t]*(?:({_TOKEN})=({_TOKEN}|{_QUOTED}))?[ \t]*(?:;|\Z)", re.ASCII)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


class _Search(NamedTuple):
    """What was found: the address of the client, and the hops that were read, whose last one describes the client."""

    address: Address
    hops: Sequence[str]


class Forwarded(NamedTuple):
    """The scheme and the host of a request as the client has sent it, as far as trusted proxies say; else empty."""

    scheme: str = ""
    host: str = ""


def client_address(
    peer: str, headers: Sequence[tuple[bytes, bytes]], trusted: IPNetworks, header: ProxyHeader
) -> Address:
    """Return the address of the client: the right-most one in `header` that is not that of a trusted proxy.

    `peer` is the address of the connection. If it is not in `trusted`, or the header is missing, it is the result. A
    hop that is malformed, `unknown` or obfuscated ends the search at the proxy that has added it. IPv4 addresses that
    are written as IPv6 (RFC 4291 section 2.5.5.2) are returned as IPv4. A peer without an address, such as a unix
    socket, is UNKNOWN_ADDRESS.
    """
    return _search(peer, headers, trusted, header).address


def forwarded_for_client(
    peer: str, headers: Sequence[tuple[bytes, bytes]], trusted: IPNetworks, header: ProxyHeader
) -> Forwarded:
    """Return what the trusted proxy that is nearest to the client says about the request: nothing without one.

    It is in the same element of Forwarded as the address of the client; else in X-Forwarded-Proto and X-Forwarded-Host,
    to which each proxy may add, as to X-Forwarded-For, or which only the first one sets. A value is not verified.
    """
    if not trusted or not _is_within(_parse_peer(peer), trusted):
        return Forwarded()
    hops = _search(peer, headers, trusted, header).hops
    if header == "forwarded":
        pairs = _find_pairs(hops[-1]) if hops else None
        return Forwarded(pairs.get("proto", ""), pairs.get("host", "")) if pairs else Forwarded()
    found = []
    for name in ("x-forwarded-proto", "x-forwarded-host"):
        values = [value for line in reversed(_find_lines(headers, name)) for value in _split_plain(line)]
        found.append(values[min(max(len(hops), 1), len(values)) - 1] if values else "")
    return Forwarded(*found)


def _search(peer: str, headers: Sequence[tuple[bytes, bytes]], trusted: IPNetworks, header: ProxyHeader) -> _Search:
    found = _parse_peer(peer)
    hops: list[str] = []
    if not trusted or not _is_within(found, trusted):
        return _Search(found, hops)
    split, parse = (_split_elements, _find_forwarded) if header == "forwarded" else (_split_plain, _find_plain)
    for hop in (hop for line in reversed(_find_lines(headers, header)) for hop in split(line)):
        if len(hops) == MAX_HOPS:
            break
        hops.append(hop)
        address = parse(hop)
        if address is None:
            break
        found = address
        if not _is_within(found, trusted):
            break
    return _Search(found, hops)


def _find_lines(headers: Sequence[tuple[bytes, bytes]], name: str) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key.decode("latin-1").lower() == name]


def parse_networks(texts: Sequence[str]) -> IPNetworks:
    """Parse addresses and networks. Raises ValueError."""
    return tuple(parse_network(text) for text in texts)


class Networks:
    """The networks that have a name."""

    def __init__(self, settings: AccessSettings) -> None:
        self._networks = [(network.name, parse_networks(network.addresses)) for network in settings.networks]
        self.names_of = lru_cache(MAX_CACHED_ADDRESSES)(self._find_names)

    def _find_names(self, address: Address) -> frozenset[str]:
        """Return the names of all networks that contain an address."""
        return frozenset(name for name, networks in self._networks if _is_within(address, networks))


def _is_within(address: Address, networks: IPNetworks) -> bool:
    return any(address in network for network in networks)


@lru_cache(MAX_CACHED_ADDRESSES)
def _parse_peer(text: str) -> Address:
    return _parse_address(text.partition("%")[0]) or UNKNOWN_ADDRESS


def _parse_address(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _split_plain(line: str) -> Iterator[str]:
    """Yield the elements of a line of X-Forwarded-For, the last one first, without empty ones."""
    return (hop for part in reversed(line.split(",")) if (hop := part.strip(" \t")))


def _find_plain(hop: str) -> Address | None:
    match = _PLAIN_NODE.fullmatch(hop)
    return _parse_address(next(filter(None, match.groups()))) if match else None


def _split_elements(line: str) -> Iterator[str]:
    """Yield the elements of a line of Forwarded, the last one first, without empty ones.

    The line is read from its end, so that a quote which a client has left open does not hide what proxies have added.
    """
    end = len(line)
    while end > 0:
        start = _find_start(line, end)
        if element := line[start:end].strip(" \t"):
            yield element
        end = start - 1


def _find_start(line: str, end: int) -> int:
    """Where the element begins that ends before `end`: after a comma that is not within a quoted string."""
    is_quoted = False
    for place in range(end - 1, -1, -1):
        char = line[place]
        if char == '"' and not _is_escaped(line, place):
            is_quoted = not is_quoted
        elif char == "," and not is_quoted:
            return place + 1
    return 0


def _is_escaped(line: str, place: int) -> bool:
    """Whether an odd number of backslashes stands before this place."""
    first = place
    while first and line[first - 1] == "\\":
        first -= 1
    return (place - first) % 2 == 1


def _find_forwarded(element: str) -> Address | None:
    """Return the address in an element of Forwarded; None without one, and if the element is malformed."""
    node = _FORWARDED_NODE.fullmatch((_find_pairs(element) or {}).get("for", ""))
    return _parse_address(node[1] or node[2]) if node else None


def _find_pairs(element: str) -> dict[str, str] | None:
    """Return the parameters of an element of Forwarded, with their names in lower case; None if it is malformed."""
    pairs: dict[str, str] = {}
    place = 0
    while place < len(element):
        match = _PAIR.match(element, place)
        if match is None or (match[1] and match[1].lower() in pairs):
            return None
        if match[1]:
            value = match[2]
            pairs[match[1].lower()] = _ESCAPED.sub(r"\1", value[1:-1]) if value.startswith('"') else value
        place = match.end()
    return pairs

"""Which addresses an upstream may send us to.

A registry names other places: where a blob is, where tokens are made. They may lie anywhere on the internet, but not
inside: otherwise a registry could make Dockyard fetch from its own host, its cloud's metadata service or its
neighbours. The check is made on the address that is connected to, never on the name. The one exception is a registry
that is inside itself; it may point to where it is.

The lists are our own: `ipaddress.is_private` differs between Python releases.
"""

from enum import Enum, auto
from functools import lru_cache
from ipaddress import IPv4Address, ip_address, ip_network
from socket import inet_aton, inet_ntoa

from dockyard.config.hosts import is_loopback


class Zone(Enum):
    """Where an address lies, as far as we care."""

    PUBLIC = auto()
    PRIVATE = auto()
    LOOPBACK = auto()
    NEVER = auto()  # link-local (metadata services), multicast, other addresses in disguise, reserved


_V4 = tuple(
    (ip_network(network), zone)
    for network, zone in (
        ("0.0.0.0/8", Zone.NEVER),
        ("10.0.0.0/8", Zone.PRIVATE),
        ("100.100.100.200/32", Zone.NEVER),  # a metadata service
        ("100.64.0.0/10", Zone.PRIVATE),  # carrier-grade NAT, also VPNs
        ("127.0.0.0/8", Zone.LOOPBACK),
        ("169.254.0.0/16", Zone.NEVER),  # link-local; 169.254.169.254
        ("172.16.0.0/12", Zone.PRIVATE),
        ("192.0.0.0/24", Zone.NEVER),
        ("192.0.2.0/24", Zone.NEVER),
        ("192.88.99.0/24", Zone.NEVER),
        ("192.168.0.0/16", Zone.PRIVATE),
        ("198.18.0.0/15", Zone.PRIVATE),
        ("198.51.100.0/24", Zone.NEVER),
        ("203.0.113.0/24", Zone.NEVER),
        ("224.0.0.0/3", Zone.NEVER),  # multicast, reserved, broadcast
    )
)

_V6 = tuple(
    (ip_network(network), zone)
    for network, zone in (
        ("::1/128", Zone.LOOPBACK),
        ("2001::/23", Zone.NEVER),  # Teredo and other protocol assignments
        ("2001:db8::/32", Zone.NEVER),
        ("2002::/16", Zone.NEVER),  # 6to4: an IPv4 address in disguise
        ("3fff::/20", Zone.NEVER),
        ("2000::/3", Zone.PUBLIC),
        ("fd00:ec2::/32", Zone.NEVER),  # a metadata service
        ("fc00::/7", Zone.PRIVATE),
    )
)

_NAT64 = ip_network("64:ff9b::/96")


@lru_cache(maxsize=1024)
def zone_of(address: str) -> Zone:
    """The zone of a numeric address. What is in no list is NEVER for IPv6 and PUBLIC for IPv4."""
    if "%" in address:
        return Zone.NEVER
    parsed = ip_address(address)
    if isinstance(parsed, IPv4Address):
        return next((zone for network, zone in _V4 if parsed in network), Zone.PUBLIC)
    if parsed in _NAT64:
        # On IPv6-only networks the resolver makes these for public hosts; what counts is the address inside.
        inner = zone_of(str(IPv4Address(parsed.packed[-4:])))
        return inner if inner is Zone.PUBLIC else Zone.NEVER
    return next((zone for network, zone in _V6 if parsed in network), Zone.NEVER)


def is_reachable(zone: Zone, home: Zone) -> bool:
    """May a registry in zone `home` send us to `zone`?"""
    match zone:
        case Zone.PUBLIC:
            return True
        case Zone.PRIVATE:
            return home in (Zone.PRIVATE, Zone.LOOPBACK)
        case Zone.LOOPBACK:
            return home is Zone.LOOPBACK
        case Zone.NEVER:
            return False


def find_spelt_zone(host: str) -> Zone | None:
    """The zone of a host that is an address, in any spelling that a C library understands (`127.1`, `0x7f000001`)."""
    host = host.rstrip(".")
    if is_loopback(host):
        return Zone.LOOPBACK
    try:
        return zone_of(str(ip_address(host)))
    except ValueError:
        pass
    try:
        return zone_of(inet_ntoa(inet_aton(host)))
    except (OSError, UnicodeError):
        return None

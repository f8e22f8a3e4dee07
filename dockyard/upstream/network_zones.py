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


class NetworkZone(Enum):
    """Where an address lies, as far as we care."""

    PUBLIC = auto()
    PRIVATE = auto()
    LOOPBACK = auto()
    FORBIDDEN = auto()  # link-local (metadata services), multicast, other addresses in disguise, reserved


_V4 = tuple(
    (ip_network(network), zone)
    for network, zone in (
        ("0.0.0.0/8", NetworkZone.FORBIDDEN),
        ("10.0.0.0/8", NetworkZone.PRIVATE),
        ("100.100.100.200/32", NetworkZone.FORBIDDEN),  # a metadata service
        ("100.64.0.0/10", NetworkZone.PRIVATE),  # carrier-grade NAT, also VPNs
        ("127.0.0.0/8", NetworkZone.LOOPBACK),
        ("169.254.0.0/16", NetworkZone.FORBIDDEN),  # link-local; 169.254.169.254
        ("172.16.0.0/12", NetworkZone.PRIVATE),
        ("192.0.0.0/24", NetworkZone.FORBIDDEN),
        ("192.0.2.0/24", NetworkZone.FORBIDDEN),
        ("192.88.99.0/24", NetworkZone.FORBIDDEN),
        ("192.168.0.0/16", NetworkZone.PRIVATE),
        ("198.18.0.0/15", NetworkZone.PRIVATE),
        ("198.51.100.0/24", NetworkZone.FORBIDDEN),
        ("203.0.113.0/24", NetworkZone.FORBIDDEN),
        ("224.0.0.0/3", NetworkZone.FORBIDDEN),  # multicast, reserved, broadcast
    )
)

_V6 = tuple(
    (ip_network(network), zone)
    for network, zone in (
        ("::1/128", NetworkZone.LOOPBACK),
        ("2001::/23", NetworkZone.FORBIDDEN),  # Teredo and other protocol assignments
        ("2001:db8::/32", NetworkZone.FORBIDDEN),
        ("2002::/16", NetworkZone.FORBIDDEN),  # 6to4: an IPv4 address in disguise
        ("3fff::/20", NetworkZone.FORBIDDEN),
        ("2000::/3", NetworkZone.PUBLIC),
        ("fd00:ec2::/32", NetworkZone.FORBIDDEN),  # a metadata service
        ("fc00::/7", NetworkZone.PRIVATE),
    )
)

_NAT64 = ip_network("64:ff9b::/96")


@lru_cache(maxsize=1024)
def find_zone(address: str) -> NetworkZone:
    """The zone of a numeric address. What is in no list is NEVER for IPv6 and PUBLIC for IPv4."""
    if "%" in address:
        return NetworkZone.FORBIDDEN
    parsed = ip_address(address)
    if isinstance(parsed, IPv4Address):
        return next((zone for network, zone in _V4 if parsed in network), NetworkZone.PUBLIC)
    if parsed in _NAT64:
        # On IPv6-only networks the resolver makes these for public hosts; what counts is the address inside.
        inner = find_zone(str(IPv4Address(parsed.packed[-4:])))
        return inner if inner is NetworkZone.PUBLIC else NetworkZone.FORBIDDEN
    return next((zone for network, zone in _V6 if parsed in network), NetworkZone.FORBIDDEN)


def is_zone_allowed(zone: NetworkZone, registry_zone: NetworkZone) -> bool:
    """May a registry in zone `registry_zone` send us to `zone`?"""
    match zone:
        case NetworkZone.PUBLIC:
            return True
        case NetworkZone.PRIVATE:
            return registry_zone in (NetworkZone.PRIVATE, NetworkZone.LOOPBACK)
        case NetworkZone.LOOPBACK:
            return registry_zone is NetworkZone.LOOPBACK
        case NetworkZone.FORBIDDEN:
            return False


def find_literal_zone(host: str) -> NetworkZone | None:
    """The zone of a host that is an address, in any spelling that a C library understands (`127.1`, `0x7f000001`)."""
    host = host.rstrip(".")
    if is_loopback(host):
        return NetworkZone.LOOPBACK
    try:
        return find_zone(str(ip_address(host)))
    except ValueError:
        pass
    try:
        return find_zone(inet_ntoa(inet_aton(host)))
    except (OSError, UnicodeError):
        return None

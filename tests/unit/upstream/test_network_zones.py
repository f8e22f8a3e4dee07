"""The addresses that an upstream may redirect to."""

import pytest

from dockyard.upstream.network_zones import NetworkZone, find_literal_zone, find_zone, is_zone_allowed


@pytest.mark.parametrize(
    ("address", "zone"),
    [
        ("8.8.8.8", NetworkZone.PUBLIC),
        ("172.15.255.255", NetworkZone.PUBLIC),
        ("172.32.0.0", NetworkZone.PUBLIC),
        ("100.63.255.255", NetworkZone.PUBLIC),
        ("10.1.2.3", NetworkZone.PRIVATE),
        ("172.16.0.1", NetworkZone.PRIVATE),
        ("192.168.0.1", NetworkZone.PRIVATE),
        ("100.64.0.1", NetworkZone.PRIVATE),
        ("127.0.0.1", NetworkZone.LOOPBACK),
        ("127.9.9.9", NetworkZone.LOOPBACK),
        ("0.0.0.0", NetworkZone.FORBIDDEN),  # noqa: S104  not bound to
        ("169.254.169.254", NetworkZone.FORBIDDEN),
        ("100.100.100.200", NetworkZone.FORBIDDEN),
        ("224.0.0.1", NetworkZone.FORBIDDEN),
        ("255.255.255.255", NetworkZone.FORBIDDEN),
        ("2606:4700::1", NetworkZone.PUBLIC),
        ("fc00::1", NetworkZone.PRIVATE),
        ("fd12::1", NetworkZone.PRIVATE),
        ("::1", NetworkZone.LOOPBACK),
        ("::", NetworkZone.FORBIDDEN),
        ("fd00:ec2::254", NetworkZone.FORBIDDEN),
        ("fe80::1", NetworkZone.FORBIDDEN),
        ("fe80::1%eth0", NetworkZone.FORBIDDEN),
        ("fec0::1", NetworkZone.FORBIDDEN),
        ("ff02::1", NetworkZone.FORBIDDEN),
        ("::ffff:127.0.0.1", NetworkZone.FORBIDDEN),
        ("::ffff:8.8.8.8", NetworkZone.FORBIDDEN),
        ("::127.0.0.1", NetworkZone.FORBIDDEN),
        ("2002:7f00:1::", NetworkZone.FORBIDDEN),
        ("2001:0:53aa::1", NetworkZone.FORBIDDEN),
        ("64:ff9b::7f00:1", NetworkZone.FORBIDDEN),
        ("64:ff9b::a9fe:a9fe", NetworkZone.FORBIDDEN),
        ("64:ff9b::808:808", NetworkZone.PUBLIC),
        ("64:ff9b:1::808:808", NetworkZone.FORBIDDEN),
        ("100::1", NetworkZone.FORBIDDEN),
    ],
)
def test_each_address_lies_in_its_zone(address: str, zone: NetworkZone) -> None:
    """Private, loopback and disguised addresses are distinguished from public ones, in both families."""
    assert find_zone(address) is zone


@pytest.mark.parametrize(
    ("registry_zone", "allowed"),
    [
        (NetworkZone.PUBLIC, {NetworkZone.PUBLIC}),
        (NetworkZone.PRIVATE, {NetworkZone.PUBLIC, NetworkZone.PRIVATE}),
        (NetworkZone.LOOPBACK, {NetworkZone.PUBLIC, NetworkZone.PRIVATE, NetworkZone.LOOPBACK}),
    ],
)
def test_a_registry_may_not_redirect_to_a_more_private_zone(
    registry_zone: NetworkZone, allowed: set[NetworkZone]
) -> None:
    """A public one not to private addresses, a private one not to loopback, none to metadata services."""
    assert {zone for zone in NetworkZone if is_zone_allowed(zone, registry_zone)} == allowed


@pytest.mark.parametrize(
    ("host", "zone"),
    [
        ("127.0.0.1", NetworkZone.LOOPBACK),
        ("127.1", NetworkZone.LOOPBACK),
        ("2130706433", NetworkZone.LOOPBACK),
        ("0x7f000001", NetworkZone.LOOPBACK),
        ("0177.0.0.1", NetworkZone.LOOPBACK),
        ("::1", NetworkZone.LOOPBACK),
        ("localhost", NetworkZone.LOOPBACK),
        ("localhost.", NetworkZone.LOOPBACK),
        ("0xa9fea9fe", NetworkZone.FORBIDDEN),
        ("10.1", NetworkZone.PRIVATE),
        ("8.8.8.8", NetworkZone.PUBLIC),
        ("example.com", None),
        ("1.example.com", None),
    ],
)
def test_a_host_that_spells_an_address_is_recognised(host: str, zone: NetworkZone | None) -> None:
    """In every notation that the C library accepts."""
    assert find_literal_zone(host) is zone

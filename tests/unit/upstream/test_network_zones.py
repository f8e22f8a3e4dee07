"""Which addresses an upstream may send us to."""

import pytest

from dockyard.upstream.network_zones import Zone, find_spelt_zone, is_reachable, zone_of


@pytest.mark.parametrize(
    ("address", "zone"),
    [
        ("8.8.8.8", Zone.PUBLIC),
        ("172.15.255.255", Zone.PUBLIC),
        ("172.32.0.0", Zone.PUBLIC),
        ("100.63.255.255", Zone.PUBLIC),
        ("10.1.2.3", Zone.PRIVATE),
        ("172.16.0.1", Zone.PRIVATE),
        ("192.168.0.1", Zone.PRIVATE),
        ("100.64.0.1", Zone.PRIVATE),
        ("127.0.0.1", Zone.LOOPBACK),
        ("127.9.9.9", Zone.LOOPBACK),
        ("0.0.0.0", Zone.NEVER),  # noqa: S104  not bound to
        ("169.254.169.254", Zone.NEVER),
        ("100.100.100.200", Zone.NEVER),
        ("224.0.0.1", Zone.NEVER),
        ("255.255.255.255", Zone.NEVER),
        ("2606:4700::1", Zone.PUBLIC),
        ("fc00::1", Zone.PRIVATE),
        ("fd12::1", Zone.PRIVATE),
        ("::1", Zone.LOOPBACK),
        ("::", Zone.NEVER),
        ("fd00:ec2::254", Zone.NEVER),
        ("fe80::1", Zone.NEVER),
        ("fe80::1%eth0", Zone.NEVER),
        ("fec0::1", Zone.NEVER),
        ("ff02::1", Zone.NEVER),
        ("::ffff:127.0.0.1", Zone.NEVER),
        ("::ffff:8.8.8.8", Zone.NEVER),
        ("::127.0.0.1", Zone.NEVER),
        ("2002:7f00:1::", Zone.NEVER),
        ("2001:0:53aa::1", Zone.NEVER),
        ("64:ff9b::7f00:1", Zone.NEVER),
        ("64:ff9b::a9fe:a9fe", Zone.NEVER),
        ("64:ff9b::808:808", Zone.PUBLIC),
        ("64:ff9b:1::808:808", Zone.NEVER),
        ("100::1", Zone.NEVER),
    ],
)
def test_each_address_lies_in_its_zone(address: str, zone: Zone) -> None:
    """Private, loopback and disguised addresses are told from public ones, in both families."""
    assert zone_of(address) is zone


@pytest.mark.parametrize(
    ("home", "allowed"),
    [
        (Zone.PUBLIC, {Zone.PUBLIC}),
        (Zone.PRIVATE, {Zone.PUBLIC, Zone.PRIVATE}),
        (Zone.LOOPBACK, {Zone.PUBLIC, Zone.PRIVATE, Zone.LOOPBACK}),
    ],
)
def test_a_registry_points_no_further_inside_than_it_is(home: Zone, allowed: set[Zone]) -> None:
    """A public registry reaches nothing private, a private one not the machine itself, nobody metadata services."""
    assert {zone for zone in Zone if is_reachable(zone, home)} == allowed


@pytest.mark.parametrize(
    ("host", "zone"),
    [
        ("127.0.0.1", Zone.LOOPBACK),
        ("127.1", Zone.LOOPBACK),
        ("2130706433", Zone.LOOPBACK),
        ("0x7f000001", Zone.LOOPBACK),
        ("0177.0.0.1", Zone.LOOPBACK),
        ("::1", Zone.LOOPBACK),
        ("localhost", Zone.LOOPBACK),
        ("localhost.", Zone.LOOPBACK),
        ("0xa9fea9fe", Zone.NEVER),
        ("10.1", Zone.PRIVATE),
        ("8.8.8.8", Zone.PUBLIC),
        ("example.com", None),
        ("1.example.com", None),
    ],
)
def test_a_host_that_spells_an_address_is_recognised(host: str, zone: Zone | None) -> None:
    """In every spelling that a C library would connect to."""
    assert find_spelt_zone(host) is zone

"""The address of a client, from the connection or from the header of a trusted proxy."""

from ipaddress import ip_address

import pytest

from dockyard.access.networks import MAX_HOPS, UNKNOWN_ADDRESS, Networks, client_address, parse_networks
from dockyard.config.settings import AccessSettings, Network
from dockyard.config.types import ProxyHeader

PROXY = "10.0.0.1"
TRUSTED = parse_networks(("10.0.0.0/8", "fd00::/8"))


def find(*lines: str, header: ProxyHeader = "x-forwarded-for", peer: str = PROXY) -> str:
    """The address for the lines of one header."""
    return str(client_address(peer, [(header.encode(), line.encode("latin-1")) for line in lines], TRUSTED, header))


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:c000:207", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", "::"),
        ("unix:", "::"),
        ("/run/dockyard.sock", "::"),
    ],
)
def test_the_address_of_the_connection(peer: str, address: str) -> None:
    """Without a trusted proxy it is the address of the connection, whatever the headers are."""
    headers = [(b"x-forwarded-for", b"203.0.113.9"), (b"forwarded", b"for=203.0.113.9")]
    for header in ("x-forwarded-for", "forwarded"):
        assert str(client_address(peer, headers, TRUSTED, header)) == address  # type: ignore[arg-type]
        assert str(client_address(peer, headers, (), header)) == address  # type: ignore[arg-type]


@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1", "fd00::1"])
def test_a_trusted_proxy_in_each_form_of_its_address(peer: str) -> None:
    """A proxy is recognized in each form of its address."""
    assert find("203.0.113.9", peer=peer) == "203.0.113.9"


def test_a_network_in_the_form_of_ipv6() -> None:
    """IPv4 networks that are written as IPv6 mean the same."""
    networks = parse_networks(("::ffff:10.0.0.0/104",))
    assert str(client_address("10.9.9.9", [(b"x-forwarded-for", b"192.0.2.1")], networks, "x-forwarded-for")) == (
        "192.0.2.1"
    )


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        (["203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9,10.0.0.2,\t10.1.2.3 "], "203.0.113.9"),
        (["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9", "10.0.0.2"], "203.0.113.9"),
        (["203.0.113.9", "10.0.0.2, 10.0.0.3", ""], "203.0.113.9"),
        (["10.0.0.5, 10.0.0.2"], "10.0.0.5"),
        ([], PROXY),
        ([""], PROXY),
        ([", ,"], PROXY),
        (["203.0.113.9,"], "203.0.113.9"),
        (["203.0.113.9:5000"], "203.0.113.9"),
        (["2001:db8::9"], "2001:db8::9"),
        (["[2001:db8::9]"], "2001:db8::9"),
        (["[2001:db8::9]:443"], "2001:db8::9"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["[::ffff:203.0.113.9]:1"], "203.0.113.9"),
        (["203.0.113.9, ::ffff:10.0.0.2"], "203.0.113.9"),
        (["unknown"], PROXY),
        (["203.0.113.9, unknown"], PROXY),
        (["203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2"),
        (["203.0.113.9, 10.0.0.2, garbage"], PROXY),
        (["203.0.113.9 10.0.0.2"], PROXY),
        (['"203.0.113.9"'], PROXY),
        (["203.0.113.999"], PROXY),
        (["203.0.113.09"], PROXY),
        (["3405803785"], PROXY),
        (["0xcb007109"], PROXY),
        (["203.0.113"], PROXY),
        (["203.0.113.9:x"], PROXY),
        (["203.0.113.9:123456"], PROXY),
        (["203.0.113.0/24"], PROXY),
        (["[203.0.113.9]"], "203.0.113.9"),
        (["[2001:db8::9"], PROXY),
        (["fe80::1%eth0"], PROXY),
        (["20\u0663.0.113.9".encode().decode("latin-1")], PROXY),
        (["203.0.113.9\x00"], PROXY),
        (["localhost"], PROXY),
        (["for=203.0.113.9"], PROXY),
        (["_hidden"], PROXY),
    ],
)
def test_x_forwarded_for(lines: list[str], address: str) -> None:
    """The right-most untrusted hop; what is malformed ends the search."""
    assert find(*lines) == address


@pytest.mark.parametrize(
    ("lines", "address"),
    [
        (["for=203.0.113.9"], "203.0.113.9"),
        (["For=203.0.113.9"], "203.0.113.9"),
        (['for="203.0.113.9"'], "203.0.113.9"),
        (['for="203.0.113.9:47011"'], "203.0.113.9"),
        (['for="203.0.113.9:_port"'], "203.0.113.9"),
        (['for="[2001:db8:cafe::17]"'], "2001:db8:cafe::17"),
        (['for="[2001:db8:cafe::17]:4711"'], "2001:db8:cafe::17"),
        (['for="[::ffff:203.0.113.9]"'], "203.0.113.9"),
        (["for=203.0.113.9;proto=http;by=10.0.0.1"], "203.0.113.9"),
        (["proto=https ; for=203.0.113.9 ; host=a.test"], "203.0.113.9"),
        (["for=203.0.113.9;"], "203.0.113.9"),
        ([";;for=203.0.113.9"], "203.0.113.9"),
        (['by="10.0.0.1:80";for=203.0.113.9'], "203.0.113.9"),
        (['host="a, for=192.0.2.1";for=203.0.113.9'], "203.0.113.9"),
        (['host="a; for=192.0.2.1";for=203.0.113.9'], "203.0.113.9"),
        (['host="a\\", for=192.0.2.1";for=203.0.113.9'], "203.0.113.9"),
        (['for="\\203.0.113.9"'], "203.0.113.9"),
        (["for=198.51.100.1, for=203.0.113.9"], "203.0.113.9"),
        (["for=198.51.100.1,for=203.0.113.9,for=10.0.0.2;by=x"], "203.0.113.9"),
        (["for=198.51.100.1", "for=203.0.113.9"], "203.0.113.9"),
        (["for=203.0.113.9", "for=10.0.0.2"], "203.0.113.9"),
        # What a client has sent before the element of the proxy does not change how that is read.
        (['for="x, for=203.0.113.9'], "203.0.113.9"),
        (['for=10.0.0.9;host=", for=203.0.113.9'], "203.0.113.9"),
        (['for="10.0.0.9\\", for=203.0.113.9'], "203.0.113.9"),
        (['", for="203.0.113.9:80"'], "203.0.113.9"),
        (['for=192.0.2.1;x="\\, for="[2001:db8::9]"'], "2001:db8::9"),
        ([], PROXY),
        ([""], PROXY),
        ([" , "], PROXY),
        (["proto=https"], PROXY),
        (["for=203.0.113.9, proto=https"], PROXY),
        (["for=unknown"], PROXY),
        (["for=203.0.113.9, for=unknown, for=10.0.0.2"], "10.0.0.2"),
        (["for=_hidden"], PROXY),
        (['for="_SEVKISEK"'], PROXY),
        (["for="], PROXY),
        (['for=""'], PROXY),
        (["203.0.113.9"], PROXY),
        (["for = 203.0.113.9"], PROXY),
        (["for=203.0.113.9:80"], PROXY),
        (["for=2001:db8::9"], PROXY),
        (["for=[2001:db8::9]"], PROXY),
        (['for="2001:db8::9"'], PROXY),
        (['for="[2001:db8::9"'], PROXY),
        (['for="203.0.113.9'], PROXY),
        (["for=203.0.113.9;for=192.0.2.1"], PROXY),
        (["for=203.0.113.9;FOR=203.0.113.9"], PROXY),
        (["for=203.0.113.9 for=192.0.2.1"], PROXY),
        (['for=203.0.113.9"x"'], PROXY),
        (['for="203.0.113.9\x00"'], PROXY),
        (["x=1;for=203.0.113.9;="], PROXY),
    ],
)
def test_forwarded(lines: list[str], address: str) -> None:
    """RFC 7239, read from the end; an element that is malformed, unknown or obfuscated ends the search."""
    assert find(*lines, header="forwarded") == address


def test_only_the_configured_header_is_read() -> None:
    """A header that the proxies do not write comes from the client."""
    headers = [(b"forwarded", b"for=198.51.100.1"), (b"X-Forwarded-For", b"203.0.113.9"), (b"x-real-ip", b"192.0.2.1")]
    assert str(client_address(PROXY, headers, TRUSTED, "x-forwarded-for")) == "203.0.113.9"
    assert str(client_address(PROXY, headers, TRUSTED, "forwarded")) == "198.51.100.1"
    assert str(client_address(PROXY, headers[2:], TRUSTED, "forwarded")) == PROXY


def test_the_number_of_hops_has_a_limit() -> None:
    """The search ends at the last proxy that it has looked at."""
    hops = [f"10.0.1.{number}" for number in range(MAX_HOPS + 1)]
    assert find(", ".join(["203.0.113.9", *hops])) == hops[1]
    assert find(", ".join(["203.0.113.9", *hops[:-1]])) == hops[0]
    assert find(", ".join(["203.0.113.9", *hops[1:-1]])) == "203.0.113.9"


def test_a_long_header_is_read_in_linear_time() -> None:
    """The longest header that the server accepts takes no time that matters."""
    for piece in ('"', "\\", '\\"', ",", "a=", ';"'):
        assert find(piece * 30_000, header="forwarded") == PROXY


def test_names_of_networks() -> None:
    """An address has the names of all networks that contain it."""
    networks = Networks(
        AccessSettings(
            networks=(
                Network("office", ("192.0.2.0/24", "2001:db8::/32")),
                Network("build", ("192.0.2.7",)),
                Network("ci", ("::ffff:192.0.2.0/120",)),
                Network("none", ()),
                Network("all-v6", ("::/0",)),
            )
        )
    )
    assert networks.names_of(ip_address("192.0.2.7")) == {"office", "build", "ci"}
    assert networks.names_of(ip_address("192.0.2.8")) == {"office", "ci"}
    assert networks.names_of(ip_address("2001:db8::1")) == {"office", "all-v6"}
    assert networks.names_of(ip_address("198.51.100.1")) == frozenset()
    assert networks.names_of(UNKNOWN_ADDRESS) == {"all-v6"}

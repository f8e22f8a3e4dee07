"""Hosts, endpoints and proxies: errors never repeat a password."""

from collections.abc import Callable

import pytest

from dockyard.config.hosts import check_endpoint, check_proxy, parse_network


@pytest.mark.parametrize("character", ["/", "?", "#"])
@pytest.mark.parametrize("check", [check_endpoint, check_proxy])
@pytest.mark.parametrize("start", ["12", "canary"])
def test_a_password_that_ends_the_host_for_url_parsers(
    check: Callable[[str], object], character: str, start: str
) -> None:
    """What is before the last @ is user and password, also if it looks like a host and a port."""
    with pytest.raises(ValueError, match="user and password") as caught:
        check(f"http://user:{start}{character}canary@host.example:3128")
    assert "user:" not in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_password_in_a_proxy_may_be_encoded() -> None:
    """As its error says."""
    check_proxy("http://user:can%2Fary%40@host.example:3128")


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("10.1.2.3", "10.1.2.3/32"),
        ("fd00::/8", "fd00::/8"),
        ("2001:db8::1", "2001:db8::1/128"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.1.2.3", "10.1.2.3/32"),
        ("::/0", "::/0"),
        ("0.0.0.0/0", "0.0.0.0/0"),
    ],
)
def test_networks(text: str, network: str) -> None:
    """Addresses are networks of one address, and IPv4 is IPv4 in each form."""
    assert str(parse_network(text)) == network


@pytest.mark.parametrize(
    ("text", "hint"),
    [("10.1.2.3/8", "write 10.0.0.0/8"), ("10.0.0.0/33", ""), ("10.0.0", ""), ("", ""), ("proxy.test", "")],
)
def test_what_is_no_network(text: str, hint: str) -> None:
    """The message says what is meant, if that is clear."""
    with pytest.raises(ValueError, match=f"must be an address or a network.*{hint}$"):
        parse_network(text)

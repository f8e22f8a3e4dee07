"""Hosts, endpoints and proxies: errors never repeat a password."""

from collections.abc import Callable

import pytest

from dockyard.config.hosts import check_endpoint, check_proxy


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

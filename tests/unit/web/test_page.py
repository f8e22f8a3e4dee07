"""The page at `/`: the address that it shows, and what is in it."""

import re

import pytest

from dockyard.config.settings import DEFAULT_UPSTREAMS, Auth, Upstream
from dockyard.web.page import UNKNOWN_ADDRESS, find_address, render


@pytest.mark.parametrize(
    ("host", "is_tls", "address"),
    [
        ("localhost:5000", False, "localhost:5000"),
        ("localhost", False, "localhost"),
        ("cache.example", True, "cache.example"),
        ("Cache.Example:8443", True, "cache.example:8443"),
        ("cache", False, "cache:80"),
        ("cache", True, "cache:443"),
        ("cache:5000", False, "cache:5000"),
        ("10.0.0.7", False, "10.0.0.7"),
        ("[::1]:5000", False, "[::1]:5000"),
        ("[::1]", True, "[::1]:443"),
        ("", False, UNKNOWN_ADDRESS),
        ("<script>", False, UNKNOWN_ADDRESS),
        ('a"b', False, UNKNOWN_ADDRESS),
        ("user:pass@cache.example", False, UNKNOWN_ADDRESS),
        ("cache.example:99999", False, UNKNOWN_ADDRESS),
        ("cache.example; rm -rf", False, UNKNOWN_ADDRESS),
        ("a" * 300, False, UNKNOWN_ADDRESS),
    ],
)
def test_the_address_is_what_image_names_begin_with(host: str, is_tls: bool, address: str) -> None:  # noqa: FBT001
    """A name without a dot has a port; a Host header that is no host is not shown."""
    assert find_address(host, is_tls=is_tls) == address


def test_an_address_with_colons_and_dots_is_in_brackets() -> None:
    """Python 3.13 writes an IPv4 address in an IPv6 address with dots, older versions without."""
    address = find_address("[::ffff:10.0.0.7]", is_tls=False)
    assert address.startswith("[::ffff:")
    assert f"docker pull {address}/" in render(address, DEFAULT_UPSTREAMS, is_tls=False)


def test_there_is_a_command_for_each_prefix() -> None:
    """That works as it is for known registries, and with placeholders for others."""
    upstreams = [*DEFAULT_UPSTREAMS, Upstream("internal", "http://secret.internal:5001", Auth("anonymous"))]

    page = render("cache.example", upstreams, is_tls=True)

    assert re.findall(r"<code>(docker pull .*)</code>", page) == [
        "docker pull cache.example/docker.io/library/alpine",
        "docker pull cache.example/ghcr.io/nginx/nginx-prometheus-exporter",
        "docker pull cache.example/internal/NAME:TAG",
    ]
    assert "secret.internal" not in page
    assert "insecure-registries" not in page


@pytest.mark.parametrize(
    ("address", "is_shown"), [("cache.example:5000", True), ("localhost:5000", False), ("127.0.0.1", False)]
)
def test_plain_http_needs_a_setting_of_docker(address: str, is_shown: bool) -> None:  # noqa: FBT001
    """But not on the same machine."""
    page = render(address, DEFAULT_UPSTREAMS, is_tls=False)

    assert ("insecure-registries" in page) == is_shown


def test_everything_is_escaped() -> None:
    """Whatever the settings and the client contain."""
    page = render("cache.example", [Upstream("<b>&", "registry.example", Auth("anonymous"))], is_tls=False)

    assert "docker pull cache.example/&lt;b&gt;&amp;/NAME:TAG" in page
    assert "<b>" not in page

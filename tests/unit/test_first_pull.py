"""The URL of the server and the pull to try can be copied into a shell."""

import pytest

from dockyard.config.settings import DEFAULT_UPSTREAMS, ServerSettings, Upstream
from dockyard.first_pull import describe_address, example_pull, server_url

ALL_IPV4 = "0.0.0.0"  # noqa: S104  nothing listens


@pytest.mark.parametrize(
    ("host", "tls", "url"),
    [
        ("", False, "http://localhost:5000"),
        ("::", False, "http://localhost:5000"),
        (ALL_IPV4, False, "http://localhost:5000"),
        ("", True, "https://machine:5000"),
        ("127.0.0.1", False, "http://127.0.0.1:5000"),
        ("::1", False, "http://[::1]:5000"),
        ("2001:db8::1", True, "https://[2001:db8::1]:5000"),
        ("cache.example", True, "https://cache.example:5000"),
    ],
)
def test_the_url_is_one_that_clients_of_this_machine_can_use(host: str, url: str, *, tls: bool) -> None:
    """All addresses are no address, and IPv6 addresses have brackets."""
    assert server_url(ServerSettings(host=host, tls=tls), "machine") == url


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("", "all addresses, port 80"),
        ("::", "all addresses, port 80"),
        (ALL_IPV4, "all IPv4 addresses, port 80"),
        ("::1", "[::1]:80"),
        ("192.0.2.1", "192.0.2.1:80"),
    ],
)
def test_an_address_is_unambiguous(host: str, text: str) -> None:
    """Never `:::80`."""
    assert describe_address(ServerSettings(host=host, port=80)) == text


HUB = Upstream("hub", "docker.io")
QUAY = Upstream("quay.io", "quay.io")
PRIVATE = Upstream("internal", "registry.example")
MIRROR = Upstream("docker.io", "mirror.example")
PART = Upstream("org", "ghcr.io/org")


@pytest.mark.parametrize(
    ("host", "tls", "upstreams", "command"),
    [
        ("", False, DEFAULT_UPSTREAMS, "docker pull localhost:5000/docker.io/library/alpine"),
        ("", False, (PRIVATE, HUB), "docker pull localhost:5000/hub/library/alpine"),
        ("", False, (PART, QUAY), "docker pull localhost:5000/quay.io/prometheus/busybox"),
        ("", False, (MIRROR,), "docker pull localhost:5000/docker.io/library/alpine"),
        ("", False, (PRIVATE, PART), "docker pull localhost:5000/internal/NAME:TAG"),
        ("127.0.0.1", False, (HUB,), "docker pull 127.0.0.1:5000/hub/library/alpine"),
        ("", True, (HUB,), "docker pull machine:5000/hub/library/alpine"),
        ("192.0.2.1", True, (HUB,), "docker pull 192.0.2.1:5000/hub/library/alpine"),
        ("192.0.2.1", False, (QUAY,), "dockyard pull --server http://192.0.2.1:5000 quay.io/prometheus/busybox"),
    ],
)
def test_the_pull_uses_a_configured_prefix(
    host: str, upstreams: tuple[Upstream, ...], command: str, *, tls: bool
) -> None:
    """And a client that pulls from this address without more configuration."""
    assert example_pull(ServerSettings(host=host, tls=tls), upstreams, "machine") == command

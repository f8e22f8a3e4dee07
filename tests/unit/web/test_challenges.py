"""Challenges for access tokens, with the URL of `/token` as the client reaches it."""

import pytest

from dockyard.config.settings import AccessSettings, ServerSettings
from dockyard.config.types import ProxyHeader
from dockyard.oci.challenge import parse_challenges
from dockyard.web.challenges import make_find_token_url, make_token_challenge

PROXY, CLIENT = "10.0.0.1", "192.0.2.1"


def find(
    *headers: tuple[str, str],
    peer: str = CLIENT,
    tls: bool = False,
    header: ProxyHeader = "x-forwarded-for",
    trusted: tuple[str, ...] = ("10.0.0.0/8",),
    token_url: str = "",
) -> str | None:
    """The URL for a request with these headers."""
    server = ServerSettings(tls=tls, trusted_proxies=trusted, proxy_header=header)
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return make_find_token_url(server, AccessSettings(token_url=token_url))({"headers": raw, "client": (peer, 1)})


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("dockyard.test", "http://dockyard.test/token"),
        ("dockyard.test:5000", "http://dockyard.test:5000/token"),
        ("my_host:80", "http://my_host:80/token"),
        ("192.0.2.7:5000", "http://192.0.2.7:5000/token"),
        ("[2001:db8::1]", "http://[2001:db8::1]/token"),
        ("[::1]:5000", "http://[::1]:5000/token"),
        ("", None),
        ('a"b', None),
        ("a b", None),
        ("a/b", None),
        ("a?b", None),
        ("a#b", None),
        ("a,b", None),
        ("a\\b", None),
        ("ann@dockyard.test", None),
        ("a\r\nx: y", None),
        ("a\n", None),
        ("a:", None),
        ("a:b", None),
        ("a:123456", None),
        ("[::1", None),
        ("[evil.test]", None),
        ("\xe4.test", None),
        ("a" * 256, None),
    ],
)
def test_the_host_of_the_request(host: str, url: str | None) -> None:
    """Nothing but a host gets into the URL."""
    assert find(("Host", host)) == url


def test_the_scheme_of_the_server() -> None:
    """With TLS it is https."""
    assert find(("Host", "dockyard.test"), tls=True) == "https://dockyard.test/token"


def test_a_url_in_the_settings() -> None:
    """It replaces all that requests say."""
    url = "https://d.example/x/token"
    assert find(("Host", "dockyard.test"), peer=PROXY, token_url=url) == url
    assert find(token_url=url) == url


FORWARDED = [
    # A client has written the first part; each proxy adds to the end of all headers, or only the first proxy sets them.
    ([("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "d.test")], "https://d.test/token"),
    ([("X-Forwarded-Proto", "HTTPS")], "https://own.test/token"),
    ([("X-Forwarded-Host", "d.test:8443")], "http://d.test:8443/token"),
    ([("X-Forwarded-For", CLIENT), ("X-Forwarded-Proto", "ftp, https")], "https://own.test/token"),
    ([("X-Forwarded-For", CLIENT), ("X-Forwarded-Host", "evil.test, d.test")], "http://d.test/token"),
    (
        [("X-Forwarded-For", "1.2.3.4, 192.0.2.1, 10.0.0.2"), ("X-Forwarded-Host", "evil.test, d.test, in.test")],
        "http://d.test/token",
    ),
    ([("X-Forwarded-For", "192.0.2.1, 10.0.0.2"), ("X-Forwarded-Proto", "https, http")], "https://own.test/token"),
    ([("X-Forwarded-For", "192.0.2.1, 10.0.0.2"), ("X-Forwarded-Proto", "https")], "https://own.test/token"),
    ([("X-Forwarded-Proto", "http"), ("X-Forwarded-Proto", "https")], "https://own.test/token"),
    ([("X-Forwarded-For", "unknown"), ("X-Forwarded-Proto", "http, https")], "https://own.test/token"),
    ([("X-Forwarded-Proto", "javascript")], "http://own.test/token"),
    ([("X-Forwarded-Host", 'a"b')], "http://own.test/token"),
    ([("X-Forwarded-Host", "a/b")], "http://own.test/token"),
    ([("X-Forwarded-Host", "")], "http://own.test/token"),
    ([("Forwarded", "proto=https;host=d.test")], "http://own.test/token"),
]


@pytest.mark.parametrize(("headers", "url"), FORWARDED)
def test_the_headers_of_a_trusted_proxy(headers: list[tuple[str, str]], url: str) -> None:
    """Scheme and host are those that the proxy which is nearest to the client reports, and others' are not believed."""
    assert find(("Host", "own.test"), *headers, peer=PROXY) == url
    assert find(("Host", "own.test"), *headers, peer=CLIENT) == "http://own.test/token"
    assert find(("Host", "own.test"), *headers, peer=PROXY, trusted=()) == "http://own.test/token"


@pytest.mark.parametrize(
    ("lines", "url"),
    [
        (["for=192.0.2.1;proto=https;host=d.test"], "https://d.test/token"),
        (['for=192.0.2.1;host="d.test:8443";proto=https'], "https://d.test:8443/token"),
        (["proto=https;host=d.test"], "https://d.test/token"),
        (["for=1.2.3.4;host=evil.test, for=192.0.2.1;proto=https;host=d.test"], "https://d.test/token"),
        (["for=192.0.2.1;proto=https;host=d.test", "for=10.0.0.2;proto=http;host=in.test"], "https://d.test/token"),
        (["for=1.2.3.4;host=evil.test", "for=192.0.2.1"], "http://own.test/token"),
        (['for=192.0.2.1;host="a\\"b"'], "http://own.test/token"),
        (["for=192.0.2.1;host=d.test;host=evil.test"], "http://own.test/token"),
        (["garbage"], "http://own.test/token"),
        ([""], "http://own.test/token"),
        ([], "http://own.test/token"),
    ],
)
def test_forwarded(lines: list[str], url: str) -> None:
    """RFC 7239: scheme and host are in the element of the client."""
    headers = [("Forwarded", line) for line in lines] + [("X-Forwarded-Host", "evil.test")]
    assert find(("Host", "own.test"), *headers, peer=PROXY, header="forwarded") == url
    assert find(("Host", "own.test"), *headers, peer=CLIENT, header="forwarded") == "http://own.test/token"


@pytest.mark.parametrize(
    ("repository", "error", "more"),
    [
        ("", "", {}),
        ("docker.io/library/alpine", "", {"scope": "repository:docker.io/library/alpine:pull"}),
        ("a/b", "invalid_token", {"scope": "repository:a/b:pull", "error": "invalid_token"}),
        ("", "insufficient_scope", {"error": "insufficient_scope"}),
        ("A/../b", "", {}),
        ('a"b', "", {}),
        ("a," * 2000, "", {}),
    ],
)
def test_a_challenge(repository: str, error: str, more: dict[str, str]) -> None:
    """Clients read from it where they get a token, and for what."""
    (challenge,) = parse_challenges([make_token_challenge("https://d.test/token", repository, error)])
    assert challenge.scheme == "bearer"
    assert challenge.parameters == {"realm": "https://d.test/token", "service": "dockyard"} | more

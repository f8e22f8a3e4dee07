"""URLs that upstreams send, and where redirects may lead."""

import pytest

from dockyard.oci.origin import Origin
from dockyard.upstream.urls import InvalidUrl, Url, is_in_host_list, parse_http_url, resolve, resolve_redirect

HERE = Url(Origin("https", "registry.test", 443), "/v2/a/blobs/x?y=1")


@pytest.mark.parametrize(
    ("url", "origin", "target"),
    [
        ("https://h.test", Origin("https", "h.test", 443), "/"),
        ("https://H.Test/A?b=C#d", Origin("https", "h.test", 443), "/A?b=C"),
        ("http://h.test:8080/a", Origin("http", "h.test", 8080), "/a"),
        ("https://[2001:DB8::1]:444/a", Origin("https", "2001:db8::1", 444), "/a"),
        ("https://h.test./a", Origin("https", "h.test.", 443), "/a"),
        ("https://h.test/a%2Fb?sig=a%2Bb/c=", Origin("https", "h.test", 443), "/a%2Fb?sig=a%2Bb/c="),
    ],
)
def test_a_url_becomes_an_origin_and_a_target(url: str, origin: Origin, target: str) -> None:
    """Hosts in lower case, default ports filled in, the rest untouched."""
    assert parse_http_url(url) == Url(origin, target)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h.test/a",
        "//h.test/a",
        "file:///etc/passwd",
        "gopher://h.test/",
        "ftp://h.test/",
        "https://",
        "https:///a",
        "https://u@h.test/",
        "https://u:p@h.test/",
        "https://h.test:0/",
        "https://h.test:65536/",
        "https://h.test:80:81/",
        "https://h.test:/",
        "https://h.test:x/",
        "https://h.test\\@evil.test/",
        "https://h.test /",
        "https://h.test/a\r\nX: y",
        "https://h\t.test/",
        "https://h..test/",
        "https://%31.test/",
        "https://-h.test/",
        "https://é.test/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://[x]/",
        "https://h.test/" + "a" * 9000,
    ],
)
def test_what_two_parsers_could_read_in_two_ways_is_refused(url: str) -> None:
    """No other schemes, no user names, no odd hosts and ports; and the message does not repeat the text."""
    with pytest.raises(InvalidUrl) as caught:
        parse_http_url(url)
    assert len(url) < 8 or url not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/other?z", "https://registry.test/other?z"),
        ("other", "https://registry.test/v2/a/blobs/other"),
        ("../q", "https://registry.test/v2/a/q"),
        ("?z=2", "https://registry.test/v2/a/blobs/x?z=2"),
        ("//cdn.test/b", "https://cdn.test/b"),
        ("https://cdn.test:444/b?sig=1", "https://cdn.test:444/b?sig=1"),
    ],
)
def test_a_location_is_resolved_against_where_we_are(location: str, url: str) -> None:
    """Relative, absolute, and without a scheme."""
    assert resolve_redirect(HERE, location).text == url


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "http://registry.test/",
        "http://cdn.test/",
        "file:///etc/passwd",
        "gopher:x",
        "https://u:p@cdn.test/",
        "https://cdn.test/\u20ac",  # not from a header
        "https://cdn.test/\tx",
        "https://cdn.test/a\r\nX: y",
        "https://cdn.test/a\nX: y",
        "https://cdn.test/\0",
        "https://cdn.test/\x7f",
        "https:/cdn.test/",
        "https:cdn.test/",
        "/" + "a" * 65536,
        "//[",
    ],
)
def test_a_location_that_leads_astray_is_refused(location: str | None) -> None:
    """No location, no step down from https, no other scheme, no user names."""
    with pytest.raises(InvalidUrl):
        resolve_redirect(HERE, location)


OPAQUE = [
    "/a%2fb%2Fc?sig=ab%2fcd%2F",
    "/a|b^c`d?x|y^z`",
    "/a[1]?b[1]=c[2]&{d}",
    "/100%?sig=100%&x=%zz&y=%",
    "/a/./b/../c",
    "/..",
    "/../../a/./",
    "//double//slash//",
    "/%2e%2e/%2E/x",
    "/a;b=c;d?e;f",
    "/a?b?c??",
    "/a?",
    "/?",
    "/a+b?c+d=%20",
    "/a:b@c!$&'()*,=?d:e@f!$&'()*,=/~-._",
    "/%C3%BC%c3%bc?%80",
    '/<a>"b"?<c>"d"',
    "/a\\b?c\\d",
    "/sha256:0123?X-Amz-Credential=A/B/C&X-Amz-Signature=DEAD%3Dbeef",
]


@pytest.mark.parametrize("target", OPAQUE)
def test_path_and_query_stay_byte_for_byte(target: str) -> None:
    """A signature covers them: nothing is decoded, encoded, resolved or sorted."""
    absolute = f"https://cdn.test:444{target}"
    assert parse_http_url(absolute).target == target
    assert resolve_redirect(HERE, absolute).target == target
    assert resolve_redirect(HERE, f"//cdn.test{target}#fragment").target == target
    if not target.startswith("//"):
        assert resolve_redirect(HERE, target) == Url(HERE.origin, target)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/a b?c d", "/a%20b?c%20d"),
        ("/ü".encode().decode("latin-1"), "/%C3%BC"),
        ("/ü?ü".encode("latin-1").decode("latin-1"), "/%FC?%FC"),
        ("https://cdn.test/%20 %C3\xbc", "/%20%20%C3%BC"),
    ],
)
def test_what_cannot_be_in_a_request_line_is_encoded(location: str, target: str) -> None:
    """Spaces and bytes outside ASCII, each for itself; what is encoded already stays."""
    assert resolve_redirect(HERE, location).target == target


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("x", "/b/c/x"),
        ("./x", "/b/c/x"),
        ("x/", "/b/c/x/"),
        ("../x", "/b/x"),
        ("../../../x", "/x"),
        ("..", "/b/"),
        (".", "/b/c/"),
        ("x/./y/../z?q/../r", "/b/c/x/z?q/../r"),
        ("?y", "/b/c/d;p?y"),
        ("?", "/b/c/d;p?"),
        ("#s", "/b/c/d;p?q"),
        ("x%2f..", "/b/c/x%2f.."),
    ],
)
def test_references_are_resolved_as_rfc_3986_says(reference: str, target: str) -> None:
    """Dot segments mean something in a relative path only."""
    assert resolve(Url(HERE.origin, "/b/c/d;p?q"), reference) == Url(HERE.origin, target)


def test_from_plain_http_both_schemes_are_fine() -> None:
    """A registry without TLS may send us to one with or without."""
    here = Url(Origin("http", "registry.test", 80), "/")
    assert resolve_redirect(here, "https://cdn.test/").origin.scheme == "https"
    assert resolve_redirect(here, "http://cdn.test/").origin.scheme == "http"


@pytest.mark.parametrize(
    ("hosts", "is_there"),
    [((), False), (("h.test",), True), (("H.test:444",), True), (("h.test:443",), False), (("x.h.test",), False)],
)
def test_a_list_names_hosts_with_or_without_a_port(hosts: tuple[str, ...], is_there: bool) -> None:  # noqa: FBT001
    """`host` stands for all its ports."""
    assert is_in_host_list(Origin("https", "h.test", 444), hosts) is is_there


def test_a_place_does_not_show_its_query() -> None:
    """Presigned addresses are secrets for as long as they are good."""
    assert "y=1" not in repr(HERE)

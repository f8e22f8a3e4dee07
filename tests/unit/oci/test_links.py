"""The Link header: parsed in all notations, and formatted as clients expect it."""

import contextlib
import time

import pytest

from dockyard.oci.links import find_next, format_next_link, next_query


@pytest.mark.parametrize(
    ("headers", "target"),
    [
        ([], None),
        ([""], None),
        (['</v2/a/tags/list?last=x>; rel="next"'], "/v2/a/tags/list?last=x"),
        (["</v2/a/tags/list?last=x>; rel=next"], "/v2/a/tags/list?last=x"),
        (["</v2/a/tags/list?last=x>;rel=Next"], "/v2/a/tags/list?last=x"),
        (['<https://r.test/v2/a/tags/list?last=YWI%3D>; rel="next"'], "https://r.test/v2/a/tags/list?last=YWI%3D"),
        (['<?next_page=1>; title="a, b; <c>"; rel="prev next"'], "?next_page=1"),
        (['</first>; rel="first", </second>; rel="next"'], "/second"),
        (['</first>; rel="first"', '</second>; rel="next"'], "/second"),
        (['</last>; rel="last"'], None),
        (["</x>"], None),
        (['<>; rel="next"'], ""),
        (['</a,b>; rel="next"'], "/a,b"),
    ],
)
def test_the_next_page_is_found(headers: list[str], target: str | None) -> None:
    """Quoted or not, among other links, in one header or in several."""
    assert find_next(headers) == target


@pytest.mark.parametrize("header", ["/v2/a/tags/list?last=x", 'rel="next"', "<", "next"])
def test_a_malformed_header_is_rejected(header: str) -> None:
    """Otherwise the list could be truncated silently."""
    with pytest.raises(ValueError, match="Link"):
        find_next([header])


@pytest.mark.parametrize("piece", ["<", "<>", '<a>"', '<a>;rel="', "<a>;" * 2, '<>"\\', " ;rel"])
def test_a_hostile_header_costs_little(piece: str) -> None:
    """For the longest header that http.client accepts, of texts that could cause backtracking in a pattern."""
    began = time.process_time()
    with contextlib.suppress(ValueError):
        find_next([piece * (65_000 // len(piece))])
    assert time.process_time() - began < 1.0


OWN = "/v2/org/team/app/tags/list"
PAGE = b'{"name": "org/team/app", "tags": ["a", "t0999"]}'


@pytest.mark.parametrize(
    "link",
    [
        "?QUERY",
        "list?QUERY",
        "/v2/org/team/app/tags/list?QUERY",
        "/v2/org%2Fteam/app/tags/list?QUERY#there",
        "https://r.test/v2/org/team/app/tags/list?QUERY",
        "http://internal:8081/v2/org/team/app/tags/list?QUERY",
        # with a path before it, or without the first part of it
        "/repository/NAME/v2/org/team/app/tags/list?QUERY",
        "https://r.test/artifactory/api/docker/key/v2/team/app/tags/list?QUERY",
        "/v2/team/app/tags/list?QUERY",
        "/v2/app/tags/list?QUERY",
        "/v2/front/org/team/app/tags/list?QUERY",
    ],
)
@pytest.mark.parametrize(
    "query",
    [
        "last=t0999&n=1000",
        "n=2&last=bGFzdD0%2Fx%3d%3D",
        "next_page=gAAAAABl-_Zz%2B/==&n=50",
        "last=%7b%22a%22:1%7d&n=1",
        "page=2",
        "",
    ],
)
def test_the_query_of_a_link_is_used_unchanged(link: str, query: str) -> None:
    """Its path and host are not: registries behind a proxy do not know them. A cursor may be opaque."""
    assert next_query(OWN, link.replace("QUERY", query), PAGE) == query


@pytest.mark.parametrize(
    "path",
    [
        "/v2/other/app/tags/list",
        "/v2/org/team/app2/tags/list",
        "/v2/org/team/xapp/tags/list",
        "/v2/org/team/app/referrers/sha256:aa",
        "/v2/_catalog",
        "/",
        "file:///etc/passwd",
        "https://elsewhere.test/",
    ],
)
def test_a_link_to_another_list_is_rejected(path: str) -> None:
    """Unless its `last` is an entry of this page: a proxy in front of the registry may rename repositories."""
    for query in ("?last=t0998&n=1000", "?last=bGFzdA", "?page=2", "?last=", ""):
        with pytest.raises(ValueError, match="another list"):
            next_query(OWN, f"{path}{query}", PAGE)
    assert next_query(OWN, f"{path}?n=7&last=t0999", PAGE) == "n=7&last=t0999"


@pytest.mark.parametrize("link", ["http://[::", "http://[x]/v2/"])
def test_a_link_that_is_no_url_is_rejected(link: str) -> None:
    """With ValueError."""
    with pytest.raises(ValueError, match=r"."):
        next_query(OWN, link, PAGE)


def test_a_link_to_the_referrers_of_another_manifest_is_rejected() -> None:
    """The digest is a part of the list's name; how its colon is written does not matter."""
    own, other = (f"/v2/app/referrers/sha256:{digit * 64}" for digit in "ab")
    page = f'{{"manifests": [{{"digest": "sha256:{"c" * 64}"}}]}}'.encode()
    with pytest.raises(ValueError, match="another list"):
        next_query(own, f"{other}?nextToken=x", page)
    assert next_query(own, f"{own.replace(':', '%3A')}?nextToken=x", page) == "nextToken=x"


def test_a_link_is_formatted() -> None:
    """With the requested path and an encoded query."""
    link = format_next_link("/v2/a/b/tags/list", {"n": "2", "last": "v1", "ns": "docker.io", "artifactType": "a/b+c"})
    assert link == '</v2/a/b/tags/list?n=2&last=v1&ns=docker.io&artifactType=a%2Fb%2Bc>; rel="next"'
    assert find_next([link]) == "/v2/a/b/tags/list?n=2&last=v1&ns=docker.io&artifactType=a%2Fb%2Bc"
    assert format_next_link("/x", {"last": ["v1"], "a": ["1", "2+"]}) == '</x?last=v1&a=1&a=2%2B>; rel="next"'

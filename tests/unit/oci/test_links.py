"""The Link header: parsed in all notations, and formatted as clients expect it."""

import contextlib
import time

import pytest

from dockyard.oci.links import find_next, format_next_link


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


def test_a_link_is_formatted() -> None:
    """With the requested path and an encoded query."""
    link = format_next_link("/v2/a/b/tags/list", {"n": "2", "last": "v1", "ns": "docker.io", "artifactType": "a/b+c"})
    assert link == '</v2/a/b/tags/list?n=2&last=v1&ns=docker.io&artifactType=a%2Fb%2Bc>; rel="next"'
    assert find_next([link]) == "/v2/a/b/tags/list?n=2&last=v1&ns=docker.io&artifactType=a%2Fb%2Bc"

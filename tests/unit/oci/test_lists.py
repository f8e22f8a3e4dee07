"""Lists: parsing the pages of an upstream, and dividing a list into pages."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.errors import BadUpstream
from dockyard.oci.lists import (
    MAX_PAGE_BYTES,
    merge_referrers,
    page_referrers,
    page_tags,
    parse_referrers,
    parse_tags,
    referrers_index,
    referrers_tag,
)
from dockyard.oci.manifest import MAX_MANIFEST_BYTES, OCI_INDEX, Manifest
from dockyard.oci.reference import Digest
from tests.support.fake_lists import descriptor, index

TAGS = ["1.0", "A", "_x", "a", "b", "c"]
ONE, TWO, THREE = (descriptor(f"sha256:{digit * 64}", f"application/{digit}") for digit in "123")


@pytest.mark.parametrize(
    ("body", "tags"),
    [
        (b'{"name": "x", "tags": ["b", "a"]}', ["b", "a"]),
        (b'{"name": "x", "tags": null}', []),
        (b'{"name": "x", "tags": []}', []),
        (b'{"tags": ["a"], "child": [], "manifest": {"sha256:1": {"timeCreatedMs": 1.5e9}}}', ["a"]),
        (json.dumps({"tags": ["ü", "a", "x" * 129, "-a", ""]}).encode(), ["a"]),
    ],
)
def test_a_page_of_tags_is_parsed(body: bytes, tags: list[str]) -> None:
    """In the order of the upstream; unknown keys are ignored, and invalid tags left out."""
    assert parse_tags(body) == tags


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"tags": "a"}',
        b'{"tags": {"a": 1}}',
        b'{"tags": ["a", 1]}',
        b'{"tags": [null]}',
        b'{"tags": ["a"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"tags": [' + b"1" * 5000 + b"]}",
        b'{"tags": [' + b"[]," * 300_000 + b"[]]}",
        '{"tags": ["a"]}'.encode("utf-16"),
    ],
)
def test_an_invalid_page_of_tags_is_rejected(body: bytes) -> None:
    """With BadUpstream."""
    with pytest.raises(BadUpstream):
        parse_tags(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_tags_or_bad_upstream(body: bytes) -> None:
    """Parsing raises no other error."""
    for parse in (parse_tags, lambda body: parse_referrers(body, OCI_INDEX)):
        with contextlib.suppress(BadUpstream):
            parse(body)


def test_a_page_of_referrers_is_parsed() -> None:
    """Descriptors are unchanged, with unknown keys."""
    entries = [ONE, TWO | {"annotations": {"a": "b"}, "platform": {"os": "linux"}, "x": 1.5}]
    assert parse_referrers(index(entries), f"{OCI_INDEX}; charset=utf-8") == entries
    assert parse_referrers(b'{"schemaVersion": 2, "manifests": null}', OCI_INDEX) == []


@pytest.mark.parametrize(
    "entry",
    [
        {},
        ONE | {"digest": 1},
        ONE | {"size": "7"},
        ONE | {"mediaType": None},
        ONE | {"artifactType": []},
        ONE | {"annotations": {"a": 1}},
        ONE | {"annotations": ["a"]},
    ],
)
def test_malformed_descriptors_are_rejected(entry: dict[str, Any]) -> None:
    """Clients could not parse them."""
    with pytest.raises(BadUpstream):
        parse_referrers(index([ONE, entry]), OCI_INDEX)


def test_an_image_is_not_a_page_of_referrers() -> None:
    """As the response of the referrers API."""
    with pytest.raises(BadUpstream):
        parse_referrers(b'{"schemaVersion": 2, "config": {}, "layers": []}', OCI_INDEX)


def test_pages_are_merged() -> None:
    """In their order, each referrer once."""
    assert merge_referrers([[ONE, TWO], [], [TWO | {"size": 9}, THREE]]) == [ONE, TWO, THREE]


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_tag_of_the_referrers(algorithm: str) -> None:
    """The digest with a hyphen in place of the colon, truncated to 64 digits."""
    digest = Digest.of(b"x", algorithm)
    assert str(referrers_tag(digest)) == f"{algorithm}-{digest.encoded[:64]}"


@pytest.mark.parametrize(
    ("n", "last", "page", "has_more"),
    [
        (None, None, TAGS, False),
        (0, None, [], False),
        (2, None, TAGS[:2], True),
        (6, None, TAGS, False),
        (100, None, TAGS, False),
        (2, "A", ["_x", "a"], True),
        (2, "B", ["_x", "a"], True),
        (2, "a", ["b", "c"], False),
        (None, "a", ["b", "c"], False),
        (None, "c", [], False),
        (5, "zzz", [], False),
        (None, "", TAGS, False),
        (0, "a", [], False),
    ],
)
def test_tags_are_paged(n: int | None, last: str | None, page: list[str], *, has_more: bool) -> None:
    """`last` is a value, not an index, and need not be in the list."""
    assert page_tags(TAGS, n, last) == (page, has_more)


@given(st.sets(st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,4}", fullmatch=True)), st.integers(1, 5))
def test_consecutive_pages_are_the_whole_list(names: set[str], n: int) -> None:
    """With each tag once."""
    tags = sorted(names)
    found: list[str] = []
    last, has_more = None, True
    while has_more:
        page, has_more = page_tags(tags, n, last)
        found += page
        last = page[-1] if page else None
    assert found == tags


def test_referrers_are_filtered() -> None:
    """By the type in the descriptor; one without a type matches no filter."""
    nameless = descriptor(f"sha256:{'4' * 64}")
    assert page_referrers([ONE, TWO, nameless, ONE], "application/1", None) == ([ONE, ONE], False)
    assert page_referrers([nameless], "application/1", None) == ([], False)
    assert page_referrers([ONE, nameless], None, None) == ([ONE, nameless], False)


def test_referrers_are_paged_by_their_size() -> None:
    """A page has at least one descriptor; the last digest of a page is `last` of the next request."""
    size = len(json.dumps(ONE))
    everything = [ONE, TWO, THREE]
    assert page_referrers(everything, None, None, 2 * size + 4) == ([ONE, TWO], True)
    assert page_referrers(everything, None, TWO["digest"], 2 * size + 4) == ([THREE], False)
    assert page_referrers(everything, None, None, 1) == ([ONE], True)
    assert page_referrers(everything, None, "sha256:gone", 3 * size + 6) == (everything, False)


def test_a_page_of_referrers_is_an_index_that_clients_accept() -> None:
    """For any number of referrers, its size is below the limit of clients."""
    many = [descriptor(f"sha256:{number:064x}", annotations={"ü": "é" * 50}) for number in range(20_000)]
    page, has_more = page_referrers(many, None, None)
    body = referrers_index(page)
    assert has_more
    assert MAX_PAGE_BYTES - 1000 < len(body) <= MAX_MANIFEST_BYTES
    assert Manifest.parse(body, OCI_INDEX, None).media_type == OCI_INDEX

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
    find_referrers,
    is_referrer,
    merge_referrers,
    page_referrers,
    page_tags,
    parse_tags,
    referrers_index,
    referrers_tag,
)
from dockyard.oci.manifest import DOCKER_LIST, MAX_MANIFEST_BYTES, OCI_IMAGE, OCI_INDEX, Manifest
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
    with contextlib.suppress(BadUpstream):
        parse_tags(body)
    with contextlib.suppress(BadUpstream):
        find_referrers(body, OCI_INDEX)


@pytest.mark.parametrize("content_type", [OCI_INDEX, f"{OCI_INDEX}; charset=utf-8", "text/plain", None, DOCKER_LIST])
def test_a_page_of_referrers_is_parsed(content_type: str | None) -> None:
    """Entries are unchanged, with unknown keys; the mediaType in the document counts, not the Content-Type."""
    entries = [ONE, TWO | {"annotations": {"a": "b"}, "platform": {"os": "linux"}, "x": 1.5}, 1]
    assert find_referrers(index(entries), content_type) == entries


@pytest.mark.parametrize(
    ("document", "content_type", "is_index"),
    [
        ({"schemaVersion": 2, "manifests": None}, OCI_INDEX, True),
        ({"schemaVersion": 2, "manifests": [], "mediaType": ""}, None, True),
        ({"schemaVersion": 2, "mediaType": OCI_INDEX}, None, True),
        ({"schemaVersion": 2, "manifests": []}, DOCKER_LIST, False),
        ({"schemaVersion": 2, "manifests": [], "mediaType": DOCKER_LIST}, OCI_INDEX, False),
        ({"schemaVersion": 2, "manifests": {}}, OCI_INDEX, False),
        ({"schemaVersion": 2, "manifests": [], "config": {}, "layers": []}, OCI_INDEX, False),
        ({"schemaVersion": 2, "config": {}, "layers": [], "mediaType": OCI_IMAGE}, OCI_IMAGE, False),
        ({"schemaVersion": 2, "config": {}, "layers": []}, OCI_INDEX, False),
        ({"schemaVersion": 1, "fsLayers": []}, None, False),
        ({"errors": [{"code": "UNSUPPORTED"}]}, "application/json", False),
        ({}, OCI_INDEX, False),
    ],
)
def test_only_an_oci_index_has_referrers(document: dict[str, Any], content_type: str | None, *, is_index: bool) -> None:
    """An image, a manifest list of Docker or another document has none."""
    found = find_referrers(json.dumps(document).encode(), content_type)
    assert found == ([] if is_index else None)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"<html></html>", b'{"manifests": [', b"{" * 9999, b"\xff"])
def test_what_is_not_a_json_object_is_rejected(body: bytes) -> None:
    """With BadUpstream, whatever its Content-Type is."""
    for content_type in (OCI_INDEX, "text/plain", None):
        with pytest.raises(BadUpstream):
            find_referrers(body, content_type)


@pytest.mark.parametrize(
    "entry",
    [
        *(None, 1, "x", [], {}),
        *(ONE | {"mediaType": value} for value in (None, 1)),
        *(ONE | {"digest": value} for value in (1, None, "", "x", "sha256:", ":a", "sha256:a b", "SHA256:aa")),
        *(ONE | {"size": value} for value in ("7", None, 1.0, True, -1, 2**63)),
        *(ONE | {"artifactType": value} for value in ([], 1, {})),
        *(ONE | {"annotations": value} for value in ({"a": 1}, ["a"], "a", {"a": None})),
        *(ONE | {"urls": value} for value in ("x", [1], {})),
        *(ONE | {"data": value} for value in (1, "?", "a", "é")),
        *(ONE | {"platform": value} for value in ("linux", {"os": 1}, {"architecture": []}, {"os.features": "x"})),
        ONE | {"x": float("inf")},
    ],
    ids=str,
)
def test_a_malformed_descriptor_is_no_referrer(entry: Any) -> None:
    """Clients could not parse the index that it is in."""
    assert not is_referrer(entry)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"artifactType": None, "annotations": None, "urls": None, "data": None, "platform": None},
        {"annotations": {}, "urls": ["https://a.test/b"], "data": "e30=", "x": [{"y": 1.5}], "size": 0},
        {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8", "os.features": ["x"], "features": 1}},
        {"digest": "blake3+b64:aA0=_-"},
    ],
)
def test_a_descriptor_is_a_referrer(more: dict[str, Any]) -> None:
    """With all optional fields, with unknown ones, and with an algorithm that Dockyard does not know."""
    assert is_referrer(ONE | more)


def test_referrers_are_merged() -> None:
    """In their order, each once."""
    assert merge_referrers([ONE, TWO, TWO | {"size": 9}, THREE]) == [ONE, TWO, THREE]


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
    """By the type in the descriptor, which is one of those wanted; one without a type matches no filter."""
    nameless = descriptor(f"sha256:{'4' * 64}")
    everything = [ONE, TWO, nameless, ONE]
    assert page_referrers(everything, {"application/1"}, None) == ([ONE, ONE], False)
    assert page_referrers(everything, {"application/1", "application/2", "x"}, None) == ([ONE, TWO, ONE], False)
    assert page_referrers([nameless], {"application/1"}, None) == ([], False)
    assert page_referrers([ONE, nameless], (), None) == ([ONE, nameless], False)


def test_referrers_are_paged_by_their_size() -> None:
    """A page has at least one descriptor; the last digest of a page is `last` of the next request."""
    size = len(json.dumps(ONE))
    everything = [ONE, TWO, THREE]
    assert page_referrers(everything, (), None, 2 * size + 4) == ([ONE, TWO], True)
    assert page_referrers(everything, (), TWO["digest"], 2 * size + 4) == ([THREE], False)
    assert page_referrers(everything, (), None, 1) == ([ONE], True)
    assert page_referrers(everything, (), "sha256:gone", 3 * size + 6) == (everything, False)


def test_a_page_of_referrers_is_an_index_that_clients_accept() -> None:
    """For any number of referrers, its size is below the limit of clients."""
    many = [descriptor(f"sha256:{number:064x}", annotations={"ü": "é" * 50}) for number in range(20_000)]
    page, has_more = page_referrers(many, (), None)
    body = referrers_index(page)
    assert has_more
    assert MAX_PAGE_BYTES - 1000 < len(body) <= MAX_MANIFEST_BYTES
    assert Manifest.parse(body, OCI_INDEX, None).media_type == OCI_INDEX

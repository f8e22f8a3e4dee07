"""Object keys, which are part of the stored format."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage.items import BlobItem, ManifestItem, TagItem
from dockyard.storage.keys import (
    blob_key,
    blob_root,
    find_item,
    link_key,
    list_key,
    manifest_key,
    media_type_key,
    tag_key,
)

SHA256 = Digest.of(b"x")
SHA512 = Digest.of(b"x", "sha512")
NAME = Name.parse("docker.io/library/nginx")


@pytest.mark.parametrize("prefix", ["cache/", "", "a/b/", "cache"])
def test_keys_have_the_documented_format(prefix: str) -> None:
    """Existing buckets are read by these keys; the prefix is prepended unchanged."""
    assert manifest_key(prefix, NAME, SHA256) == f"{prefix}manifests/docker.io/library/nginx/sha256/{SHA256.encoded}"
    assert tag_key(prefix, NAME, Tag.parse("v1")) == f"{prefix}manifests/docker.io/library/nginx/tags/v1"
    assert link_key(prefix, NAME, SHA256) == f"{prefix}links/docker.io/library/nginx/sha256/{SHA256.encoded}"
    assert blob_key(prefix, SHA256) == f"{prefix}blobs/sha256/{SHA256.encoded[:2]}/{SHA256.encoded}"


def test_keys_of_other_algorithms_contain_their_name() -> None:
    """The component `sha256` is `sha512` for such digests."""
    assert manifest_key("c/", NAME, SHA512) == f"c/manifests/docker.io/library/nginx/sha512/{SHA512.encoded}"
    assert blob_key("c/", SHA512) == f"c/blobs/sha512/{SHA512.encoded[:2]}/{SHA512.encoded}"


def test_lists_have_separate_keys() -> None:
    """No list has the key of another object, and no list is a directory of another."""
    assert list_key("c/", NAME, None) == "c/lists/docker.io/library/nginx/_tags"
    assert list_key("c/", NAME, SHA512) == f"c/lists/docker.io/library/nginx/_referrers/sha512/{SHA512.encoded}"


def test_media_types_have_separate_keys() -> None:
    """Beside the manifests, whose directories other programs may read."""
    assert media_type_key("c/", NAME, SHA512) == f"c/types/docker.io/library/nginx/sha512/{SHA512.encoded}"


def test_all_blobs_are_below_their_root() -> None:
    """Listing the keys with this prefix finds every blob."""
    assert blob_root("c/") == "c/blobs/"
    assert blob_key("c/", SHA512).startswith(blob_root("c/"))


digests = st.sampled_from([SHA256, SHA512, Digest.of(b"y")])
# Names and tags that look like the rest of a key.
words = st.sampled_from(
    ["manifests", "blobs", "links", "tags", "sha256", "sha512", SHA256.encoded, SHA256.encoded[:2], "x"]
)
names = st.lists(words, min_size=1, max_size=3).map("/".join).map(Name.parse)
objects = st.one_of(
    st.tuples(st.just("manifest"), names, digests),
    st.tuples(st.just("tag"), names, words.map(Tag.parse)),
    st.tuples(st.just("blob"), st.just(None), digests),
    st.tuples(st.just("list"), names, digests),
    st.tuples(st.just("type"), names, digests),
    st.tuples(st.just("link"), names, digests),
)


def key_of(obj: tuple[str, Name | None, Digest | Tag]) -> str:
    """Return the key of an object."""
    match obj:
        case "manifest", Name() as name, Digest() as digest:
            return manifest_key("", name, digest)
        case "tag", Name() as name, Tag() as tag:
            return tag_key("", name, tag)
        case "list", Name() as name, Digest() as digest:
            return list_key("", name, digest)
        case "type", Name() as name, Digest() as digest:
            return media_type_key("", name, digest)
        case "link", Name() as name, Digest() as digest:
            return link_key("", name, digest)
        case _, None, Digest() as digest:
            return blob_key("", digest)
        case _:
            raise AssertionError(obj)


@given(objects, objects)
def test_different_objects_have_different_keys(
    one: tuple[str, Name | None, Digest | Tag], other: tuple[str, Name | None, Digest | Tag]
) -> None:
    """No repository name leads to the objects of another repository."""
    assert (key_of(one) == key_of(other)) == (one == other)


@pytest.mark.parametrize("prefix", ["cache/", "", "a/b/", "cache"])
@pytest.mark.parametrize("name", ["docker.io/library/nginx", "a", "x/tags/latest", "x/sha256/y"])
def test_an_item_is_found_by_its_key(prefix: str, name: str) -> None:
    """The name of a repository may look like a part of a key."""
    repository, tag = Name.parse(name), Tag.parse("v1")
    assert find_item(prefix, blob_key(prefix, SHA512)) == BlobItem(SHA512)
    assert find_item(prefix, manifest_key(prefix, repository, SHA256)) == ManifestItem(repository, SHA256)
    assert find_item(prefix, tag_key(prefix, repository, tag)) == TagItem(repository, tag)


@pytest.mark.parametrize(
    "key", ["", "blobs/x", "blobs/sha256/ab/nothex", "manifests/x", "manifests/A/tags/v1", "run/x"]
)
def test_other_files_are_no_items(key: str) -> None:
    """Lists, media types, links, and what other programs store."""
    assert find_item("c/", f"c/{key}") is None
    assert find_item("c/", list_key("c/", NAME, None)) is None
    assert find_item("c/", media_type_key("c/", NAME, SHA256)) is None
    assert find_item("c/", link_key("c/", NAME, SHA256)) is None

"""Object keys: the original's, to the letter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage.keys import blob_key, blob_root, list_key, manifest_key, tag_key

SHA256 = Digest.of(b"x")
SHA512 = Digest.of(b"x", "sha512")
NAME = Name.parse("docker.io/library/nginx")


@pytest.mark.parametrize("prefix", ["cache/", "", "a/b/", "cache"])
def test_keys_are_those_of_the_original(prefix: str) -> None:
    """A bucket that the original filled is found as it is; the prefix is taken as it stands."""
    assert manifest_key(prefix, NAME, SHA256) == f"{prefix}manifests/docker.io/library/nginx/sha256/{SHA256.encoded}"
    assert tag_key(prefix, NAME, Tag.parse("v1")) == f"{prefix}manifests/docker.io/library/nginx/tags/v1"
    assert blob_key(prefix, SHA256) == f"{prefix}blobs/sha256/{SHA256.encoded[:2]}/{SHA256.encoded}"


def test_keys_of_other_algorithms_name_them() -> None:
    """sha512 stands where sha256 would."""
    assert manifest_key("c/", NAME, SHA512) == f"c/manifests/docker.io/library/nginx/sha512/{SHA512.encoded}"
    assert blob_key("c/", SHA512) == f"c/blobs/sha512/{SHA512.encoded[:2]}/{SHA512.encoded}"


def test_lists_have_keys_of_their_own() -> None:
    """The original has none: they lie beside its keys, and a directory of a file system never stands for a list."""
    assert list_key("c/", NAME, None) == "c/lists/docker.io/library/nginx/_tags"
    assert list_key("c/", NAME, SHA512) == f"c/lists/docker.io/library/nginx/_referrers/sha512/{SHA512.encoded}"


def test_all_blobs_are_below_their_root() -> None:
    """What lists blobs begins where their keys begin."""
    assert blob_root("c/") == "c/blobs/"
    assert blob_key("c/", SHA512).startswith(blob_root("c/"))


digests = st.sampled_from([SHA256, SHA512, Digest.of(b"y")])
# Names and tags that look like the rest of a key.
words = st.sampled_from(["manifests", "blobs", "tags", "sha256", "sha512", SHA256.encoded, SHA256.encoded[:2], "x"])
names = st.lists(words, min_size=1, max_size=3).map("/".join).map(Name.parse)
things = st.one_of(
    st.tuples(st.just("manifest"), names, digests),
    st.tuples(st.just("tag"), names, words.map(Tag.parse)),
    st.tuples(st.just("blob"), st.just(None), digests),
    st.tuples(st.just("list"), names, digests),
)


def key(thing: tuple[str, Name | None, Digest | Tag]) -> str:
    """Return the key of a thing."""
    match thing:
        case "manifest", Name() as name, Digest() as digest:
            return manifest_key("", name, digest)
        case "tag", Name() as name, Tag() as tag:
            return tag_key("", name, tag)
        case "list", Name() as name, Digest() as digest:
            return list_key("", name, digest)
        case _, None, Digest() as digest:
            return blob_key("", digest)
        case _:
            raise AssertionError(thing)


@given(things, things)
def test_two_things_have_two_keys(
    one: tuple[str, Name | None, Digest | Tag], other: tuple[str, Name | None, Digest | Tag]
) -> None:
    """No repository can be named so that it reads or writes what is another's."""
    assert (key(one) == key(other)) == (one == other)

"""Names, tags and digests: which texts are valid, and which error the others raise."""

import contextlib
import hashlib
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.errors import DigestInvalid, NameInvalid, ReferenceInvalid
from dockyard.oci.reference import Digest, Name, Tag, parse_reference, quote

HEX = "0123456789abcdef" * 4
ANY_ALPHABET = st.text(alphabet="ab9._-/:A \n\x00\u0661\u00e9", max_size=20)


def is_component(text: str) -> bool:
    """A slow parser for the grammar: runs of letters and digits, joined by one separator each."""
    separators = re.split("[a-z0-9]+", text)
    ends_well = len(separators) > 1 and separators[0] == separators[-1] == ""
    return ends_well and all(part in {".", "_", "__"} or set(part) == {"-"} for part in separators[1:-1])


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "0",
        "library/nginx",
        "docker.io/library/nginx",
        "up.test/blobs/manifests/tags/list",
        "a__b",
        "a_b",
        "a-b",
        "a----b",
        "a.b-c_d__e",
        "localhost/x",
        "a" * 255,
    ],
)
def test_valid_names_are_parsed(text: str) -> None:
    """And are unchanged."""
    assert str(Name.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "Foo",
        "foo/Bar",
        "GHCR.IO/x",
        "a__b___c",
        "-a",
        "a-",
        ".a",
        "a.",
        "_a",
        "a_",
        "__a",
        "a..b",
        "a._b",
        "a-_b",
        "a/",
        "/a",
        "a//b",
        ".",
        "..",
        "a/./b",
        "a/../b",
        "up.test/../../etc/passwd",
        "_catalog",
        "\u00e9",
        "\u0430",  # Cyrillic, looks like a
        "\u0661",  # an Arabic digit
        "\uff41",  # full width a
        "a\n",
        "a b",
        "a\\b",
        "a\x00",
        "a\r\nX: 1",
        "a%2fb",
        "a:b",
        "localhost:5000/a",
        "a@b",
        "a" * 256,
        "a" * 65536,
    ],
)
def test_invalid_names_are_rejected(text: str) -> None:
    """With NAME_INVALID."""
    with pytest.raises(NameInvalid):
        Name.parse(text)


def test_a_name_has_components() -> None:
    """They are separated by slashes."""
    assert Name.parse("docker.io/library/nginx").components == ("docker.io", "library", "nginx")


@given(ANY_ALPHABET)
def test_the_pattern_of_names_agrees_with_a_slow_parser(text: str) -> None:
    """One that checks component by component."""
    expected = all(is_component(component) for component in text.split("/"))
    try:
        Name.parse(text)
    except NameInvalid:
        assert not expected
    else:
        assert expected


@given(st.text())
def test_any_text_is_a_name_or_name_invalid(text: str) -> None:
    """Parsing raises no other error."""
    with contextlib.suppress(NameInvalid):
        assert Name.parse(text).value == text


@pytest.mark.parametrize("text", ["latest", "v1.2.3", "_", "_x-", "A.B", "1", "a" * 128, f"sha256-{HEX}.sig"])
def test_valid_tags_are_parsed(text: str) -> None:
    """And are unchanged."""
    assert parse_reference(text) == Tag(text)
    assert str(Tag.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "-x", ".x", "a b", "a/b", "latest\n", "latest\r\nX:1".replace(":", "="), "\u00e9", "\u0661", "a" * 129],
)
def test_invalid_tags_are_rejected(text: str) -> None:
    """With the error for references."""
    with pytest.raises(ReferenceInvalid):
        parse_reference(text)


@pytest.mark.parametrize("text", ["a:b", ":", "latest\r\nX:1", "x:"])
def test_a_colon_makes_a_reference_a_digest(text: str) -> None:
    """A tag cannot contain a colon, so the error is DIGEST_INVALID."""
    with pytest.raises(DigestInvalid):
        parse_reference(text)
    with pytest.raises(ReferenceInvalid):
        Tag.parse(text)


@pytest.mark.parametrize("text", [f"sha256:{HEX}", f"sha512:{HEX}{HEX}"])
def test_valid_digests_are_parsed(text: str) -> None:
    """Both registered SHA-2 algorithms."""
    digest = Digest.parse(text)
    assert str(digest) == text
    assert (digest.algorithm, digest.encoded) == tuple(text.split(":"))
    assert parse_reference(text) == digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256",
        "sha256:",
        "sha256:abc",
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"sha256:{'g' * 64}",
        f"sha256:{HEX[:-1]}\n",
        f"sha256:{HEX}\n",
        f"sha256:{HEX[:-1]}\u0661",
        f"sha256:../{HEX[3:]}",
        f"SHA256:{HEX}",
        f"sha256-{HEX}",
        f"sha256::{HEX[1:]}",
        f"sha512:{HEX}",
        f"sha256:{HEX}{HEX}",
        f"md5:{HEX[:32]}",
        f"sha384:{HEX}{HEX[:32]}",
        f"blake3:{HEX}",
        f"sha256+b64:{HEX}",
        "sha256:baddigeststring",
        "x" * 65536,
    ],
)
def test_invalid_digests_are_rejected(text: str) -> None:
    """With DIGEST_INVALID, also if the algorithm is not supported."""
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


@given(st.text(alphabet=string.hexdigits + ":sha-\n", max_size=80))
def test_any_text_is_a_digest_or_digest_invalid(text: str) -> None:
    """Parsing raises no other error."""
    try:
        assert str(Digest.parse(text)) == text
    except DigestInvalid:
        assert not re.fullmatch(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}", text)


@given(st.binary(), st.sampled_from(["sha256", "sha512"]))
def test_the_digest_of_bytes_is_that_of_hashlib(data: bytes, algorithm: str) -> None:
    """And it can be parsed."""
    digest = Digest.of(data, algorithm)
    assert digest.encoded == hashlib.new(algorithm, data).hexdigest()
    assert Digest.parse(str(digest)) == digest


def test_a_hasher_matches_the_digest_of_its_data() -> None:
    """All of its data, in any number of chunks."""
    digest = Digest.of(b"abc", "sha512")
    hasher = digest.hasher()
    hasher.update(b"a")
    hasher.update(memoryview(b"bc"))
    assert digest.matches(hasher)
    hasher.update(b"d")
    assert not digest.matches(hasher)


def test_a_hasher_of_another_algorithm_does_not_match() -> None:
    """The sha512 of no bytes is not the sha256 of no bytes."""
    assert not Digest.of(b"").matches(Digest.of(b"", "sha512").hasher())


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "shake_128", "SHA256"])
def test_other_algorithms_are_not_supported(algorithm: str) -> None:
    """For computing digests, as for parsing them."""
    with pytest.raises(ValueError, match="unsupported digest algorithm"):
        Digest.of(b"", algorithm)


@given(st.text())
def test_a_quoted_text_is_short_printable_ascii(text: str) -> None:
    """Clients cannot write line breaks, escape sequences or long texts into an error message."""
    quoted = quote(text)
    assert quoted.isascii()
    assert quoted.isprintable()
    assert len(quoted) <= 10 * 128 + 5

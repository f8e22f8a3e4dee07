"""A set of digests beside a Python set with the same digests."""

import sys

import pytest

from dockyard.oci.reference import Digest
from dockyard.storage.digest_set import DigestSet


def digest(number: int, algorithm: str = "sha256") -> str:
    """The hex digits of one of many digests."""
    return Digest.of(str(number).encode(), algorithm).encoded


def test_it_has_what_was_added_and_nothing_else() -> None:
    """Also after the buckets were split."""
    found = DigestSet()
    for number in range(0, 5000, 2):
        found.add(digest(number))
        found.add(digest(number))
    assert len(found) == 2500
    assert [number for number in range(5000) if digest(number) in found] == list(range(0, 5000, 2))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_digests_of_all_algorithms_fit(algorithm: str) -> None:
    """Only the first digits of a longer one are kept."""
    found = DigestSet()
    found.add(digest(1, algorithm))
    assert digest(1, algorithm) in found
    assert digest(2, algorithm) not in found


def test_bytes_across_two_records_are_not_a_digest() -> None:
    """The records are next to each other in memory."""
    found = DigestSet()
    for text in ("00" * 16 + "11" * 16, "01" * 16 + "11" * 16):
        found.add(text)
    for shift in range(1, 16):
        assert "00" * (16 - shift) + "01" * shift not in found
        assert "01" * (16 - shift) + "00" * shift not in found
    assert "01" * 16 in found


def test_it_is_small() -> None:
    """Less than 24 bytes for each digest."""
    found = DigestSet()
    for number in range(100_000):
        found.add(digest(number))
    taken = sum(sys.getsizeof(bucket) for bucket in found._buckets)
    assert taken < 24 * len(found)


def test_what_is_not_hex_is_refused() -> None:
    """A caller that adds such a text has made a mistake."""
    with pytest.raises(ValueError, match="hexadecimal"):
        DigestSet().add("zz" * 32)

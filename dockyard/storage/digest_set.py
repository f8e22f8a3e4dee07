"""A set of many digests in little memory."""

from typing import Final

RECORD_BYTES: Final = 16
MAX_BUCKET_RECORDS: Final = 256


class DigestSet:
    """A set of digests, by their hex digits, that takes about 16 bytes for each: a Python set takes 100.

    It has the first 128 bits of each digest: nobody can make two digests that agree in them and are of use. For many
    readers and one writer at a time. Raises ValueError for what is not hex.
    """

    def __init__(self) -> None:
        self._buckets = [bytearray()]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, encoded: str) -> bool:
        return _has(self._buckets, _record(encoded))

    def add(self, encoded: str) -> None:
        """Add a digest."""
        record = _record(encoded)
        if _has(self._buckets, record):
            return
        if self._count >= MAX_BUCKET_RECORDS * len(self._buckets):
            self._buckets = _split(self._buckets)
        _bucket(self._buckets, record).extend(record)
        self._count += 1


def _record(encoded: str) -> bytes:
    return bytes.fromhex(encoded[: 2 * RECORD_BYTES])


def _bucket(buckets: list[bytearray], record: bytes) -> bytearray:
    return buckets[hash(record) % len(buckets)]  # not the digest itself, whose first bytes somebody may have chosen


def _has(buckets: list[bytearray], record: bytes) -> bool:
    bucket = _bucket(buckets, record)
    at = bucket.find(record)
    while at % RECORD_BYTES and at >= 0:
        at = bucket.find(record, at + 1)
    return at >= 0


def _split(buckets: list[bytearray]) -> list[bytearray]:
    """Return twice as many buckets with the same records."""
    split = [bytearray() for _ in range(2 * len(buckets))]
    for bucket in buckets:
        for start in range(0, len(bucket), RECORD_BYTES):
            record = bytes(bucket[start : start + RECORD_BYTES])
            _bucket(split, record).extend(record)
    return split

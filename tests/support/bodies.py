"""Response bodies of the fake registry: bytes in memory, or large bodies that are generated while they are sent.

A body is the same however often and from whatever offset it is read, so a client can compare what arrives with
`pieces()` instead of storing or hashing it.
"""

import hashlib
import random
from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import Protocol

PIECE_BYTES = 1024 * 1024


class Body(Protocol):
    """Bytes of a known size that can be read from any offset."""

    @property
    def size(self) -> int:
        """Size in bytes."""

    @property
    def digest(self) -> str:
        """The sha256 digest, `sha256:<hex>`."""

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`, in pieces of at most `PIECE_BYTES`."""


class Bytes:
    """A body that is held in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        return len(self.data)

    @cached_property
    def digest(self) -> str:
        return digest_of(self.data)

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        stop = min(stop, self.size)
        for at in range(start, stop, PIECE_BYTES):
            yield self.data[at : min(at + PIECE_BYTES, stop)]


class Synthetic:
    """A large body that repeats one random block; each repetition begins with its own number.

    Gigabytes cost one mebibyte of memory, and a block in the wrong position is detected. Bodies with the same seed
    share the block; `first`, the number of the first repetition, tells them apart.
    """

    def __init__(self, size: int, seed: int = 1, first: int = 0) -> None:
        self.size = size
        self._first = first
        self._block = _random_block(seed)

    @cached_property
    def digest(self) -> str:
        hasher = hashlib.sha256()
        for piece in self.pieces(0, self.size):
            hasher.update(piece)
        return f"sha256:{hasher.hexdigest()}"

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        stop = min(stop, self.size)
        tail = memoryview(self._block)[8:]
        while start < stop:
            number, offset = divmod(start, PIECE_BYTES)
            upto = min(PIECE_BYTES, offset + stop - start)
            block = b"".join(((self._first + number).to_bytes(8, "big"), tail))
            yield block if upto - offset == PIECE_BYTES else block[offset:upto]
            start += upto - offset


class Flipped:
    """Another body with one bit flipped, and with the digest of the correct bytes."""

    def __init__(self, body: Body, at: int) -> None:
        self.size = body.size
        self.digest = body.digest
        self._body = body
        self._at = at

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        for piece in self._body.pieces(start, stop):
            if start <= self._at < start + len(piece):
                wrong = bytearray(piece)
                wrong[self._at - start] ^= 1
                yield bytes(wrong)
            else:
                yield piece
            start += len(piece)


class Endless:
    """A body that never ends: for limits on what is read."""

    digest = "sha256:" + "0" * 64

    def __init__(self, block: bytes) -> None:
        self.size = 1 << 50
        self._block = block

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            yield self._block
            start += len(self._block)


@lru_cache(4)
def _random_block(seed: int) -> bytes:
    return random.Random(seed).randbytes(PIECE_BYTES)


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of `data`."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def read_whole(body: Body) -> bytes:
    """The body as bytes; for small bodies."""
    return b"".join(body.pieces(0, body.size))

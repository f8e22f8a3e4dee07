"""Which pieces of a partial file are present, when they do not come in order. Blocking.

A *piece* is PIECE_BYTES of a blob at an offset that is a multiple of that; the last one may be shorter. The map is kept
behind the last byte of the blob in the partial file itself, so that the two cannot be separated:

    bytes 0 to size     the blob, with holes
    then                one bit for each piece, the lowest bit of each byte first
    then 16 bytes       _MAGIC, and the size of the blob (8 bytes, little-endian)

A process that is killed leaves a map that is true: a piece is marked after its bytes were written.
"""

import os
import struct
from typing import Final

PIECE_BYTES: Final = 1024 * 1024
_MAGIC: Final = b"dyPIECES"
_END: Final = struct.Struct("<8sQ")
_FULL_BYTE: Final = 0xFF


class PieceMap:
    """The pieces of a blob of `size` bytes. One writer; readers of other threads may see a piece a moment late."""

    def __init__(self, size: int, bits: bytes = b"") -> None:
        self.size = size
        self.count = _divide_up(size, PIECE_BYTES)
        self._bits = bytearray(bits or _divide_up(self.count, 8))
        self._ends: dict[int, int] = {}  # of pieces of which only the first bytes are present; not in the file

    @classmethod
    def of_front(cls, size: int, front: int) -> "PieceMap":
        """The map of a file that has everything up to `front`, and nothing else."""
        pieces = cls(size)
        pieces.mark(0, front)
        return pieces

    @classmethod
    def read(cls, fd: int) -> "PieceMap | None":
        """Read the map of a partial file; None when it has none. Raises OSError."""
        length = os.fstat(fd).st_size
        end = os.pread(fd, _END.size, max(length - _END.size, 0))
        if len(end) < _END.size:
            return None
        magic, size = _END.unpack(end)
        bits_bytes = _divide_up(_divide_up(size, PIECE_BYTES), 8)
        if magic != _MAGIC or not size or length != size + bits_bytes + _END.size:
            return None
        return cls(size, os.pread(fd, bits_bytes, size))

    def write(self, fd: int) -> None:
        """Write the whole map into the partial file. Raises OSError."""
        data = bytes(self._bits) + _END.pack(_MAGIC, self.size)
        if os.pwrite(fd, data, self.size) != len(data):
            raise OSError("the map of the pieces was not written completely")

    def has(self, piece: int) -> bool:
        """Whether a piece is present."""
        return bool(self._bits[piece >> 3] & (1 << (piece & 7)))

    def mark(self, start: int, stop: int) -> None:
        """Mark all pieces that end in this part of the blob, which begins at a piece, as present. Not in the file."""
        for piece in self.find_ending(start, stop):
            self._bits[piece >> 3] |= 1 << (piece & 7)
        self.mark_end(stop)

    def find_ending(self, start: int, stop: int) -> range:
        """The pieces that end in this part of the blob."""
        return range(start // PIECE_BYTES, self.count if stop == self.size else stop // PIECE_BYTES)

    def mark_end(self, stop: int) -> None:
        """The first bytes of the piece before `stop` are present up to there."""
        if stop % PIECE_BYTES and stop != self.size:
            self._ends[stop // PIECE_BYTES] = stop

    def add(self, piece: int, fd: int) -> None:
        """Mark a piece as present, in the partial file too. Raises OSError."""
        self._bits[piece >> 3] |= 1 << (piece & 7)
        self._ends.pop(piece, None)
        os.pwrite(fd, self._bits[piece >> 3 : (piece >> 3) + 1], self.size + (piece >> 3))

    def forget_from(self, piece: int, fd: int) -> None:
        """Mark this piece and all that follow as missing. Raises OSError."""
        self._ends.clear()
        first = piece >> 3
        for index in range(first, len(self._bits)):
            self._bits[index] &= (1 << (piece & 7)) - 1 if index == first else 0
        os.pwrite(fd, self._bits[first:], self.size + first)

    def find_end_of_run(self, position: int) -> int:
        """Up to which byte everything from `position` on is present; `position` itself when its piece is missing."""
        piece = position // PIECE_BYTES
        if piece >= self.count or not self.has(piece):
            return position
        while piece < self.count and self.has(piece):
            is_byte_full = not piece & 7 and self._bits[piece >> 3] == _FULL_BYTE
            piece += 8 if is_byte_full else 1
        return max(min(piece * PIECE_BYTES, self.size), position)

    def find_readable_end(self, position: int) -> int:
        """Up to which byte everything from `position` on may be read: as above, and the first bytes of a piece."""
        end = self.find_end_of_run(position)
        return max(end, self._ends.get(end // PIECE_BYTES, 0))

    @property
    def present_bytes(self) -> int:
        """How many bytes are present."""
        count = int.from_bytes(self._bits).bit_count()
        last = self.count - 1
        missing_of_last = self.count * PIECE_BYTES - self.size if count and self.has(last) else 0
        return count * PIECE_BYTES - missing_of_last


def start_of_piece(position: int) -> int:
    """Where the piece with this byte begins."""
    return position // PIECE_BYTES * PIECE_BYTES


def end_of_piece(position: int) -> int:
    """The first end of a piece that is not before this position, as if the last piece were whole."""
    return _divide_up(position, PIECE_BYTES) * PIECE_BYTES


def _divide_up(number: int, divisor: int) -> int:
    return -(-number // divisor)

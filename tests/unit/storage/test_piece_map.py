"""The map of the pieces of a partial file that was not received in order."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.storage.piece_map import PIECE_BYTES, PieceMap

SIZE = 20 * PIECE_BYTES + 5


def open_file(path: Path) -> int:
    """A partial file without content."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)


@given(
    st.integers(1, 40 * PIECE_BYTES),
    st.sets(st.integers(0, 39)),
    st.integers(0, 40 * PIECE_BYTES),
)
def test_runs_end_where_the_first_missing_piece_begins(size: int, present: set[int], position: int) -> None:
    """The end of a run is what one finds by looking at each byte."""
    pieces = PieceMap(size)
    for piece in present:
        if piece < pieces.count:
            pieces.mark(piece * PIECE_BYTES, min((piece + 1) * PIECE_BYTES, size))
    expected = position
    while expected < size and expected // PIECE_BYTES in present:
        expected = min((expected // PIECE_BYTES + 1) * PIECE_BYTES, size)
    assert pieces.find_end_of_run(position) == expected
    total = sum(min((piece + 1) * PIECE_BYTES, size) - piece * PIECE_BYTES for piece in present if piece < pieces.count)
    assert pieces.present_bytes == total


@pytest.mark.parametrize("front", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 9 * PIECE_BYTES + 7, SIZE - 1, SIZE])
def test_the_front_counts_in_whole_pieces(front: int) -> None:
    """Of the piece at the front a part is missing, but not at the end of the blob."""
    pieces = PieceMap.of_front(SIZE, front)
    assert pieces.find_end_of_run(0) == (SIZE if front == SIZE else front // PIECE_BYTES * PIECE_BYTES)


def test_a_map_is_read_again(tmp_path: Path) -> None:
    """What was marked is in the file at once, also in a map that was read."""
    fd = open_file(tmp_path / "partial")
    pieces = PieceMap.of_front(SIZE, 2 * PIECE_BYTES)
    pieces.write(fd)
    pieces.add(7, fd)
    pieces.add(20, fd)
    found = PieceMap.read(fd)
    assert found
    assert found.size == SIZE
    assert [piece for piece in range(found.count) if found.has(piece)] == [0, 1, 7, 20]
    found.forget_from(7, fd)
    again = PieceMap.read(fd)
    assert again
    assert [piece for piece in range(again.count) if again.has(piece)] == [0, 1]


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"dyPIECES" + bytes(8), bytes(7) + b"dyPIECES" + b"\xff" * 8])
def test_a_file_without_a_map_has_none(tmp_path: Path, content: bytes) -> None:
    """A partial file that was received in order, whatever its last bytes are."""
    fd = open_file(tmp_path / "partial")
    os.write(fd, content)
    assert PieceMap.read(fd) is None


def test_a_map_that_was_cut_is_none(tmp_path: Path) -> None:
    """A map of which a part is missing says nothing about what is present."""
    fd = open_file(tmp_path / "partial")
    PieceMap.of_front(SIZE, SIZE).write(fd)
    os.ftruncate(fd, os.fstat(fd).st_size - 1)
    assert PieceMap.read(fd) is None


def test_the_first_bytes_of_a_piece_may_be_read(tmp_path: Path) -> None:
    """Readers need not wait until a piece is complete; the next writer does not count its first bytes."""
    fd = open_file(tmp_path / "partial")
    pieces = PieceMap(SIZE)
    pieces.write(fd)
    pieces.mark(3 * PIECE_BYTES, 4 * PIECE_BYTES + 100)
    assert pieces.find_readable_end(3 * PIECE_BYTES + 5) == 4 * PIECE_BYTES + 100
    assert pieces.find_readable_end(4 * PIECE_BYTES + 99) == 4 * PIECE_BYTES + 100
    assert pieces.find_readable_end(4 * PIECE_BYTES + 100) == 4 * PIECE_BYTES + 100
    assert pieces.find_readable_end(5 * PIECE_BYTES) == 5 * PIECE_BYTES
    assert pieces.find_end_of_run(3 * PIECE_BYTES + 5) == 4 * PIECE_BYTES
    pieces.add(4, fd)
    assert pieces.find_readable_end(3 * PIECE_BYTES) == 5 * PIECE_BYTES
    pieces.mark_end(6 * PIECE_BYTES + 1)
    pieces.forget_from(0, fd)
    assert pieces.find_readable_end(6 * PIECE_BYTES) == 6 * PIECE_BYTES

"""Section U of the matrix: each fault of an upstream, in each state."""

from tests.chaos.cells import Record
from tests.chaos.upstream import FAULTS

__all__ = ["FAULTS"]


def test_cell(cell: Record) -> None:
    """What the clients saw, what it cost and what was left is what the matrix says."""
    assert cell.problems == [], f"{cell.cell}: expected {cell.expected}, seen {cell.seen}"

"""Sections U, S and P of the matrix: each fault in each state."""

from tests.chaos.engine.records import Record


def test_case(record: Record) -> None:
    """What the clients saw, what it cost upstream and what was left behind is what the matrix says."""
    assert record.problems == [], f"{record.case}: expected {record.expected}, seen {record.seen}"

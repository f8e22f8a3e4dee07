"""Section P of the matrix, workers: each fault, in each state."""

from collections.abc import Callable

import pytest

from tests.chaos.cells import Record, State
from tests.chaos.scenes import Fault, Plot, run
from tests.chaos.worker_plots import FAULTS

__all__ = ["FAULTS"]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Fault, Plot], dict[State, Record]]:
    """Give the records of a variant; the first who asks has it played."""
    plays: dict[tuple[str, str], dict[State, Record]] = {}

    def of(fault: Fault, plot: Plot) -> dict[State, Record]:
        key = (fault.id, plot.name)
        if key not in plays:
            plays[key] = run(fault, plot, tmp_path_factory.mktemp(fault.id))
        return plays[key]

    return of


def test_cell(cell: Record) -> None:
    """What the clients saw, what it cost and what was left is what the matrix says."""
    assert cell.problems == [], f"{cell.cell}: expected {cell.expected}, seen {cell.seen}"

"""Section S of the matrix: each fault of the store and of the disk, in each state."""

import contextlib
from collections.abc import Callable

import pytest

from tests.bucket.place import Place
from tests.chaos.bucket_outages import FAULTS
from tests.chaos.cells import Record, State
from tests.chaos.scenes import Fault, Plot, run
from tests.rig.toxiproxy import Toxiproxy
from tests.stores.conftest import minio
from tests.stores.servers import Server

__all__ = ["FAULTS", "minio"]


@pytest.fixture(scope="session")
def told(
    minio: Server, toxiproxy: Toxiproxy, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Fault, Plot], dict[State, Record]]:
    """Give the records of a variant; the first who asks has it played."""
    plays: dict[tuple[str, str], dict[State, Record]] = {}

    def of(fault: Fault, plot: Plot) -> dict[State, Record]:
        key = (fault.id, plot.name)
        if key not in plays:
            with contextlib.closing(Place(minio)) as place:
                place.make()
                directory = tmp_path_factory.mktemp(fault.id)
                plays[key] = run(fault, plot, directory, toxiproxy=toxiproxy, place=place)
        return plays[key]

    return of


def test_cell(cell: Record) -> None:
    """What the clients saw, what it cost and what was left is what the matrix says."""
    assert cell.problems == [], f"{cell.cell}: expected {cell.expected}, seen {cell.seen}"

"""Sections S and P of the matrix: each fault of the store, the disk, the processes, the clients and the clock."""

import contextlib
from collections.abc import Callable

import pytest

from tests.chaos import (
    bucket_damage,
    bucket_outages,
    bucket_puts,
    bucket_reads,
    client_plots,
    clock_plots,
    disk_plots,
    ending_plots,
    leaving_plots,
    worker_plots,
)
from tests.chaos.cells import Record, State
from tests.chaos.scenes import Fault, Plot, run
from tests.s3.service.bucket_view import BucketView

FAULTS = (
    *bucket_outages.FAULTS,
    *bucket_puts.FAULTS,
    *bucket_reads.FAULTS,
    *bucket_damage.FAULTS,
    *disk_plots.FAULTS,
    *worker_plots.FAULTS,
    *ending_plots.FAULTS,
    *leaving_plots.FAULTS,
    *client_plots.FAULTS,
    *clock_plots.FAULTS,
)


@pytest.fixture(scope="session")
def told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Fault, Plot], dict[State, Record]]:
    """Give the records of a variant; the first who asks has it played."""
    plays: dict[tuple[str, str], dict[State, Record]] = {}

    def play(fault: Fault, plot: Plot) -> dict[State, Record]:
        directory = tmp_path_factory.mktemp(fault.id)
        if not plot.has_bucket:
            return run(fault, plot, directory)
        minio, toxiproxy = (request.getfixturevalue(name) for name in ("minio", "toxiproxy"))
        with contextlib.closing(BucketView(minio)) as place:
            place.make()
            return run(fault, plot, directory, toxiproxy=toxiproxy, place=place)

    def of(fault: Fault, plot: Plot) -> dict[State, Record]:
        key = (fault.id, plot.name)
        if key not in plays:
            plays[key] = play(fault, plot)
        return plays[key]

    return of


def test_cell(cell: Record) -> None:
    """What the clients saw, what it cost and what was left is what the matrix says."""
    assert cell.problems == [], f"{cell.cell}: expected {cell.expected}, seen {cell.seen}"

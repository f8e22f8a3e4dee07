"""The matrix as tests: one item per cell, one run per variant of a fault, one line per cell in the records.

pytest tests/chaos -n 3                  the first variant of each fault
pytest tests/chaos --chaos-variants all ...               every variant
pytest tests/chaos --chaos-records FILE ...               add the records to a file
python -m tests.chaos.report FILE                         make ops/FAULTS.md of it
pytest tests/chaos -m long                                full load, the tag's history and random faults: an hour
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.chaos.cells import Record, State, append_record
from tests.chaos.loads import KeepLoad, kept
from tests.chaos.runs import run
from tests.chaos.stories import Fault, Trouble
from tests.chaos.town_fixtures import make_town, minio
from tests.s3.service.conftest import bucket_view, proxy, start
from tests.support.deployment_fixtures import fake_registry, make_deployment
from tests.support.toxiproxy import Toxiproxy

__all__ = ["bucket_view", "fake_registry", "make_deployment", "make_town", "minio", "proxy", "start"]

RECORDS = "DOCKYARD_CHAOS_RECORDS"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say which variants, and where the records go."""
    parser.addoption("--chaos-variants", choices=["first", "all"], default="first", help="which variants of each fault")
    parser.addoption("--chaos-records", default=os.environ.get(RECORDS), help=f"file of the records (or {RECORDS})")


class ByRun(LoadScopeScheduling):
    """One process for all cells of a run. (pytest 9.2 does not show xdist the groups that items are marked with.)"""

    def _split_scope(self, nodeid: str) -> str:
        run_name, dash, _ = nodeid.rpartition("-")  # the state has no dash in it
        return run_name if dash else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByRun:
    """Deal the cells out by run."""
    return ByRun(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark of what has a command of its own."""
    config.addinivalue_line("markers", "long: minutes of load or of random faults; only with -m long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is long, unless it is asked for."""
    if "long" not in config.getoption("-m"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One item per cell of `FAULTS` of the test's module."""
    if "cell_of" not in metafunc.fixturenames:
        return
    wants_all = metafunc.config.getoption("--chaos-variants", default="first") == "all"
    cells = []
    for fault in metafunc.module.FAULTS:
        for trouble in fault.variants if wants_all else fault.variants[:1]:
            name = f"{fault.id}-{trouble.name}"
            cells += [
                pytest.param((fault, trouble, state), id=f"{name}-{state}".replace(" ", "_"))
                for state in trouble.outcomes
            ]
    metafunc.parametrize("cell_of", cells)


@pytest.fixture(scope="session")
def told(
    toxiproxy: Toxiproxy, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Fault, Trouble], dict[State, Record]]:
    """Give the records of a variant's run; the first who asks has it run."""
    runs: dict[tuple[str, str], dict[State, Record]] = {}

    def of(fault: Fault, trouble: Trouble) -> dict[State, Record]:
        key = (fault.id, trouble.name)
        if key not in runs:
            runs[key] = run(fault, trouble, toxiproxy, tmp_path_factory.mktemp(fault.id))
        return runs[key]

    return of


@pytest.fixture
def keep_record(request: pytest.FixtureRequest) -> Callable[[Record], None]:
    """Keep the record of a cell in the file of the records, if there is one."""
    path = request.config.getoption("--chaos-records", default=None)

    def keep(record: Record) -> None:
        if path:
            append_record(Path(path), record)

    return keep


@pytest.fixture
def keep_load(keep_record: Callable[[Record], None]) -> KeepLoad:
    """Keep the records of cells of section L."""
    return partial(kept, keep_record)


@pytest.fixture
def cell(
    cell_of: tuple[Fault, Trouble, State],
    told: Callable[[Fault, Trouble], dict[State, Record]],
    keep_record: Callable[[Record], None],
) -> Record:
    """Give what came of a cell."""
    fault, trouble, state = cell_of
    record = told(fault, trouble)[state]
    keep_record(record)
    return record

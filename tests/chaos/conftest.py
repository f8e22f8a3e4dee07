"""The matrix as tests: one test per case, one run per variant of a fault, one line per case in the records.

pytest tests/chaos -n 3                         the first variant of each fault
pytest tests/chaos --chaos-variants all ...     every variant
pytest tests/chaos --chaos-records FILE ...     append the records to a file
python -m tests.chaos.report FILE               make ops/FAULTS.md from it
pytest tests/chaos -m long                      full load, tag history and random faults: an hour
"""

import contextlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.chaos.engine.case import State
from tests.chaos.engine.records import Record, append_record
from tests.chaos.engine.runner import run_variant
from tests.chaos.engine.variant import Fault, InjectedVariant, UpstreamVariant
from tests.chaos.faults import FAULTS
from tests.chaos.load.loads import RecordLoad, record_load_cases
from tests.chaos.random_faults.fixtures import make_system, minio
from tests.s3.service.bucket_view import BucketView
from tests.s3.service.conftest import bucket_view, proxy, start
from tests.support.deployment_fixtures import fake_registry, make_deployment
from tests.support.toxiproxy import Toxiproxy

__all__ = ["bucket_view", "fake_registry", "make_deployment", "make_system", "minio", "proxy", "start"]

RECORDS = "DOCKYARD_CHAOS_RECORDS"
RunCase = Callable[[Fault, InjectedVariant, State], Record]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for variants and records."""
    parser.addoption("--chaos-variants", choices=["first", "all"], default="first", help="which variants of each fault")
    parser.addoption("--chaos-records", default=os.environ.get(RECORDS), help=f"file of the records (or {RECORDS})")


class ByVariant(LoadScopeScheduling):
    """Run all cases of a variant in one process. (xdist does not get the groups that items are marked with.)"""

    def _split_scope(self, nodeid: str) -> str:
        variant, dash, _ = nodeid.rpartition("-")  # names of states have no dash
        return variant if dash else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByVariant:
    """Distribute the cases by variant."""
    return ByVariant(config, log)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per case."""
    if "case_of" not in metafunc.fixturenames:
        return
    wants_all = metafunc.config.getoption("--chaos-variants", default="first") == "all"
    cases = []
    for fault in FAULTS:
        for variant in fault.variants if wants_all else fault.variants[:1]:
            name = f"{fault.id}-{variant.name}"
            cases += [
                pytest.param((fault, variant, state), id=f"{name}-{state}".replace(" ", "_"))
                for state in variant.outcomes
            ]
    metafunc.parametrize("case_of", cases)


@pytest.fixture(scope="session")
def run_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunCase:
    """Give a function that returns the record of a case; the first call for a variant runs all its cases."""
    results: dict[tuple[str, str], dict[State, Record]] = {}

    def run(fault: Fault, variant: InjectedVariant) -> dict[State, Record]:
        directory = tmp_path_factory.mktemp(fault.id)
        if not (variant.has_bucket or isinstance(variant, UpstreamVariant)):
            return run_variant(fault, variant, directory)
        toxiproxy: Toxiproxy = request.getfixturevalue("toxiproxy")
        if not variant.has_bucket:
            return run_variant(fault, variant, directory, toxiproxy=toxiproxy)
        with contextlib.closing(BucketView(request.getfixturevalue("minio"))) as bucket:
            bucket.make()
            return run_variant(fault, variant, directory, toxiproxy=toxiproxy, bucket=bucket)

    def run_once(fault: Fault, variant: InjectedVariant, state: State) -> Record:
        key = (fault.id, variant.name)
        if key not in results:
            results[key] = run(fault, variant)
        return results[key][state]

    return run_once


@pytest.fixture
def keep_record(request: pytest.FixtureRequest) -> Callable[[Record], None]:
    """Give a function that appends a record to the file of records, if there is one."""
    path = request.config.getoption("--chaos-records", default=None)

    def keep(record: Record) -> None:
        if path:
            append_record(Path(path), record)

    return keep


@pytest.fixture
def record_load(keep_record: Callable[[Record], None]) -> RecordLoad:
    """Give `record_load_cases` for the file of records."""
    return partial(record_load_cases, keep_record)


@pytest.fixture
def record(
    case_of: tuple[Fault, InjectedVariant, State], run_case: RunCase, keep_record: Callable[[Record], None]
) -> Record:
    """Give the record of a case."""
    record = run_case(*case_of)
    keep_record(record)
    return record

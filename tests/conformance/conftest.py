"""Fixtures: the conformance suite, and its results with the upstreams themselves."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.suite import Outcome, run_suite
from tests.support.distribution import DistributionRegistry
from tests.support.olareg import Olareg
from tests.support.olareg_fixtures import olareg
from tests.support.programs import Programs

__all__ = ["olareg", "run_directly", "suite"]


@pytest.fixture(scope="session")
def suite(programs: Programs) -> Path:
    """The conformance suite."""
    return programs.need("oci-conformance")


@pytest.fixture(scope="session")
def run_directly(
    suite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[DistributionRegistry | Olareg], Outcome]:
    """Run the suite against an upstream itself, once per upstream."""
    known: dict[str, Outcome] = {}

    def run(upstream: DistributionRegistry | Olareg) -> Outcome:
        if upstream.host not in known:
            known[upstream.host] = run_suite(
                suite, upstream.host, tmp_path_factory.mktemp("suite") / "run_directly", {}
            )
        return known[upstream.host]

    return run

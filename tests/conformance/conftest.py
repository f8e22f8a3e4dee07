"""The upstreams of the conformance suite, and what the suite says of each of them itself."""

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
    """What the suite says of an upstream itself; each is asked once."""
    known: dict[str, Outcome] = {}

    def ask(upstream: DistributionRegistry | Olareg) -> Outcome:
        if upstream.host not in known:
            known[upstream.host] = run_suite(
                suite, upstream.host, tmp_path_factory.mktemp("suite") / "run_directly", {}
            )
        return known[upstream.host]

    return ask

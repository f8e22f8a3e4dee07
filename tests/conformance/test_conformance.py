"""The conformance suite of the OCI distribution specification, with its reads through Dockyard.

Dockyard may fail no check that the upstream itself passes. The upstreams are distribution, which has neither referrers
nor sha512 (Dockyard then provides the referrers API itself), and olareg, which has both and fails no check.
"""

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.read_write_proxy import Backend, ReadWriteProxy
from tests.conformance.suite import Outcome, run_suite
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub
from tests.support.olareg import Olareg

pytestmark = pytest.mark.clients

MIN_CHECKS = 590


@pytest.fixture(params=["registry", "olareg"])
def upstream(request: pytest.FixtureRequest) -> DistributionRegistry | Olareg:
    """Each of the upstreams."""
    found: DistributionRegistry | Olareg = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(("workers", "path"), [(1, ""), (4, "/docker.io")], ids=["1-U5", "4-U3"])
def test_reads_through_dockyard_pass_the_same_checks(
    upstream: DistributionRegistry | Olareg,
    workers: int,
    path: str,
    suite: Path,
    run_directly: Callable[[DistributionRegistry | Olareg], Outcome],
    start_dockyard: Callable[..., Dockyard],
    tmp_path: Path,
) -> None:
    """With a cold cache, and with everything cached; at the root and below the path of a mirror."""
    direct = run_directly(upstream)
    dockyard = start_dockyard([docker_hub(upstream)], workers=workers)
    for temperature in ("cold", "warm"):
        name = f"conformance/{secrets.token_hex(4)}"
        repositories = {"OCI_REPO1": f"{name}/one", "OCI_REPO2": f"{name}/two"}
        with ReadWriteProxy(
            Backend(upstream.port), Backend(dockyard.port, path), is_warm=temperature == "warm"
        ) as proxy:
            through = run_suite(suite, proxy.address, tmp_path / temperature, repositories)
        assert not through.failed - direct.failed, f"{temperature}\n{through.messages}"
        assert through.count == direct.count >= MIN_CHECKS
        assert proxy.counts.reads > 500


def test_olareg_passes_all_checks(
    olareg: Olareg, run_directly: Callable[[DistributionRegistry | Olareg], Outcome]
) -> None:
    """Its result covers all of the specification: sha512, referrers and lists among the rest."""
    outcome = run_directly(olareg)
    assert outcome.failed.total() == 0
    for word in ("sha512", "referrers", "list", "range"):
        assert [name for name in outcome.passed if word in name], word

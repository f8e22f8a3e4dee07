"""Benchmarks of real workers with a real upstream: warm content, a running download, cold content."""

import contextlib
import http.client
import itertools
import threading
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import BenchServer
from bench.peers import discard
from bench.peers.content import ACCEPT, REPOSITORY, Blob
from bench.peers.load import check
from bench.peers.workload import MIB
from tests.support.bodies import Synthetic
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.faults import stalled

WARM_BYTES = 64 * MIB
COLD_BYTES = 16 * MIB
STALLED_BYTES = 16 * MIB
JOINED_BYTES = 8 * MIB
COLD_ROUNDS = 10


def _blob_path(digest: str) -> str:
    return f"/v2/up.test/{REPOSITORY}/blobs/{digest}"


@pytest.mark.parametrize("clients", [1, 16])
def test_warm_blob(benchmark: BenchmarkFixture, server: BenchServer, clients: int) -> None:
    """A blob in the local store."""
    blob = server.content.add_blob(WARM_BYTES // clients)
    check(server.dockyard.port, _blob_path(blob.digest), blob)
    plan = {
        "port": server.dockyard.port,
        "clients": [[(_blob_path(blob.digest), blob.size)]] * clients,
    }
    server.upstream.reset_counts()
    assert benchmark(discard.run, plan)["received"] == WARM_BYTES
    assert server.upstream.count_requests().gets == 0


@pytest.mark.parametrize("by", ["digest", "tag"])
def test_warm_manifest(benchmark: BenchmarkFixture, server: BenchServer, by: str) -> None:
    """A cached manifest, over one connection; by tag the upstream is checked for each request."""
    image = server.content.add_image(f"warm-{by}", (1024,))
    reference = image.index.digest if by == "digest" else image.tag
    path = f"/v2/up.test/{REPOSITORY}/manifests/{reference}"
    check(server.dockyard.port, path, image.index)
    server.upstream.reset_counts()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.dockyard.port, timeout=10)) as connection:

        def get() -> int:
            connection.request("GET", path, headers={"Accept": ACCEPT})
            return len(connection.getresponse().read())

        assert benchmark(get) == image.index.size
    counts = server.upstream.count_requests(containing=reference)
    assert counts.gets == 0
    assert (counts.heads > 0) == (by == "tag")


def test_joined_read(
    benchmark: BenchmarkFixture, fake_registry: FakeRegistry, make_deployment: Callable[..., Deployment]
) -> None:
    """The first half of a layer, whose download has stalled after it."""
    body = Synthetic(STALLED_BYTES)
    release = threading.Event()
    fake_registry.on("blob", stalled(STALLED_BYTES - MIB, release))
    digest = fake_registry.add_blob(body)
    deployment = make_deployment(workers=2)
    path = _blob_path(digest)
    plan = {
        "port": deployment.dockyard.port,
        "clients": [[(path, JOINED_BYTES)]],
        "range": f"bytes=0-{JOINED_BYTES - 1}",
    }
    with deployment.stream(path), set_at_exit(release):
        eventually(lambda: fake_registry.exchanges, "a download has started")
        assert benchmark(discard.run, plan)["received"] == JOINED_BYTES
    assert len([exchange for exchange in fake_registry.exchanges if exchange.request.method == "GET"]) == 1


def test_cold_blob(benchmark: BenchmarkFixture, server: BenchServer) -> None:
    """A layer that is not cached: downloaded, verified, stored and sent to one client."""
    made = itertools.count()

    def plan() -> tuple[tuple[dict[str, object]], dict[str, object]]:
        next(made)
        blob: Blob = server.content.add_blob(COLD_BYTES)
        return ({"port": server.dockyard.port, "clients": [[(_blob_path(blob.digest), blob.size)]]},), {}

    server.upstream.reset_counts()
    result = benchmark.pedantic(discard.run, setup=plan, rounds=COLD_ROUNDS)
    assert result["received"] == COLD_BYTES
    assert server.upstream.count_requests(containing="/blobs/").gets == next(made)

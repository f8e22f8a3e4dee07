"""Real workers before a real upstream: what is warm, what is being fetched, what is cold."""

import contextlib
import http.client
import itertools
import threading
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import Yard
from bench.peers import discard
from bench.peers.load import ACCEPT, check
from bench.peers.place import MIB
from bench.peers.truth import REPOSITORY, Blob
from tests.support.bodies import Synthetic
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.faults import stalled

WARM_BYTES = 64 * MIB
COLD_BYTES = 16 * MIB
HELD_BYTES = 16 * MIB
JOINED_BYTES = 8 * MIB
COLD_ROUNDS = 10


def _blob_path(digest: str) -> str:
    return f"/v2/up.test/{REPOSITORY}/blobs/{digest}"


@pytest.mark.parametrize("clients", [1, 16])
def test_warm_blob(benchmark: BenchmarkFixture, yard: Yard, clients: int) -> None:
    """A blob that the local store has."""
    blob = yard.truth.add_blob(WARM_BYTES // clients)
    check(yard.dockyard.port, _blob_path(blob.digest), blob)
    plan = {"port": yard.dockyard.port, "clients": [[(_blob_path(blob.digest), blob.size)]] * clients}
    yard.upstream.forget()
    assert benchmark(discard.run, plan)["received"] == WARM_BYTES
    assert yard.upstream.asked().gets == 0


@pytest.mark.parametrize("by", ["digest", "tag"])
def test_warm_manifest(benchmark: BenchmarkFixture, yard: Yard, by: str) -> None:
    """A manifest that is known, over one connection; by tag the upstream is asked each time."""
    image = yard.truth.add_image(f"warm-{by}", (1024,))
    reference = image.index.digest if by == "digest" else image.tag
    path = f"/v2/up.test/{REPOSITORY}/manifests/{reference}"
    check(yard.dockyard.port, path, image.index)
    yard.upstream.forget()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", yard.dockyard.port, timeout=10)) as connection:

        def get() -> int:
            connection.request("GET", path, headers={"Accept": ACCEPT})
            return len(connection.getresponse().read())

        assert benchmark(get) == image.index.size
    asked = yard.upstream.asked(containing=reference)
    assert asked.gets == 0
    assert (asked.heads > 0) == (by == "tag")


def test_joined_read(
    benchmark: BenchmarkFixture, fake_registry: FakeRegistry, make_deployment: Callable[..., Deployment]
) -> None:
    """The first half of a layer whose fetch has come that far and stands still."""
    body = Synthetic(HELD_BYTES)
    release = threading.Event()
    fake_registry.on("blob", stalled(HELD_BYTES - MIB, release))
    digest = fake_registry.add_blob(body)
    deployment = make_deployment(workers=2)
    path = _blob_path(digest)
    plan = {
        "port": deployment.dockyard.port,
        "clients": [[(path, JOINED_BYTES)]],
        "range": f"bytes=0-{JOINED_BYTES - 1}",
    }
    with deployment.stream(path), set_at_exit(release):
        eventually(lambda: fake_registry.exchanges, "a fetch has begun")
        assert benchmark(discard.run, plan)["received"] == JOINED_BYTES
    assert len([exchange for exchange in fake_registry.exchanges if exchange.request.method == "GET"]) == 1


def test_cold_fill(benchmark: BenchmarkFixture, yard: Yard) -> None:
    """A layer that nobody has, fetched, checked, kept and given to one client."""
    made = itertools.count()

    def plan() -> tuple[tuple[dict[str, object]], dict[str, object]]:
        next(made)
        blob: Blob = yard.truth.add_blob(COLD_BYTES)
        return ({"port": yard.dockyard.port, "clients": [[(_blob_path(blob.digest), blob.size)]]},), {}

    yard.upstream.forget()
    result = benchmark.pedantic(discard.run, setup=plan, rounds=COLD_ROUNDS)
    assert result["received"] == COLD_BYTES
    assert yard.upstream.asked(containing="/blobs/").gets == next(made)

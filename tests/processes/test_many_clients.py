"""Many clients, few workers, one layer: one download, bounded memory, no client delayed by another."""

import threading
import time
from collections.abc import Callable
from random import Random

import pytest

from tests.support import faults
from tests.support.bodies import Bytes, Synthetic
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.worker_state import MemorySampler

MIB = 1024 * 1024
MEMORY_LIMIT = 384 * MIB


def test_two_hundred_clients_on_one_cold_layer(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Four workers: one GET upstream, every first byte before the download ends, right bytes, bounded memory."""
    content = Bytes(Random(1).randbytes(24 * MIB))
    digest = fake_registry.add_blob(content)
    deployment = make_deployment(workers=4)
    eventually(lambda: len(deployment.dockyard.worker_pids()) == 4, "four workers")
    with set_at_exit(threading.Event()) as go_on, MemorySampler(deployment) as memory:
        fake_registry.on("blob", faults.stalled(0.5, go_on))
        with deployment.crowd(f"/v2/up.test/app/blobs/{digest}", content, 200) as crowd:
            crowd.run(until=lambda: all(member.first_byte_at for member in crowd.members))
            go_on.set()
            crowd.run()
            assert all(member.is_right for member in crowd.members), crowd.summary()
    assert fake_registry.count("blob", "GET") == 1
    assert fake_registry.sent_bytes("blob") == content.size
    assert len(memory.peaks) == 4
    assert memory.peak < MEMORY_LIMIT


def test_the_memory_of_a_worker_does_not_depend_on_the_layer(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A layer of 5 GiB takes little more memory in a worker than a layer of 50 MiB."""
    small, large = Synthetic(50 * MIB, seed=1), Synthetic(5 * 1024 * MIB, seed=2)
    deployment = make_deployment(upstream={"stall_timeout": "60s"})
    peaks = []
    for content in (small, large):
        path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
        with MemorySampler(deployment) as memory, deployment.stream(path) as download:
            download.head()
            assert download.length == content.size
            assert download.find_mismatch(content) is None
        peaks.append(memory.peak)
    assert peaks[1] < MEMORY_LIMIT
    assert peaks[1] < peaks[0] + 64 * MIB
    eventually(lambda: deployment.stored_files(large.digest), "the large layer is kept")
    assert fake_registry.sent_bytes("blob", reference=large.digest) <= 1.02 * large.size


def test_a_slow_client_does_not_delay_others(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """While one client reads nothing, twenty others get a cold layer whole; then so does the first."""
    content = Bytes(Random(2).randbytes(20 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(workers=1)
    with deployment.stream(path, receive_buffer=4096) as slow:
        assert slow.head().read(10) == content.data[:10]
        with deployment.crowd(path, content, 20) as crowd:
            crowd.run()
            assert all(member.is_right for member in crowd.members), crowd.summary()
        eventually(
            lambda: deployment.stored_files(content.digest), "the layer is stored while one client has read ten bytes"
        )
        body, ended = slow.rest()
        assert (body == content.data[10:], ended) == (True, "length")
    assert fake_registry.count("blob", "GET") == 1


@pytest.mark.parametrize("temperature", ["cold", "warm"])
def test_stalled_clients_cost_little_memory(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, temperature: str
) -> None:
    """A hundred clients that read nothing of a large layer take a bounded amount of memory each."""
    content = Synthetic(100 * MIB)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(workers=1)
    if temperature == "warm":
        with deployment.stream(path) as download:
            download.head().rest()
    with MemorySampler(deployment) as memory:
        stalled = [deployment.stream(path, receive_buffer=4096) for _ in range(100)]
        try:
            for download in stalled:
                assert download.head().status == 200
            began = time.monotonic()
            eventually(lambda: time.monotonic() - began > 1, "one second without reading")
            eventually(lambda: is_within(deployment.get("/v2/").took_s, 0), "full buffers, and others are not delayed")
        finally:
            for download in stalled:
                download.reset()
    assert memory.peak < MEMORY_LIMIT


def test_many_cold_layers_at_once(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """Sixty layers over four workers: each is fetched once, and all are right."""
    bodies = {fake_registry.add_blob(body): body for body in (Random(n).randbytes(300_000) for n in range(60))}
    deployment = make_deployment(workers=4)
    responses = deployment.get_concurrently([f"/v2/up.test/app/blobs/{digest}" for digest in bodies])
    assert [response.body for response in responses] == list(bodies.values())
    assert [fake_registry.count("blob", "GET", reference=digest) for digest in bodies] == [1] * 60

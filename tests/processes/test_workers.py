"""Workers that are killed: one after the other, all at once, and in turns."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random

from tests.support import faults
from tests.support.bodies import Bytes, digest_of
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.worker_state import download_owners

MIB = 1024 * 1024
WORKERS = 4
RECOVERY_S = 2.0


def _full_deployment(make_deployment: Callable[..., Deployment]) -> Deployment:
    deployment = make_deployment(workers=WORKERS)
    deployment.wait_for_workers(WORKERS)
    return deployment


def test_no_connection_is_refused_while_workers_are_killed(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """While workers are killed one after the other, every new connection is accepted and answered in time."""
    warm = f"/v2/up.test/app/blobs/{fake_registry.add_blob(b'a warm blob')}"
    deployment = _full_deployment(make_deployment)
    assert deployment.get(warm).status == 200
    errors = []
    for victim in deployment.dockyard.worker_pids()[:2]:
        os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        while time.monotonic() - killed_at < 1.5:
            try:
                response = deployment.get(warm)
            except ConnectionRefusedError as exc:
                errors.append(exc)
            except OSError:
                continue  # accepted by the worker that was killed
            else:
                assert (response.status, response.body) == (200, b"a warm blob")
        eventually(lambda: len(deployment.dockyard.worker_pids()) == WORKERS, "the worker is replaced")
    assert errors == []


def test_one_request_of_a_download_is_the_miss(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The others have joined it, in whichever worker they are, also those for ranges: hit rates are computed of it."""
    content = Bytes(Random(3).randbytes(4 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = _full_deployment(make_deployment)
    with set_at_exit(threading.Event()) as go_on:
        fake_registry.on("blob", faults.stalled(0.5, go_on))
        with ExitStack() as downloads:
            first = downloads.enter_context(deployment.stream(path))
            assert first.head().read(1000)
            ranges = [{}, {"Range": "bytes=0-"}, {"Range": "bytes=100-199"}] * 8
            others = [downloads.enter_context(deployment.stream(path, **headers)) for headers in ranges]
            for other in others:
                assert other.head().read(100)
            go_on.set()
            for download in (first, *others):
                download.rest()
        counts = {how: deployment.metric("dockyard_requests_total", kind="blob", how=how) for how in ("miss", "joined")}
    assert counts == {"miss": 1, "joined": len(others)}
    assert deployment.metric("dockyard_fills_joined_total") == len(others)


def test_all_processes_are_killed_and_started_again(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """After SIGKILL for all during several downloads: complete content is served, the rest is fetched."""
    warm = fake_registry.add_blob(b"a warm blob")
    cold = [fake_registry.add_blob(Random(n).randbytes(3 * MIB)) for n in range(5)]
    deployment = _full_deployment(make_deployment)
    assert deployment.get(f"/v2/up.test/app/blobs/{warm}").status == 200
    eventually(lambda: deployment.stored_files(warm), "the warm blob is stored")
    with set_at_exit(threading.Event()) as go_on:
        rule = fake_registry.on("blob", faults.stalled(0.5, go_on))
        running = [deployment.stream(f"/v2/up.test/app/blobs/{digest}") for digest in cold]
        for download in running:
            assert download.head().read(1000)
            download.reset()
        assert deployment.partial_files()
        deployment.dockyard.kill()
        fake_registry.remove_rules(rule)
    deployment.dockyard.start()
    count_before = fake_registry.count(reference=warm)
    assert deployment.get(f"/v2/up.test/app/blobs/{warm}").body == b"a warm blob"
    assert fake_registry.count(reference=warm) == count_before
    for digest in cold:
        assert deployment.stored_files(digest) == []
        assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{digest}").body) == digest


def test_a_download_after_its_owner_was_killed_and_the_next_one_failed(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The owner is killed, its replacement fails, the owner's shard is back: the next download succeeds."""
    content = Bytes(Random(5).randbytes(6 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(workers=2)
    shards = deployment.dockyard.storage / "run"
    eventually(lambda: len(list(shards.glob("shard-*.sock"))) == 2, "all workers serve")
    with set_at_exit(threading.Event()) as go_on, deployment.crowd(path, content, 20) as crowd:
        fake_registry.on("blob", faults.cut_at_offset(4 * MIB))
        fake_registry.on("blob", faults.stalled(3 * MIB, go_on), times=1)
        crowd.run(until=lambda: all(member.received > MIB for member in crowd.members))
        (owner,) = download_owners(deployment)
        os.kill(owner, signal.SIGKILL)
        go_on.set()
        crowd.run()
        assert not any(member.is_right for member in crowd.members), crowd.summary()
    fake_registry.remove_rules()
    eventually(lambda: all(_has_listener(name) for name in shards.glob("shard-*.sock")), "both shards serve again")
    count_before = fake_registry.count("blob", "GET")
    response = deployment.get(path)
    assert (response.ended, response.body == content.data) == ("length", True)
    assert is_within(response.took_s, RECOVERY_S)
    assert fake_registry.count("blob", "GET") == count_before + 1
    eventually(lambda: deployment.stored_files(content.digest), "the layer is stored")


def _has_listener(path: Path) -> bool:
    # The path of a unix socket has at most 107 bytes; that of a test may have more.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            return True
    except OSError:
        return False
    finally:
        os.close(directory)

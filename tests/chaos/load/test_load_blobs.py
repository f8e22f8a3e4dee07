"""L01: a thousand clients of one layer: cold, cached, only in the bucket, and in progress while workers are killed.

The small sizes run by default, the full ones with `-m long`.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from random import Random

import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.memory import MemoryLimit
from tests.chaos.load.loads import ANOTHER, BUCKET, MIB, OWNER, UNDISTURBED, RecordLoad, note
from tests.s3.service.bucket_view import BucketView
from tests.s3.service.images import NAME
from tests.s3.service.request_log import S3RequestLog
from tests.s3.store.proxy import S3Proxy
from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import Crowd
from tests.support.worker_state import download_owners, workers_by_client_port

WORKERS = 4
WITHIN_S = 400.0
SLACK_S = 5.0  # the machine has two cores, which everything that runs shares
SIZES = [
    pytest.param(200, 4, id="200 clients of 4 MiB"),
    pytest.param(1000, 100, id="1000 clients of 100 MiB", marks=[pytest.mark.long]),
]


def full_deployment(make_deployment: Callable[..., Deployment], **settings: object) -> Deployment:
    """Start four workers and wait until they all respond to their peers."""
    deployment = make_deployment(workers=WORKERS, **settings)
    deployment.wait_for_workers(WORKERS)
    return deployment


def _serve(crowd: Crowd) -> float:
    """Wait until every client has the whole right body; return the seconds."""
    began_at = time.monotonic()
    crowd.run(within_s=WITHIN_S)
    assert all(member.is_right for member in crowd.members), crowd.summary()
    return time.monotonic() - began_at


@pytest.mark.parametrize(("clients", "mib"), SIZES)
def test_many_clients_of_one_cold_layer(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    clients: int,
    mib: int,
) -> None:
    """One GET, each byte once, every client has the right bytes, memory is bounded, about as fast as from the cache."""
    truth = Bytes(Random(1).randbytes(mib * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(truth)}"
    with record_load("L01", UNDISTURBED, State.BLOB_COLD, State.BLOB_CACHED) as (cold, cached):
        deployment = full_deployment(make_deployment)
        with MemoryLimit(deployment) as memory:
            with deployment.crowd(path, truth, clients) as crowd:
                cold_s = _serve(crowd)
            gets = fake_registry.count("blob", "GET")
            note(cold, f"{clients:,} x {mib} MiB in {cold_s:.1f} s, GETs: {gets}", fake_registry, memory)
            assert gets == 1
            assert fake_registry.sent_bytes("blob") == truth.size
            eventually(lambda: deployment.stored_files(truth.digest), "the layer is stored")
            assert deployment.stored_files(truth.digest)[0].stat().st_size == truth.size
            fake_registry.clear_exchanges()
            with deployment.crowd(path, truth, clients) as crowd:
                warm_s = _serve(crowd)
            note(
                cached,
                f"{clients:,} x {mib} MiB in {warm_s:.1f} s, requests upstream: {fake_registry.count()}",
                fake_registry,
                memory,
            )
        assert fake_registry.count() == 0
        assert is_within(cold_s, 2 * warm_s, slack_s=SLACK_S)
        memory.assert_held()


@pytest.mark.parametrize(("clients", "mib"), SIZES)
def test_many_clients_of_a_layer_in_the_bucket(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    proxy: S3Proxy,
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    clients: int,
    mib: int,
) -> None:
    """At most one GET at S3 per worker, and none upstream."""
    truth = Bytes(Random(3).randbytes(mib * MIB))
    with record_load("L01", BUCKET, State.BLOB_CACHED) as (record,):
        key = bucket_view.put_blob(truth.data)
        deployment = full_deployment(start, endpoint=proxy.host)
        request_log = S3RequestLog(proxy)
        with (
            MemoryLimit(deployment) as memory,
            deployment.crowd(f"/v2/{NAME}/blobs/{truth.digest}", truth, clients) as crowd,
        ):
            took_s = _serve(crowd)
        gets = request_log.of(key).count("GET")
        note(record, f"{clients:,} x {mib} MiB in {took_s:.1f} s, GETs at S3: {gets}", fake_registry, memory)
        assert 1 <= gets <= WORKERS
        assert fake_registry.count() == 0
        memory.assert_held()


@pytest.mark.parametrize(("clients", "mib"), SIZES)
@pytest.mark.parametrize("killed", [UNDISTURBED, OWNER, ANOTHER])
def test_many_clients_join_a_download(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    clients: int,
    mib: int,
    killed: str,
) -> None:
    """All clients join the running download; if a worker is killed, only its own clients are cut.

    There is one GET, and a second one only if the owner of the download was killed.
    """
    truth = Bytes(Random(2).randbytes(mib * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(truth)}"
    with record_load("L01", killed, State.BLOB_DOWNLOAD) as (record,), contextlib.ExitStack() as stack:
        # The download stalls until all clients have joined.
        deployment = full_deployment(make_deployment, upstream={"stall_timeout": "300s"})
        resume = stack.enter_context(set_at_exit(threading.Event()))
        fake_registry.on("blob", faults.stalled(0.5, resume))
        memory = stack.enter_context(MemoryLimit(deployment))
        crowd = stack.enter_context(deployment.crowd(path, truth, clients))
        crowd.run(until=lambda: all(member.received > MIB for member in crowd.members), within_s=WITHIN_S)
        (owner,) = download_owners(deployment)
        workers = workers_by_client_port(deployment)
        of_member = {member: workers[member.socket.getsockname()[1]] for member in crowd.members}
        another = next(pid for pid in of_member.values() if pid != owner)
        victim = {UNDISTURBED: None, OWNER: owner, ANOTHER: another}[killed]
        if victim is not None:
            os.kill(victim, signal.SIGKILL)
        resumed_at = time.monotonic()
        resume.set()
        crowd.run(within_s=WITHIN_S)
        took_s = time.monotonic() - resumed_at
        cut = {member for member in crowd.members if not member.is_right}
        gets, share = fake_registry.count("blob", "GET"), fake_registry.sent_bytes("blob") / truth.size
        seen = f"{clients:,} x {mib} MiB, {len(cut)} cut, the others complete in {took_s:.1f} s from its half"
        note(record, f"{seen}, GETs: {gets}, of {share:.2f} of the size", fake_registry, memory)
        assert cut == {member for member, pid in of_member.items() if pid == victim}, crowd.summary()
        assert all(member.wrong_at is None and member.ended in ("fin", "rst") for member in cut)
        assert gets <= 2 if killed == OWNER else gets == 1
        assert share <= 2 if killed == OWNER else share == 1
        memory.assert_held()

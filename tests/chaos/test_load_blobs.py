"""L01: a thousand clients on one object: a layer cold, cached and with a worker killed, a tag, a manifest.

The smaller numbers run every day, the full ones with `-m long`.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from random import Random

import pytest

from tests import misbehaviour as bad
from tests.bodies import Bytes
from tests.chaos.bounds import MemoryBound
from tests.client import Crowd
from tests.faults.watch import workers_of_ports, writers
from tests.house import House, eventually, opened_at_exit, stays
from tests.origin import Origin

MIB = 1024 * 1024
WORKERS = 4
WITHIN_S = 400.0
SLACK_S = 5.0  # two cores, shared with everything else that runs
HERDS = [
    pytest.param(200, 4, id="200 clients of 4 MiB"),
    pytest.param(1000, 100, id="1000 clients of 100 MiB", marks=[pytest.mark.long, pytest.mark.timeout(600)]),
]


def full_house(make_house: Callable[..., House], **settings: object) -> House:
    """Four workers that all answer their peers."""
    house = make_house(workers=WORKERS, **settings)
    eventually(lambda: len(list(house.dockyard.storage.glob("run/shard-*.sock"))) == WORKERS, "all workers serve")
    return house


def _serve(crowd: Crowd) -> float:
    began_at = time.monotonic()
    crowd.run(within_s=WITHIN_S)
    return time.monotonic() - began_at


@pytest.mark.parametrize(("clients", "mib"), HERDS)
def test_a_herd_on_one_cold_layer(make_house: Callable[..., House], origin: Origin, clients: int, mib: int) -> None:
    """L01: one GET, the layer's bytes once, everybody right, memory bounded, about as fast as from the cache."""
    truth = Bytes(Random(1).randbytes(mib * MIB))
    path = f"/v2/up.test/app/blobs/{origin.add_blob(truth)}"
    house = full_house(make_house)
    with MemoryBound(house) as memory:
        with house.crowd(path, truth, clients) as crowd:
            cold_s = _serve(crowd)
            assert all(member.is_right for member in crowd.members), crowd.summary()
        assert origin.count("blob", "GET") == 1
        assert origin.sent_bytes("blob") == truth.size
        eventually(lambda: house.stored(truth.digest), "the layer is stored")
        assert house.stored(truth.digest)[0].stat().st_size == truth.size
        with house.crowd(path, truth, clients) as crowd:
            warm_s = _serve(crowd)
            assert all(member.is_right for member in crowd.members), crowd.summary()
    assert origin.count("blob") == 1
    assert cold_s <= 2 * warm_s + SLACK_S
    memory.assert_held()
    print(  # noqa: T201  the numbers are what the long run is for
        f"cold {cold_s:.1f} s, cached {warm_s:.1f} s, {memory.peak / MIB:.0f} MiB, {memory.worst}"
    )


@pytest.mark.parametrize(("clients", "mib"), HERDS)
@pytest.mark.parametrize("victim", ["owner", "another worker"])
def test_a_worker_is_killed_under_a_herd(
    make_house: Callable[..., House], origin: Origin, clients: int, mib: int, victim: str
) -> None:
    """L01 with P01, P02: the clients of other workers finish; two GETs at most, one when it was not the owner."""
    truth = Bytes(Random(2).randbytes(mib * MIB))
    path = f"/v2/up.test/app/blobs/{origin.add_blob(truth)}"
    house = full_house(make_house, upstream={"stall_timeout": "300s"})  # it stalls until the whole herd is there
    with contextlib.ExitStack() as stack:
        go_on = stack.enter_context(opened_at_exit(threading.Event()))
        origin.on("blob", bad.stalled(0.5, go_on))
        memory = stack.enter_context(MemoryBound(house))
        crowd = stack.enter_context(house.crowd(path, truth, clients))
        crowd.run(until=lambda: all(member.received > MIB for member in crowd.members), within_s=WITHIN_S)
        (owner,) = writers(house)
        workers = workers_of_ports(house)
        of_member = {member: workers[member.socket.getsockname()[1]] for member in crowd.members}
        killed = owner if victim == "owner" else next(pid for pid in of_member.values() if pid != owner)
        os.kill(killed, signal.SIGKILL)
        go_on.set()
        crowd.run(within_s=WITHIN_S)
        cut = {member for member in crowd.members if not member.is_right}
        assert cut == {member for member, pid in of_member.items() if pid == killed}, crowd.summary()
        assert all(member.wrong_at is None and member.ended in ("fin", "rst") for member in cut)
    gets = origin.count("blob", "GET")
    assert gets <= 2 if victim == "owner" else gets == 1
    assert origin.sent_bytes("blob") <= 2 * truth.size
    memory.assert_held()
    print(  # noqa: T201  see above
        f"{gets} GETs, {origin.sent_bytes('blob') / truth.size:.2f} of the size, {len(cut)} cut, "
        f"{memory.peak / MIB:.0f} MiB, {memory.worst}"
    )


@pytest.mark.parametrize("clients", [200, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("kind", ["tag", "digest"])
def test_a_herd_on_one_manifest(make_house: Callable[..., House], origin: Origin, clients: int, kind: str) -> None:
    """L01: of a tag one HEAD for all who ask while it runs, cold or cached; of a manifest one GET, and none again."""
    image = origin.add_image("app", "latest")
    path = f"/v2/up.test/app/manifests/{'latest' if kind == 'tag' else image.digest}"
    truth = Bytes(image.body)
    house = full_house(make_house, upstream={"check_timeout": "60s"})
    for is_cached in (False, True):
        origin.forget()
        with opened_at_exit(threading.Event()) as go_on:
            rule = origin.on("manifest", bad.silent(go_on))
            with house.crowd(path, truth, clients) as crowd:
                if kind == "tag" or not is_cached:
                    origin.wait_for(lambda: origin.count("manifest") > 0, "somebody asks")
                    stays(lambda: origin.count("manifest") == 1, f"one asks, {clients} wait", 1.0)
                go_on.set()
                crowd.run()
                assert all(member.is_right for member in crowd.members), crowd.summary()
            origin.mend(rule)
        assert origin.count("manifest", "HEAD") == (1 if kind == "tag" else 0)
        assert origin.count("manifest", "GET") == (0 if is_cached else 1)

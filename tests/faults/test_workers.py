"""Workers that die, one after the other, all at once, or in turns. (Rows P01, P02 and P04 of the matrix say more.)"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from tests import misbehaviour as bad
from tests.bodies import Bytes, digest_of
from tests.faults.watch import writers
from tests.house import House, eventually, opened_at_exit
from tests.origin import Origin

MIB = 1024 * 1024
WORKERS = 4
RECOVERY_S = 2.0


def _full_house(make_house: Callable[..., House]) -> House:
    house = make_house(workers=WORKERS)
    house.wait_for_workers(WORKERS)
    return house


def test_a_killed_worker_refuses_nobody(make_house: Callable[..., House], origin: Origin) -> None:
    """While workers are killed one after the other, every new connection is accepted and answered in time."""
    warm = f"/v2/up.test/app/blobs/{origin.add_blob(b'a warm blob')}"
    house = _full_house(make_house)
    assert house.get(warm).status == 200
    errors = []
    for victim in house.dockyard.worker_pids()[:2]:
        os.kill(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        while time.monotonic() - killed_at < 1.5:
            try:
                reply = house.get(warm)
            except ConnectionRefusedError as exc:
                errors.append(exc)
            except OSError:
                continue  # accepted by the one that died
            else:
                assert (reply.status, reply.body) == (200, b"a warm blob")
        eventually(lambda: len(house.dockyard.worker_pids()) == WORKERS, "the worker is replaced", 5)
    assert errors == []


def test_everything_is_killed_and_started_again(make_house: Callable[..., House], origin: Origin) -> None:
    """After kill -9 of all in the middle of several fetches: what was whole is served, what was not is fetched anew."""
    warm = origin.add_blob(b"a warm blob")
    cold = [origin.add_blob(Random(n).randbytes(3 * MIB)) for n in range(5)]
    house = _full_house(make_house)
    assert house.get(f"/v2/up.test/app/blobs/{warm}").status == 200
    with opened_at_exit(threading.Event()) as go_on:
        rule = origin.on("blob", bad.stalled(0.5, go_on))
        running = [house.download(f"/v2/up.test/app/blobs/{digest}") for digest in cold]
        for download in running:
            assert download.head().read(1000)
            download.reset()
        assert house.partial_files()
        house.dockyard.kill()
        origin.mend(rule)
    house.dockyard.start()
    asked = origin.count(reference=warm)
    assert house.get(f"/v2/up.test/app/blobs/{warm}").body == b"a warm blob"
    assert origin.count(reference=warm) == asked
    eventually(lambda: not house.partial_files(), "left-over partial files are swept")
    for digest in cold:
        assert house.stored(digest) == []
        assert digest_of(house.get(f"/v2/up.test/app/blobs/{digest}").body) == digest


def test_a_failed_fetch_of_a_former_owner_is_in_nobodys_way(make_house: Callable[..., House], origin: Origin) -> None:
    """The owner is killed, the one that takes over fails, the owner's shard is back: the next fetch just works."""
    truth = Bytes(Random(5).randbytes(6 * MIB))
    path = f"/v2/up.test/app/blobs/{origin.add_blob(truth)}"
    house = make_house(workers=2)
    shards = house.dockyard.storage / "run"
    eventually(lambda: len(list(shards.glob("shard-*.sock"))) == 2, "all workers serve")
    with opened_at_exit(threading.Event()) as go_on, house.crowd(path, truth, 20) as crowd:
        origin.on("blob", bad.ending_before(4 * MIB))
        origin.on("blob", bad.stalled(3 * MIB, go_on), times=1)
        crowd.run(until=lambda: all(member.received > MIB for member in crowd.members))
        (owner,) = writers(house)
        os.kill(owner, signal.SIGKILL)
        go_on.set()
        crowd.run()
        assert not any(member.is_right for member in crowd.members), crowd.summary()
    origin.mend()
    eventually(lambda: all(_has_listener(name) for name in shards.glob("shard-*.sock")), "both shards serve again")
    asked = origin.count("blob", "GET")
    reply = house.get(path)
    assert (reply.ended, reply.body == truth.data) == ("length", True)
    assert reply.took_s < RECOVERY_S
    assert origin.count("blob", "GET") == asked + 1
    eventually(lambda: house.stored(truth.digest), "the layer is stored")


def _has_listener(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
        except OSError:
            return False
        return True

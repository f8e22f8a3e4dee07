"""The pointer of a tag while its owner is frozen: what was answered since is not forgotten, and nothing goes back."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable

import pytest

from dockyard.workers.shards import owners
from tests import misbehaviour as bad
from tests.client import Reply, ask
from tests.house import House, eventually, opened_at_exit
from tests.origin import Origin

WORKERS = 2
PATH = "/v2/up.test/app/manifests/v1"
POINTER = "cache/manifests/up.test/app/tags/v1"
PATIENCE_S = 2.0  # the frozen worker gets connections too


@pytest.fixture
def house(make_house: Callable[..., House]) -> House:
    """Give two workers, a check that may take its time, and a watchdog that lets a frozen worker be for now."""
    house = make_house(workers=WORKERS, upstream={"check_timeout": "20s"})
    eventually(lambda: len(list(house.dockyard.storage.glob("run/shard-*.sock"))) == WORKERS, "all workers serve")
    return house


def _owner(house: House) -> int:
    shard = owners("up.test/app:v1", WORKERS)[0]
    return int((house.dockyard.storage / f"run/shard-{shard}.lock").read_text())


def _try(house: House) -> Reply | None:
    try:
        return ask(house.address, PATH, timeout_s=PATIENCE_S)
    except OSError:
        return None


def _is_answered(house: House, digest: str, *, stale: bool = False) -> bool:
    reply = _try(house)
    return (
        reply is not None and reply.header("Docker-Content-Digest") == digest and bool(reply.header("Warning")) == stale
    )


def test_what_was_answered_for_a_frozen_owner_is_remembered(house: House, origin: Origin) -> None:
    """Frozen owner, moved tag, an answer by the other worker; then the upstream dies: that answer is what is stale."""
    origin.add_image("app", "v1", [b"one"])
    assert house.get(PATH).status == 200
    owner = _owner(house)
    os.kill(owner, signal.SIGSTOP)
    moved = origin.add_image("app", "v1", [b"two"])
    eventually(lambda: _is_answered(house, moved.digest), "the other worker answers")
    origin.registry.close()
    with contextlib.suppress(ProcessLookupError):  # the watchdog was faster
        os.kill(owner, signal.SIGKILL)
    reply = eventually(lambda: _try(house), "an answer")
    assert (reply.header("Docker-Content-Digest"), bool(reply.header("Warning"))) == (moved.digest, True)


def test_an_owner_that_wakes_up_moves_no_pointer_back(house: House, origin: Origin) -> None:
    """Frozen between the upstream's answer and the pointer: when it wakes up the tag has moved on, and stays there."""
    origin.add_image("app", "v1", [b"one"])
    assert house.get(PATH).status == 200
    older = origin.add_image("app", "v1", [b"two"])
    owner = _owner(house)
    with opened_at_exit(threading.Event()) as go_on:
        origin.on("manifest", bad.silent(go_on), method="HEAD", times=1)
        asked = origin.count("manifest", "HEAD")
        waiting = threading.Thread(target=_try, args=(house,))
        waiting.start()
        origin.wait_for(lambda: origin.count("manifest", "HEAD") > asked, "the owner asks")
        os.kill(owner, signal.SIGSTOP)
        newer = origin.add_image("app", "v1", [b"three"])
        go_on.set()
        eventually(lambda: _is_answered(house, newer.digest), "the other worker answers")
        fetched = origin.count("manifest", "GET", reference=older.digest)
        os.kill(owner, signal.SIGCONT)
        origin.wait_for(
            lambda: origin.count("manifest", "GET", reference=older.digest) > fetched,
            "the owner goes on with its answer",
        )
        waiting.join()
    origin.registry.close()
    for _ in range(5 * WORKERS):
        assert _is_answered(house, newer.digest, stale=True)
    assert (house.dockyard.storage / POINTER).read_text() == newer.digest

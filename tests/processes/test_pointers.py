"""The pointer of a tag while its owner is frozen: what was answered since is not forgotten, and nothing goes back."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection

import pytest

from dockyard.workers.rendezvous import owners
from tests.support import faults
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.worker_state import workers_by_client_port

WORKERS = 2
PATH = "/v2/up.test/app/manifests/v1"
POINTER = "cache/manifests/up.test/app/tags/v1"
PATIENCE_S = 10.0


@pytest.fixture
def deployment(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> Deployment:
    """Give two workers that know a tag, and a check that may take its time."""
    deployment = make_deployment(workers=WORKERS, upstream={"check_timeout": "20s"})
    deployment.wait_for_workers(WORKERS)
    fake_registry.add_image("app", "v1", [b"one"])
    assert deployment.get(PATH).status == 200
    return deployment


@pytest.fixture
def owner(deployment: Deployment) -> int:
    """Give the worker that owns the tag."""
    shard = owners("up.test/app:v1", WORKERS)[0]
    return int((deployment.dockyard.storage / f"run/shard-{shard}.lock").read_text())


@pytest.fixture
def connect(deployment: Deployment) -> Iterator[Callable[[Callable[[int], bool]], HTTPConnection]]:
    """Give a function that connects to a worker that is wanted."""
    with contextlib.ExitStack() as stack:

        def connect(is_wanted: Callable[[int], bool]) -> HTTPConnection:
            def once() -> HTTPConnection | None:
                connection = stack.enter_context(closing(HTTPConnection(*deployment.address, timeout=PATIENCE_S)))
                connection.connect()
                _ask(connection, "/healthz")
                port = connection.sock.getsockname()[1]
                return connection if is_wanted(workers_by_client_port(deployment)[port]) else None

            return eventually(once, "a connection to a certain worker")

        yield connect


@pytest.fixture
def other(owner: int, connect: Callable[[Callable[[int], bool]], HTTPConnection]) -> HTTPConnection:
    """Give a connection to the worker that does not own the tag."""
    return connect(lambda pid: pid != owner)


@pytest.fixture
def own(owner: int, connect: Callable[[Callable[[int], bool]], HTTPConnection]) -> HTTPConnection:
    """Give a connection to the worker that does."""
    return connect(lambda pid: pid == owner)


def _ask(connection: HTTPConnection, path: str = PATH) -> tuple[str | None, bool]:
    """The digest of the answer, and whether it is marked stale."""
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.getheader("Docker-Content-Digest"), response.getheader("Warning") is not None


def test_what_was_answered_for_a_frozen_owner_is_remembered(
    deployment: Deployment, fake_registry: FakeRegistry, owner: int, other: HTTPConnection
) -> None:
    """Frozen owner, moved tag, an answer by the other worker; then the upstream dies: that answer is what is stale."""
    os.kill(owner, signal.SIGSTOP)
    moved = fake_registry.add_image("app", "v1", [b"two"])
    assert _ask(other) == (moved.digest, False)
    fake_registry.listener.close()
    with contextlib.suppress(ProcessLookupError):  # the watchdog may be faster
        os.kill(owner, signal.SIGKILL)
    assert _ask(other) == (moved.digest, True)
    eventually(lambda: owner not in deployment.dockyard.worker_pids(), "the owner is gone")
    for _ in range(5 * WORKERS):
        assert deployment.get(PATH).header("Docker-Content-Digest") == moved.digest


def test_an_owner_that_wakes_up_moves_no_pointer_back(
    deployment: Deployment, fake_registry: FakeRegistry, owner: int, other: HTTPConnection, own: HTTPConnection
) -> None:
    """Frozen between the upstream's answer and the pointer: when it wakes up the tag has moved on, and stays there."""
    older = fake_registry.add_image("app", "v1", [b"two"])
    with set_at_exit(threading.Event()) as go_on:
        fake_registry.on("manifest", faults.silent(go_on), method="HEAD", times=1)
        count_before = fake_registry.count("manifest", "HEAD")
        waiting = threading.Thread(target=_ask, args=(own,))
        waiting.start()
        fake_registry.wait_for(lambda: fake_registry.count("manifest", "HEAD") > count_before, "the owner asks")
        os.kill(owner, signal.SIGSTOP)
        newer = fake_registry.add_image("app", "v1", [b"three"])
        go_on.set()
        assert _ask(other) == (newer.digest, False)
        fetched = fake_registry.count("manifest", "GET", reference=older.digest)
        os.kill(owner, signal.SIGCONT)
        fake_registry.wait_for(
            lambda: fake_registry.count("manifest", "GET", reference=older.digest) > fetched,
            "the owner takes up its answer",
        )
        waiting.join()
    fake_registry.listener.close()
    for _ in range(5 * WORKERS):
        response = deployment.get(PATH)
        assert (response.header("Docker-Content-Digest"), bool(response.header("Warning"))) == (newer.digest, True)
    assert (deployment.dockyard.storage / POINTER).read_text() == newer.digest

"""The pointer of a tag while its owner is frozen: newer results of other workers are kept, and never overwritten."""

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
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.worker_state import workers_by_client_port

WORKERS = 2
PATH = "/v2/up.test/app/manifests/v1"
POINTER = "cache/manifests/up.test/app/tags/v1"


@pytest.fixture
def deployment(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> Deployment:
    """Two workers that have a tag cached, and a check that may take long."""
    deployment = make_deployment(workers=WORKERS, upstream={"check_timeout": "20s"})
    deployment.wait_for_workers(WORKERS)
    fake_registry.add_image("app", "v1", [b"one"])
    assert deployment.get(PATH).status == 200
    return deployment


@pytest.fixture
def owner(deployment: Deployment) -> int:
    """The worker that owns the tag."""
    shard = owners("up.test/app:v1", WORKERS)[0]
    return int((deployment.dockyard.storage / f"run/shard-{shard}.lock").read_text())


@pytest.fixture
def connect(deployment: Deployment) -> Iterator[Callable[[Callable[[int], bool]], HTTPConnection]]:
    """A function that connects to a given worker."""
    with contextlib.ExitStack() as stack:

        def connect(is_wanted: Callable[[int], bool]) -> HTTPConnection:
            def once() -> HTTPConnection | None:
                connection = stack.enter_context(closing(HTTPConnection(*deployment.address, timeout=EVENT_TIMEOUT_S)))
                connection.connect()
                _ask(connection, "/healthz")
                port = connection.sock.getsockname()[1]
                return connection if is_wanted(workers_by_client_port(deployment)[port]) else None

            return eventually(once, "a connection to a certain worker")

        yield connect


@pytest.fixture
def other(owner: int, connect: Callable[[Callable[[int], bool]], HTTPConnection]) -> HTTPConnection:
    """A connection to the worker that does not own the tag."""
    return connect(lambda pid: pid != owner)


@pytest.fixture
def own(owner: int, connect: Callable[[Callable[[int], bool]], HTTPConnection]) -> HTTPConnection:
    """A connection to the worker that owns the tag."""
    return connect(lambda pid: pid == owner)


def _ask(connection: HTTPConnection, path: str = PATH) -> tuple[str | None, bool]:
    """The digest of the response, and whether it is marked stale."""
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.getheader("Docker-Content-Digest"), response.getheader("Warning") is not None


def test_the_result_of_another_worker_is_kept_while_the_owner_is_frozen(
    deployment: Deployment, fake_registry: FakeRegistry, owner: int, other: HTTPConnection
) -> None:
    """The owner freezes, the tag moves, another worker answers, the upstream fails: the new digest is served stale."""
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


def test_a_thawed_owner_does_not_overwrite_a_newer_pointer(
    deployment: Deployment, fake_registry: FakeRegistry, owner: int, other: HTTPConnection, own: HTTPConnection
) -> None:
    """An owner that was frozen before it wrote the pointer does not overwrite the newer one when it continues."""
    older = fake_registry.add_image("app", "v1", [b"two"])
    with set_at_exit(threading.Event()) as go_on:
        fake_registry.on("manifest", faults.silent(go_on), method="HEAD", times=1)
        count_before = fake_registry.count("manifest", "HEAD")
        waiting = threading.Thread(target=_ask, args=(own,))
        waiting.start()
        fake_registry.wait_for(
            lambda: fake_registry.count("manifest", "HEAD") > count_before, "the owner sends a request"
        )
        os.kill(owner, signal.SIGSTOP)
        newer = fake_registry.add_image("app", "v1", [b"three"])
        go_on.set()
        assert _ask(other) == (newer.digest, False)
        fetched = fake_registry.count("manifest", "GET", reference=older.digest)
        os.kill(owner, signal.SIGCONT)
        fake_registry.wait_for(
            lambda: fake_registry.count("manifest", "GET", reference=older.digest) > fetched,
            "the owner processes its response",
        )
        waiting.join()
    fake_registry.listener.close()
    for _ in range(5 * WORKERS):
        response = deployment.get(PATH)
        assert (response.header("Docker-Content-Digest"), bool(response.header("Warning"))) == (newer.digest, True)
    assert (deployment.dockyard.storage / POINTER).read_text() == newer.digest

"""The watchdog tells frozen, stuck and busy workers apart."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dockyard.workers import watchdog
from dockyard.workers.watchdog import Watchdog, WatchedProcess
from tests.support.deployment import eventually, stays

BUSY = "while True: pass"
ASLEEP = "import time; time.sleep(1000)"
Start = Callable[[str], subprocess.Popen[bytes]]
Watch = Callable[[subprocess.Popen[bytes]], Callable[[], bool]]
FROZEN_S = 1.0
STUCK_S = 3.0


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the time limits."""
    monkeypatch.setattr(watchdog, "FROZEN_S", FROZEN_S)
    monkeypatch.setattr(watchdog, "STUCK_S", STUCK_S)


@pytest.fixture
def connections() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends: of the supervisor and of the worker."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def worker() -> Iterator[Start]:
    """Start a process that runs this program and never replies."""
    started = []

    def start(program: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", program])
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def watch(connections: tuple[socket.socket, socket.socket]) -> Watch:
    """Watch a worker that has started: a function that checks it again and tells whether it still runs."""
    ours, theirs = connections

    def watch(process: subprocess.Popen[bytes]) -> Callable[[], bool]:
        watched = Watchdog(ours)
        WatchedProcess(theirs, -1).report_start()

        def is_running() -> bool:
            watched.check(process.pid)
            return process.poll() is None

        return is_running

    return watch


def test_a_frozen_worker_is_killed(worker: Start, watch: Watch) -> None:
    """A stopped process neither replies nor uses processor time."""
    process = worker(BUSY)
    is_running = watch(process)
    stays(is_running, "it runs", FROZEN_S / 2)
    os.kill(process.pid, signal.SIGSTOP)
    began_at = time.monotonic()
    eventually(lambda: not is_running(), "killed", FROZEN_S)
    assert time.monotonic() - began_at >= FROZEN_S / 2
    assert process.wait() == -signal.SIGKILL


def test_a_blocked_worker_is_killed(worker: Start, watch: Watch) -> None:
    """An event loop that blocks in a system call uses no processor time either."""
    process = worker(ASLEEP)
    is_running = watch(process)
    eventually(lambda: not is_running(), "killed", FROZEN_S)


def test_a_busy_worker_gets_more_time(worker: Start, watch: Watch) -> None:
    """One that does not reply but uses processor time may be overloaded: it is killed after STUCK_S only."""
    process = worker(BUSY)
    is_running = watch(process)
    stays(is_running, "busy is not frozen", FROZEN_S + 1)
    eventually(lambda: not is_running(), "killed in the end", STUCK_S)


def test_a_late_reply_is_a_reply(connections: tuple[socket.socket, socket.socket], worker: Start, watch: Watch) -> None:
    """A worker whose replies take longer than the check interval is not killed."""
    is_running = watch(worker(ASLEEP))
    _, theirs = connections
    theirs.setblocking(True)

    def reply() -> None:
        with contextlib.suppress(OSError):  # the test has ended
            while theirs.recv(64):
                time.sleep(FROZEN_S * 0.6)
                theirs.send(b".")

    threading.Thread(target=reply, daemon=True).start()
    stays(is_running, "replies late", STUCK_S + 1)


def test_a_worker_that_starts_slowly_is_not_killed(
    connections: tuple[socket.socket, socket.socket], worker: Start
) -> None:
    """Pings begin when the worker has started."""
    process = worker(ASLEEP)
    watched = Watchdog(connections[0])

    def is_starting() -> bool:
        watched.check(process.pid)
        return process.poll() is None and not watched.has_started()

    stays(is_starting, "not started", FROZEN_S + 0.5)
    WatchedProcess(connections[1], -1).report_start()
    assert watched.has_started()


def test_a_worker_replies_to_pings(connections: tuple[socket.socket, socket.socket]) -> None:
    """One reply for what has come; False when the supervisor has ended."""
    ours, theirs = connections
    watched = WatchedProcess(theirs, -1)
    assert watched.reply()
    ours.send(b".")
    assert watched.reply()
    assert ours.recv(64) == b"."
    ours.close()
    assert not watched.reply()
    watched.report_start()

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
from pathlib import Path

import pytest

from dockyard.workers import watchdog
from dockyard.workers.shard_lock import lock_path, socket_name
from dockyard.workers.watchdog import Watchdog
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
def worker(tmp_path: Path) -> Iterator[Start]:
    """Start a process that has claimed shard 0 and runs this program; its socket never replies."""
    started = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / socket_name(0)))
    listener.listen()

    def start(program: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", program])
        started.append(process)
        lock_path(tmp_path, 0).write_text(str(process.pid))
        return process

    with listener:
        yield start
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Watch a worker: a function that checks it again and tells whether it still runs."""
    with contextlib.ExitStack() as watchdogs:

        def watch(process: subprocess.Popen[bytes]) -> Callable[[], bool]:
            watched = Watchdog(tmp_path, 1, lambda pid: pid == process.pid and process.poll() is None)
            watchdogs.callback(watched.close)

            def is_running() -> bool:
                watched.check()
                return process.poll() is None

            return is_running

        yield watch


def test_a_frozen_worker_is_killed(worker: Start, watch: Watch) -> None:
    """A stopped process neither replies nor uses processor time."""
    process = worker(BUSY)
    is_running = watch(process)
    stays(is_running, "it runs", FROZEN_S / 2)
    os.kill(process.pid, signal.SIGSTOP)
    began_at = time.monotonic()
    eventually(lambda: not is_running(), "killed", FROZEN_S + 1)
    assert time.monotonic() - began_at >= FROZEN_S / 2
    assert process.wait() == -signal.SIGKILL


def test_a_blocked_worker_is_killed(worker: Start, watch: Watch) -> None:
    """An event loop that blocks in a system call uses no processor time either."""
    process = worker(ASLEEP)
    is_running = watch(process)
    eventually(lambda: not is_running(), "killed", FROZEN_S + 1)


def test_a_busy_worker_gets_more_time(worker: Start, watch: Watch) -> None:
    """One that does not reply but uses processor time may be overloaded: it is killed after STUCK_S only."""
    process = worker(BUSY)
    is_running = watch(process)
    stays(is_running, "busy is not frozen", FROZEN_S + 1)
    eventually(lambda: not is_running(), "killed in the end", STUCK_S)


def test_a_late_reply_is_a_reply(tmp_path: Path, worker: Start, watch: Watch) -> None:
    """A worker whose replies take longer than the check interval is not killed."""
    (tmp_path / socket_name(0)).unlink(missing_ok=True)
    process = worker_with_late_replies(tmp_path, worker)
    is_running = watch(process)
    stays(is_running, "replies late", STUCK_S + 1)


def worker_with_late_replies(directory: Path, worker: Start) -> subprocess.Popen[bytes]:
    """A worker that sleeps; a thread replies in its place, after more than half of the time limit."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / socket_name(0)))
    listener.listen()
    listener.settimeout(2.0)

    def reply() -> None:
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    return
                with connection, contextlib.suppress(BrokenPipeError):  # the watchdog was closed
                    assert connection.recv(64)
                    time.sleep(FROZEN_S * 0.6)
                    connection.sendall(b"{}\n")

    threading.Thread(target=reply, daemon=True).start()
    return worker(ASLEEP)


def test_a_worker_of_another_server_is_left_alone(tmp_path: Path, worker: Start) -> None:
    """The process id in a lock file may belong to another program by now."""
    process = worker(ASLEEP)
    watched = Watchdog(tmp_path, 1, lambda _: False)

    def is_running() -> bool:
        watched.check()
        return process.poll() is None

    stays(is_running, "not ours", FROZEN_S + 0.5)

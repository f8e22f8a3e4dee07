"""Workers that are frozen, stuck, busy or gone, as the watchdog tells them apart."""

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
    """A fifth of the patience."""
    monkeypatch.setattr(watchdog, "FROZEN_S", FROZEN_S)
    monkeypatch.setattr(watchdog, "STUCK_S", STUCK_S)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Start]:
    """Start a process that holds shard 0 and does this; its socket is ours, and silent."""
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
    """Watch a worker: a function that looks again, and says whether it lives."""
    with contextlib.ExitStack() as dogs:

        def watch(process: subprocess.Popen[bytes]) -> Callable[[], bool]:
            dog = Watchdog(tmp_path, 1, lambda pid: pid == process.pid and process.poll() is None)
            dogs.callback(dog.close)

            def lives() -> bool:
                dog.look()
                return process.poll() is None

            return lives

        yield watch


def test_a_frozen_worker_is_killed(worker: Start, watch: Watch) -> None:
    """One that is stopped neither answers nor runs."""
    process = worker(BUSY)
    lives = watch(process)
    stays(lives, "it runs", FROZEN_S / 2)
    os.kill(process.pid, signal.SIGSTOP)
    began_at = time.monotonic()
    eventually(lambda: not lives(), "killed", FROZEN_S + 1)
    assert time.monotonic() - began_at >= FROZEN_S / 2
    assert process.wait() == -signal.SIGKILL


def test_a_worker_that_waits_for_ever_is_killed(worker: Start, watch: Watch) -> None:
    """A loop that blocks in a system call does not run either."""
    process = worker(ASLEEP)
    lives = watch(process)
    eventually(lambda: not lives(), "killed", FROZEN_S + 1)


def test_a_busy_worker_gets_more_time(worker: Start, watch: Watch) -> None:
    """One that is silent but runs may be overloaded: it lives on, though not for ever."""
    process = worker(BUSY)
    lives = watch(process)
    stays(lives, "busy is not frozen", FROZEN_S + 1)
    eventually(lambda: not lives(), "killed in the end", STUCK_S)


def test_a_late_answer_is_an_answer(tmp_path: Path, worker: Start, watch: Watch) -> None:
    """Answers that take longer than a look, again and again, keep a worker alive."""
    (tmp_path / socket_name(0)).unlink(missing_ok=True)
    process = worker_of_slow_answers(tmp_path, worker)
    lives = watch(process)
    stays(lives, "answers late", STUCK_S + 1)


def worker_of_slow_answers(directory: Path, worker: Start) -> subprocess.Popen[bytes]:
    """A worker that sleeps, and somebody who answers for it after more than half of the time."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / socket_name(0)))
    listener.listen()
    listener.settimeout(2.0)

    def answer() -> None:
        with listener:
            while True:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    return
                with connection, contextlib.suppress(BrokenPipeError):  # at the end nobody waits for it
                    assert connection.recv(64)
                    time.sleep(FROZEN_S * 0.6)
                    connection.sendall(b"{}\n")

    threading.Thread(target=answer, daemon=True).start()
    return worker(ASLEEP)


def test_a_worker_of_another_server_is_left_alone(tmp_path: Path, worker: Start) -> None:
    """A pid in a lock file may be anybody's."""
    process = worker(ASLEEP)
    dog = Watchdog(tmp_path, 1, lambda _: False)

    def lives() -> bool:
        dog.look()
        return process.poll() is None

    stays(lives, "not ours", FROZEN_S + 0.5)

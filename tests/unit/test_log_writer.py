"""Log lines are written without ever delaying the program, whatever the output does."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dockyard import log_writer
from dockyard.log_writer import FLUSH_TIMEOUT_S, MAX_QUEUED_BYTES, LogFile, LogOutput, LogWriter, Stream, open_log_file
from tests.support.busy_machine import is_within
from tests.support.deployment import eventually

Make = Callable[[LogOutput], LogWriter]
NO_DELAY_S = 0.2


@pytest.fixture
def dropped() -> list[int]:
    """What was counted."""
    return []


@pytest.fixture
def make(dropped: list[int]) -> Iterator[Make]:
    """Make a writer that reports `dropped N`."""
    writers = []

    def make(output: LogOutput) -> LogWriter:
        writers.append(LogWriter(output, lambda count: b"dropped %d\n" % count, dropped.append))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


def line(number: int) -> bytes:
    """A line of 1000 bytes."""
    return b"%06d " % number + b"x" * 992 + b"\n"


def read_all(descriptor: int, until: bytes) -> list[bytes]:
    """Read until a line with these bytes, and return the lines."""
    data = b""
    while until not in data or not data.endswith(b"\n"):
        data += os.read(descriptor, 65536)
    return data.splitlines(keepends=True)


def _pipe() -> tuple[int, int]:
    return os.pipe()


def _pipe_that_does_not_block() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    return reader, writer


def _socket() -> tuple[int, int]:
    reader, writer = socket.socketpair()
    return reader.detach(), writer.detach()


@pytest.mark.parametrize("connect", [_pipe, _pipe_that_does_not_block, _socket])
def test_an_output_that_is_not_read_delays_nothing(
    make: Make, dropped: list[int], connect: Callable[[], tuple[int, int]]
) -> None:
    """Lines are dropped and counted; when they are read, they are whole, in order, and the number is logged."""
    reader, writer_end = connect()
    writer = make(Stream(writer_end))
    began_at = time.monotonic()
    count = 3000
    for number in range(count):
        writer.write(line(number))
    assert is_within(time.monotonic() - began_at, 0)
    assert sum(dropped) > 0
    assert not writer.flush(0.1)
    *found, report = read_all(reader, b"dropped")
    numbers = [int(each[:6]) for each in found]
    assert found == [line(number) for number in numbers]
    assert numbers == sorted(set(numbers))  # which are dropped depends on when the thread writes
    assert (len(found), report) == (count - sum(dropped), b"dropped %d\n" % sum(dropped))
    writer.write(b"last\n")
    assert read_all(reader, b"last") == [b"last\n"]
    os.close(reader)
    os.close(writer_end)


def test_memory_is_limited(make: Make, dropped: list[int]) -> None:
    """What does not fit is dropped."""
    _, writer_end = os.pipe()
    writer = make(Stream(writer_end))
    for number in range(2 * MAX_QUEUED_BYTES // 1000):
        writer.write(line(number))
    assert sum(len(each) for each in writer._lines) <= MAX_QUEUED_BYTES
    assert sum(dropped) >= MAX_QUEUED_BYTES // 1000 - 100


def test_an_output_whose_reader_is_gone_delays_nothing(make: Make, dropped: list[int]) -> None:
    """All lines are dropped and counted."""
    reader, writer_end = os.pipe()
    os.close(reader)
    writer = make(Stream(writer_end))
    for number in range(100):
        writer.write(line(number))
    assert writer.flush()
    assert sum(dropped) == 100


def test_a_full_disk_is_reported_when_there_is_space_again(
    make: Make, dropped: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that was written in part is ended, so that the next one is whole."""
    path = tmp_path / "log"
    writer = make(LogFile(str(path)))
    writer.write(line(0))
    assert writer.flush()
    is_full = True
    real_write = os.write

    def write(descriptor: int, data: bytes) -> int:
        if not is_full:
            return real_write(descriptor, data)
        if len(data) > 100:
            return real_write(descriptor, data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log_writer.os, "write", lambda fd, data: write(fd, bytes(data[:1100])))
    writer.write(line(1))
    assert writer.flush()
    is_full = False
    writer.write(line(2))
    assert writer.flush()
    eventually(lambda: b"dropped" in path.read_bytes(), "the report")
    first, _cut, second, report = path.read_bytes().splitlines(keepends=True)
    assert (first, second, report) == (line(0), line(2), b"dropped 1\n")
    assert sum(dropped) == 1


def test_a_file_on_a_missing_directory_is_opened_later(make: Make, dropped: list[int], tmp_path: Path) -> None:
    """The writer starts all the same."""
    path = tmp_path / "logs" / "log"
    writer = make(LogFile(str(path)))
    writer.write(line(0))
    assert writer.flush()
    path.parent.mkdir()
    writer.write(line(1))
    assert writer.flush()
    assert path.read_bytes() == line(1) + b"dropped 1\n"
    assert dropped == [1]


def test_a_named_pipe_without_reader_delays_nothing(make: Make, tmp_path: Path) -> None:
    """Its opening does not wait; a reader that comes later gets the lines."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = make(LogFile(str(path)))
    writer.write(line(0))
    assert writer.flush()
    reader = open_log_file(str(path))
    assert read_all(reader, b"\n") == [line(0)]
    os.close(reader)


def test_the_end_waits_for_a_limited_time(make: Make) -> None:
    """For lines that can be written, and not long for a pipe that is not read."""
    reader, writer_end = os.pipe()
    writer = make(Stream(writer_end))
    for number in range(30):
        writer.write(line(number))
    writer.close()
    assert len(os.read(reader, 65536)) == 30_000
    writer = make(Stream(writer_end))
    for number in range(300):
        writer.write(line(number))
    began_at = time.monotonic()
    writer.close()
    assert is_within(time.monotonic() - began_at, FLUSH_TIMEOUT_S, slack_s=NO_DELAY_S)


def test_a_child_process_does_not_wait_for_the_thread_of_its_parent(make: Make) -> None:
    """At the fork that thread may hold the lock of the event that wakes it; nothing in the child releases it."""
    writer = make(Stream(os.open(os.devnull, os.O_WRONLY)))
    with writer._wake._cond:  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            signal.alarm(5)  # ends a child that waits
            writer.write(line(1))
            writer.flush()
            writer.close()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_a_child_process_does_not_write_the_lines_of_its_parent(make: Make) -> None:
    """Nor does it wait for a thread that it does not have."""
    reader, writer_end = os.pipe()
    writer = make(Stream(writer_end))
    for number in range(100):
        writer.write(line(number))
    child = os.fork()
    if child == 0:
        began_at = time.monotonic()
        writer.close()
        os._exit(int(not is_within(time.monotonic() - began_at, 0, slack_s=NO_DELAY_S)))
    assert os.waitpid(child, 0)[1] == 0
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.extend(read_all(reader, b"000099")))
    thread.start()
    assert writer.flush()
    thread.join()
    assert [each[:6] for each in found if re.match(rb"\d{6}", each)] == [b"%06d" % number for number in range(100)]


BLOCK_SIGTERM = """
import os, signal
from dockyard.log_writer import LogWriter, Stream
writer = LogWriter(Stream(1), lambda count: b"", lambda count: None)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
writer.write(b"not ended\\n")
writer.close()
"""


def test_the_thread_takes_no_signal_that_the_program_blocks() -> None:
    """SIGTERM waits until the server has started: taken by another thread, it would end the process."""
    ended = subprocess.run([sys.executable, "-c", BLOCK_SIGTERM], stdout=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"not ended\n")

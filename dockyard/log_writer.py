"""Writes log lines in a thread of its own, so that an output that takes nothing never delays anything else.

Standard output may be a pipe that is not read, a disk may be full or hang. Lines wait in memory, up to
MAX_QUEUED_BYTES; beyond that they are dropped. When lines can be written again, one line says how many were dropped.

Several processes write to one output. Lines are whole and in the order of each process: they are written in blocks of
at most 4096 bytes, which the kernel writes to a pipe in one piece.
"""

import collections
import contextlib
import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable
from typing import Protocol

from dockyard.signals import signals_blocked

MAX_QUEUED_BYTES = 2**20
FLUSH_TIMEOUT_S = 1.0
_BLOCK_BYTES = select.PIPE_BUF
_COLLECT_S = 0.01  # from the first line to the writing: the lines of this time are written together
_POLL_S = 0.5
_FLUSH_INTERVAL_S = 0.001


class LogOutput(Protocol):
    """Where lines go."""

    def open(self) -> int:
        """Return a descriptor for the next block. Raises OSError."""

    def close(self) -> None:
        """Close what `open` has opened."""


class Stream:
    """A standard stream, by its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def open(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def close(self) -> None:
        """Do nothing: the stream belongs to the process."""


class LogFile:
    """A file that is appended to. It is opened again after logrotate has moved it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def open(self) -> int:
        """Return the descriptor of the file that has the path now. Raises OSError."""
        if self._descriptor < 0 or self._was_moved():
            self.close()
            self._descriptor = open_log_file(self._path)
        return self._descriptor

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _was_moved(self) -> bool:
        ours = os.fstat(self._descriptor)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (there.st_dev, there.st_ino) != (ours.st_dev, ours.st_ino)


def open_log_file(path: str) -> int:
    """Open a file to append lines, without waiting for the reader of a named pipe. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISFIFO(os.stat(path).st_mode):
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(path, flags, 0o644)


class LogWriter:
    """Writes lines to an output. `write` may be called by one thread at a time.

    `report(count)` returns the line that says how many lines were dropped; `count_dropped(count)` counts them. `name`
    is that of the thread, which gets no signals: one that other threads block waits for them. Belongs to the process
    that creates it: after a fork it does nothing in the child, where the thread is missing that may have held the lock
    of the event at that moment.
    """

    def __init__(
        self,
        output: LogOutput,
        report: Callable[[int], bytes],
        count_dropped: Callable[[int], object],
        *,
        name: str = "log",
    ) -> None:
        self._output = output
        self._report = report
        self._count_dropped = count_dropped
        self._lines: collections.deque[bytes] = collections.deque()
        self._queued_bytes = 0  # by `write`
        self._done_bytes = 0  # by the thread
        self._rejected = 0  # lines, by `write`
        self._lost = 0  # lines, by the thread
        self._reported = 0
        self._is_mid_line = False
        self._is_closed = False
        self._wake = threading.Event()
        self._pid = os.getpid()
        with signals_blocked(signal.valid_signals()):
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def write(self, line: bytes) -> None:
        """Have a line written, which ends with a line break. Does not block."""
        if os.getpid() != self._pid:
            return
        if self._queued_bytes - self._done_bytes + len(line) > MAX_QUEUED_BYTES:
            self._rejected += 1
            self._count_dropped(1)
            return
        self._queued_bytes += len(line)
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, timeout_s: float = FLUSH_TIMEOUT_S) -> bool:
        """Wait until all lines are written; whether they are."""
        if os.getpid() != self._pid:
            return False
        deadline = time.monotonic() + timeout_s
        while self._done_bytes != self._queued_bytes:
            if time.monotonic() > deadline:
                return False
            time.sleep(_FLUSH_INTERVAL_S)
        return True

    def close(self) -> None:
        """Write what is there, within FLUSH_TIMEOUT_S, and end."""
        if self._is_closed or os.getpid() != self._pid:
            return
        self._is_closed = True
        self._wake.set()
        self.flush()

    def _run(self) -> None:
        while not self._is_closed or self._lines:
            self._wake.wait()
            if not self._is_closed:
                time.sleep(_COLLECT_S)
            self._wake.clear()
            while self._lines:
                self._write_block()
        self._output.close()

    def _write_block(self) -> None:
        block = [self._lines.popleft()]
        size = len(block[0])
        while self._lines and size + len(self._lines[0]) <= _BLOCK_BYTES:
            block.append(self._lines.popleft())
            size += len(block[-1])
        try:
            self._write_all(b"".join(block))
            dropped = self._rejected + self._lost
            if dropped > self._reported and not self._lines:
                self._write_all(self._report(dropped - self._reported))
                self._reported = dropped
        except OSError:  # disk full, reader gone, or the file cannot be opened: counted, and reported when it can
            self._lost += len(block)
            self._count_dropped(len(block))
        finally:
            self._done_bytes += size

    def _write_all(self, data: bytes) -> None:
        descriptor = self._output.open()
        if self._is_mid_line:
            data = b"\n" + data
        while data:
            try:
                written = os.write(descriptor, data)
            except BlockingIOError:
                self._wait_for_space(descriptor)
                continue
            data = data[written:]
            self._is_mid_line = bool(data)

    def _wait_for_space(self, descriptor: int) -> None:
        """Wait until a descriptor that does not block can be written; a standard stream may be of that kind too."""
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        poll.poll(_POLL_S * 1000)

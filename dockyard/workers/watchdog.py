"""The watchdog: kills workers whose event loop does not run, because the kernel keeps giving them connections.

Each worker is connected with the supervisor by a pair of sockets, which no file names. The worker sends one byte when
it has started, and then gets one ping at a time; another byte asks it to accept no more connections. A late reply alone
is no reason to kill a worker: one with more clients than the machine can serve replies late, and without it the other
workers would have even more. One that does not reply and uses no processor time is frozen, and killed after FROZEN_S;
one that uses processor time gets STUCK_S.
"""

import contextlib
import os
import signal
import socket
import time

import attrs
import structlog

from dockyard.workers.listener import stop_accepting
from dockyard.workers.processes import processor_ticks

FROZEN_S = 5.0
STUCK_S = 30.0

_PING = b"."
_STOP_ACCEPTING = b"s"

log = structlog.get_logger()


@attrs.define
class _Ping:
    """A ping without a reply: sent at `sent_at`, to a worker that last used processor time at `ran_at`."""

    sent_at: float
    ran_at: float
    processor_ticks: int


class Watchdog:
    """Watches one worker through the supervisor's end of its pair of sockets. Does not block.

    `has_killed`: the worker did not respond.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.has_killed = False
        self._connection = connection
        self._has_started = False
        self._ping: _Ping | None = None

    def has_started(self) -> bool:
        """Whether the worker has started, that is, accepts connections."""
        if not self._has_started:
            self._has_started = self._receive()
        return self._has_started

    def check(self, pid: int) -> None:
        """Send a ping, or kill the worker if it does not reply to the last one. Before it has started, do nothing."""
        if not self.has_started():
            return
        if self._ping and self._receive():
            self._ping = None
        now = time.monotonic()
        if self._ping is None:
            self._ping = _Ping(now, now, processor_ticks(pid))
            with contextlib.suppress(OSError):  # the worker has just ended
                self._connection.send(_PING)
        self._kill_if_frozen(pid, self._ping, now)

    def stop_accepting(self) -> None:
        """Ask the worker to accept no more connections."""
        with contextlib.suppress(OSError):  # the worker has ended
            self._connection.send(_STOP_ACCEPTING)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _receive(self) -> bool:
        try:
            return bool(self._connection.recv(64))
        except OSError:  # nothing there, or the worker has ended
            return False

    def _kill_if_frozen(self, pid: int, ping: _Ping, now: float) -> None:
        ticks = processor_ticks(pid)
        if ticks != ping.processor_ticks:
            ping.processor_ticks, ping.ran_at = ticks, now
        waited_s = now - ping.sent_at
        if waited_s >= STUCK_S or (waited_s >= FROZEN_S and now - ping.ran_at >= FROZEN_S):
            log.error("worker does not respond: killed", pid=pid, silent_s=round(waited_s, 1))
            self.has_killed = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class WatchedProcess:
    """The worker's end of its pair of sockets. `listener` is the descriptor of the socket that it accepts from."""

    def __init__(self, connection: socket.socket, listener: int) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._listener = listener

    def fileno(self) -> int:
        """The descriptor that is readable when the supervisor has sent something."""
        return self._connection.fileno()

    def report_start(self) -> None:
        """Tell the supervisor that this worker has started."""
        self._send()

    def reply(self) -> bool:
        """Do what the supervisor has asked for, and reply. For the event loop. False when the supervisor has ended."""
        try:
            received = self._connection.recv(64)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if _STOP_ACCEPTING in received:
            stop_accepting(self._listener)
        self._send()
        return bool(received)

    def _send(self) -> None:
        with contextlib.suppress(OSError):  # the supervisor has ended
            self._connection.send(_PING)

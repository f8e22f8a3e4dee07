"""The watchdog: kills workers whose event loop does not run, because the kernel keeps giving them connections.

Each worker gets one ping at a time. A late reply alone is no reason to kill it: a worker with more clients than the
machine can serve replies late, and without it the other workers would have even more. One that does not reply and uses
no processor time is frozen, and killed after FROZEN_S; one that uses processor time gets STUCK_S.
"""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import structlog

from dockyard.workers.messages import PingRequest, encode
from dockyard.workers.processes import find_worker, processor_ticks
from dockyard.workers.shard_lock import socket_name

CHECK_INTERVAL_S = 0.5
FROZEN_S = 5.0
STUCK_S = 30.0

log = structlog.get_logger()


@attrs.define
class _Ping:
    """A ping without a reply: sent at `sent_at`, to a worker that last used processor time at `ran_at`."""

    pid: int
    sent_at: float
    ran_at: float
    processor_ticks: int
    connection: socket.socket | None = None


class Watchdog:
    """Watches the owners of `shards`. `is_ours(pid)` says whether a process is a running worker of this server."""

    def __init__(self, run: Path, shards: int, is_ours: Callable[[int], bool]) -> None:
        self._run = run
        self._shards = shards
        self._is_ours = is_ours
        self._pings: dict[int, _Ping] = {}

    def check(self) -> None:
        """Check every worker once. Does not block."""
        for shard in range(self._shards):
            ping = self._pings.get(shard)
            pid = self._find_worker(shard)
            if ping and (ping.pid != pid or _is_replied(ping)):
                _close(self._pings.pop(shard))
                ping = None
            if pid is None:
                continue
            now = time.monotonic()
            if ping is None:
                ping = self._pings[shard] = _Ping(pid, now, now, processor_ticks(pid))
            if ping.connection is None:
                ping.connection = self._send_ping(shard)
            self._kill_if_frozen(ping, now)

    def close(self) -> None:
        """Close all connections."""
        while self._pings:
            _close(self._pings.popitem()[1])

    def _kill_if_frozen(self, ping: _Ping, now: float) -> None:
        ticks = processor_ticks(ping.pid)
        if ticks != ping.processor_ticks:
            ping.processor_ticks, ping.ran_at = ticks, now
        waited_s = now - ping.sent_at
        if waited_s >= STUCK_S or (waited_s >= FROZEN_S and now - ping.ran_at >= FROZEN_S):
            log.error("worker does not respond: killed", pid=ping.pid, silent_s=round(waited_s, 1))
            with contextlib.suppress(ProcessLookupError):
                os.kill(ping.pid, signal.SIGKILL)

    def _find_worker(self, shard: int) -> int | None:
        """The process that has claimed a shard, if it is a worker of this server."""
        pid = find_worker(self._run, shard)
        return pid if pid is not None and self._is_ours(pid) else None

    def _send_ping(self, shard: int) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            directory = os.open(self._run, os.O_RDONLY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{directory}/{socket_name(shard)}")
            finally:
                os.close(directory)
            connection.send(encode(PingRequest()))
        except OSError:  # no socket yet, or its backlog is full: the time counts from the first attempt
            connection.close()
            return None
        return connection


def _is_replied(ping: _Ping) -> bool:
    if ping.connection is None:
        return False
    try:
        if ping.connection.recv(64):
            return True
    except BlockingIOError:
        return False
    except OSError:
        pass
    _close(ping)  # and send another
    ping.connection = None
    return False


def _close(ping: _Ping) -> None:
    if ping.connection is not None:
        ping.connection.close()

"""The watchdog: ends workers whose event loop stands still, because the kernel goes on giving them connections.

Each worker has one question to answer at a time. Silence is not enough to be ended: a worker with more clients than the
machine can serve answers late, and without it the others would have even more. So one that is silent and does not run
is frozen, and ended after `FROZEN_S`; one that is silent though its loop's thread runs gets `STUCK_S`.
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

LOOK_EVERY_S = 0.5
FROZEN_S = 5.0
STUCK_S = 30.0

log = structlog.get_logger()


@attrs.define
class _Ping:
    """A question that was not answered yet: asked at `asked_at`, of a worker that last ran at `ran_at`."""

    pid: int
    asked_at: float
    ran_at: float
    processor_ticks: int
    connection: socket.socket | None = None


class Watchdog:
    """Watches the owners of `shards`. `is_ours(pid)` says whether a process is one of our living workers."""

    def __init__(self, run: Path, shards: int, is_ours: Callable[[int], bool]) -> None:
        self._run = run
        self._shards = shards
        self._is_ours = is_ours
        self._pings: dict[int, _Ping] = {}

    def look(self) -> None:
        """Look at every worker once. Does not block."""
        for shard in range(self._shards):
            ping = self._pings.get(shard)
            pid = self._find_worker(shard)
            if ping and (ping.pid != pid or _is_answered(ping)):
                _hang_up(self._pings.pop(shard))
                ping = None
            if pid is None:
                continue
            now = time.monotonic()
            if ping is None:
                ping = self._pings[shard] = _Ping(pid, now, now, processor_ticks(pid))
            if ping.connection is None:
                ping.connection = self._ask(shard)
            self._judge(ping, now)

    def close(self) -> None:
        """Watch no more."""
        while self._pings:
            _hang_up(self._pings.popitem()[1])

    def _judge(self, ping: _Ping, now: float) -> None:
        ticks = processor_ticks(ping.pid)
        if ticks != ping.processor_ticks:
            ping.processor_ticks, ping.ran_at = ticks, now
        silent_s = now - ping.asked_at
        if silent_s >= STUCK_S or (silent_s >= FROZEN_S and now - ping.ran_at >= FROZEN_S):
            log.error("a worker does not answer and is killed", pid=ping.pid, silent_s=round(silent_s, 1))
            with contextlib.suppress(ProcessLookupError):
                os.kill(ping.pid, signal.SIGKILL)

    def _find_worker(self, shard: int) -> int | None:
        """The process that claimed a shard, if it is one of ours."""
        pid = find_worker(self._run, shard)
        return pid if pid is not None and self._is_ours(pid) else None

    def _ask(self, shard: int) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            directory = os.open(self._run, os.O_RDONLY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{directory}/{socket_name(shard)}")
            finally:
                os.close(directory)
            connection.send(encode(PingRequest()))
        except OSError:  # no socket yet, or nobody takes what is sent there: it has as long to
            connection.close()
            return None
        return connection


def _is_answered(ping: _Ping) -> bool:
    if ping.connection is None:
        return False
    try:
        if ping.connection.recv(64):
            return True
    except BlockingIOError:
        return False
    except OSError:
        pass
    _hang_up(ping)  # and ask again
    ping.connection = None
    return False


def _hang_up(ping: _Ping) -> None:
    if ping.connection is not None:
        ping.connection.close()

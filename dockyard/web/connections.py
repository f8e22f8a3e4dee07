"""The TCP connections of this process, which Granian does not expose: found by their addresses in /proc/self/fd.

Used where the HTTP server is not enough: to detect that a client reads nothing, to close a connection that Granian
would keep open, and to send a file with sendfile(2).
"""

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

import attrs

CLIENT_TIMEOUT_S = 60.0
CHECKS_PER_TIMEOUT = 6
MAX_UNSENT_BYTES = 128 * 1024
_TCP_INFO_BYTES = 232
_UNSENT, _ACKNOWLEDGED, _SENT = 144, 120, 200  # tcpi_notsent_bytes, _bytes_acked, _bytes_sent in linux/tcp.h

_Addresses = tuple[tuple[str, int], tuple[str, int]]


@attrs.frozen
class Traffic:
    """What was written to a connection, in bytes: acknowledged by the client, sent, and still waiting to be sent."""

    acknowledged: int
    sent: int
    unsent: int

    @property
    def is_unused(self) -> bool:
        """Whether nothing was ever written to the connection."""
        return not self.sent and not self.unsent


class Connections:
    """The connections of this process, by their addresses. File descriptors are cached and verified before each use."""

    def __init__(self) -> None:
        self._descriptors: dict[_Addresses, int] = {}

    def find(self, scope: Mapping[str, Any]) -> socket.socket | None:
        """Return the connection of a request as a duplicate that the caller closes; None if it is gone."""
        wanted = _addresses_of(scope)
        cached = self._descriptors.pop(wanted, None)
        if cached is not None and (connection := _duplicate(cached, wanted)):
            self._descriptors[wanted] = cached
            return connection
        opened = {int(entry) for entry in os.listdir("/proc/self/fd")}
        for candidates in (opened.difference(self._descriptors.values()), opened):
            self._descriptors.update((found, fd) for fd in candidates if (found := _read_addresses(fd)))
            fd = self._descriptors.get(wanted)
            if fd is not None and (connection := _duplicate(fd, wanted)):
                return connection
            self._descriptors.clear()  # a cached descriptor was reused for another connection
        return None

    def forget(self, scope: Mapping[str, Any]) -> None:
        """Remove the connection of a request, which is about to be closed, from the cache."""
        self._descriptors.pop(_addresses_of(scope), None)


def _addresses_of(scope: Mapping[str, Any]) -> _Addresses:
    (peer, peer_port), (host, port) = scope["client"], scope["server"]
    return (peer, int(peer_port)), (host, int(port))


def _read_addresses(fd: int) -> _Addresses | None:
    """Return the addresses of both ends of a connection; None if `fd` is none, or was closed by its owner meanwhile."""
    try:
        connection = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fd)  # the family is not checked
    except OSError:
        return None
    try:
        return connection.getpeername()[:2], connection.getsockname()[:2]
    except OSError:
        return None
    finally:
        connection.detach()


def _duplicate(fd: int, wanted: _Addresses) -> socket.socket | None:
    """Return a duplicate of a connection; None if its addresses are not the wanted ones."""
    try:
        connection = socket.socket(fileno=os.dup(fd))
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if (connection.getpeername()[:2], connection.getsockname()[:2]) == wanted:
            return connection
    connection.close()
    return None


def read_traffic(connection: socket.socket) -> Traffic | None:
    """Return the counters of the kernel (TCP_INFO, tcp(7)); None where the kernel has none."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _SENT + 8:
        return None
    (unsent,), (acknowledged,) = struct.unpack_from("=I", info, _UNSENT), struct.unpack_from("=Q", info, _ACKNOWLEDGED)
    return Traffic(acknowledged, struct.unpack_from("=Q", info, _SENT)[0], unsent)


def count_acknowledged(connection: socket.socket, sent_bytes: int, before: int) -> int:
    """How many of the bytes of a body the client's system has acknowledged, as far as the kernel knows.

    `sent_bytes` of it were written, after `before` other bytes.
    """
    traffic = read_traffic(connection)
    return max(min(sent_bytes, traffic.acknowledged - before), 0) if traffic else sent_bytes


def limit_unsent(connection: socket.socket) -> None:
    """Have the kernel accept only MAX_UNSENT_BYTES more than the client has room for (TCP_NOTSENT_LOWAT, tcp(7)).

    For responses that clients may end at any byte: what is written ahead is lost then.
    """
    with contextlib.suppress(OSError):  # the client has left
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, MAX_UNSENT_BYTES)


def shut_down(connection: socket.socket) -> None:
    """End a connection after the bytes that were written to it, whichever other descriptors refer to it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class StallDetector:
    """Detects a client that acknowledges no bytes for CLIENT_TIMEOUT_S.

    Call `is_stalled` every `check_every_s` while bytes are waiting to be read by the client.
    """

    def __init__(self) -> None:
        self.check_every_s = CLIENT_TIMEOUT_S / CHECKS_PER_TIMEOUT
        self._acknowledged = -1
        self._idle_checks = 0

    def is_stalled(self, connection: socket.socket) -> bool:
        """Whether the client has acknowledged nothing since CHECKS_PER_TIMEOUT checks."""
        traffic = read_traffic(connection)
        acknowledged = traffic.acknowledged if traffic else self._acknowledged
        self._idle_checks = self._idle_checks + 1 if acknowledged == self._acknowledged else 0
        self._acknowledged = acknowledged
        return self._idle_checks >= CHECKS_PER_TIMEOUT

"""The connections under Granian, which shows the application none: found by their addresses, asked of the kernel.

Used where a request needs more than HTTP tells: whether a client still reads, closing a connection that Granian would
keep, and sending a file without copying it.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

import attrs

_LOOKS = 6
_TCP_INFO_BYTES = 232
_UNSENT, _ACKNOWLEDGED, _SENT = 144, 120, 200  # tcpi_notsent_bytes, _bytes_acked, _bytes_sent in linux/tcp.h

_Addresses = tuple[tuple[str, int], tuple[str, int]]


@attrs.frozen
class Traffic:
    """What went out over a connection, in bytes: acknowledged by the client, sent, and still waiting to be sent."""

    acknowledged: int
    sent: int
    unsent: int

    @property
    def is_none(self) -> bool:
        """Whether nothing was ever written."""
        return not self.sent and not self.unsent


class Connections:
    """The connections of this process, by their addresses. Those that were seen are remembered by their descriptor."""

    def __init__(self) -> None:
        self._descriptors: dict[_Addresses, int] = {}

    def find(self, scope: Mapping[str, Any]) -> socket.socket | None:
        """The connection of a request, as a descriptor of the caller's own to close. None when it is gone."""
        wanted = _addresses_of(scope)
        remembered = self._descriptors.pop(wanted, None)
        if remembered is not None and (connection := _take(remembered, wanted)):
            self._descriptors[wanted] = remembered
            return connection
        opened = {int(entry) for entry in os.listdir("/proc/self/fd")}
        for unseen in (opened.difference(self._descriptors.values()), opened):
            self._descriptors.update((each, fd) for fd in unseen if (each := _read_addresses(fd)))
            found = self._descriptors.get(wanted)
            if found is not None and (connection := _take(found, wanted)):
                return connection
            self._descriptors.clear()  # a number that was seen is another connection's by now
        return None

    def forget(self, scope: Mapping[str, Any]) -> None:
        """The connection of a request is about to be closed."""
        self._descriptors.pop(_addresses_of(scope), None)


def _addresses_of(scope: Mapping[str, Any]) -> _Addresses:
    (peer, peer_port), (host, port) = scope["client"], scope["server"]
    return (peer, int(peer_port)), (host, int(port))


def _read_addresses(fd: int) -> _Addresses | None:
    """Who is connected by a descriptor that somebody else may close at any moment; None when it is no connection."""
    try:
        connection = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 0, fd)  # the family is not looked at
    except OSError:
        return None
    try:
        return connection.getpeername()[:2], connection.getsockname()[:2]
    except OSError:
        return None
    finally:
        connection.detach()


def _take(fd: int, wanted: _Addresses) -> socket.socket | None:
    """A descriptor of our own for the same connection, if it is the wanted one."""
    try:
        connection = socket.socket(fileno=os.dup(fd))
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if (connection.getpeername()[:2], connection.getsockname()[:2]) == wanted:
            return connection
    connection.close()
    return None


def traffic(connection: socket.socket) -> Traffic | None:
    """What the kernel counted (TCP_INFO, tcp(7)); None where it does not."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _SENT + 8:
        return None
    (unsent,), (acknowledged,) = struct.unpack_from("=I", info, _UNSENT), struct.unpack_from("=Q", info, _ACKNOWLEDGED)
    return Traffic(acknowledged, struct.unpack_from("=Q", info, _SENT)[0], unsent)


def shut_down(connection: socket.socket) -> None:
    """End a connection after what was written to it, under whoever else holds it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Patience:
    """How long a client may read nothing. Ask `is_over` every `look_every_s` while something waits to be read."""

    def __init__(self, limit_s: float) -> None:
        self.look_every_s = limit_s / _LOOKS
        self._acknowledged = -1
        self._idle_looks = 0

    def is_over(self, connection: socket.socket) -> bool:
        """Whether the client has acknowledged nothing for as long as it had."""
        seen = traffic(connection)
        acknowledged = seen.acknowledged if seen else self._acknowledged
        self._idle_looks = self._idle_looks + 1 if acknowledged == self._acknowledged else 0
        self._acknowledged = acknowledged
        return self._idle_looks >= _LOOKS

"""The TCP connections of this process, which Granian does not expose: found by their addresses in /proc/self/fd.

Used where the HTTP server is not enough: to detect that a client reads nothing, to close a connection that Granian
would keep open, and to send a file with sendfile(2).
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

CLIENT_TIMEOUT_S = 60.0
CHECKS_PER_TIMEOUT = 6
MAX_UNSENT_BYTES = 128 * 1024
MAX_KNOWN_BODIES = 4096
MAX_FREE_DESCRIPTORS = 128
_TCP_INFO_BYTES = 232
_ACKNOWLEDGED = 120  # tcpi_bytes_acked in linux/tcp.h

_Addresses = tuple[tuple[str, int], tuple[str, int]]


class Connections:
    """The connections of this process, by their addresses. File descriptors are cached and verified before each use."""

    def __init__(self) -> None:
        self._descriptors: dict[_Addresses, int] = {}
        self._free: set[int] = set()  # of connections that were closed: the next ones get the lowest of them
        self._had_body: dict[_Addresses, None] = {}

    def find(self, scope: Mapping[str, Any]) -> socket.socket | None:
        """Return the connection of a request as a duplicate that the caller closes; None if it is gone."""
        wanted = _addresses_of(scope)
        for candidates in self._find_candidates():
            found = {addresses: fd for fd in candidates if (addresses := _read_addresses(fd))}
            self._descriptors.update(found)
            self._free.difference_update(found.values())
            fd = self._descriptors.get(wanted)
            if fd is not None:
                if connection := _duplicate(fd, wanted):
                    return connection
                del self._descriptors[wanted]
        return None

    def _find_candidates(self) -> Iterator[Iterable[int]]:
        """Descriptors that may be connections whose addresses are not known: the likely ones first, in the end all."""
        yield ()
        for fd in sorted(self._free):
            yield (fd,)
        opened = {int(entry) for entry in os.listdir("/proc/self/fd")}
        yield opened.difference(self._descriptors.values())
        self._descriptors.clear()  # a known descriptor was reused for another connection
        yield opened

    def remember_body(self, scope: Mapping[str, Any]) -> None:
        """Remember that a request on this connection has a body. Of many, the last MAX_KNOWN_BODIES are remembered."""
        self._had_body[_addresses_of(scope)] = None
        if len(self._had_body) > MAX_KNOWN_BODIES:
            del self._had_body[next(iter(self._had_body))]

    def had_body(self, scope: Mapping[str, Any]) -> bool:
        """Whether this request, or one before it on its connection, has a body. (Or one before from the same port.)"""
        return _addresses_of(scope) in self._had_body

    def forget(self, scope: Mapping[str, Any]) -> None:
        """Remove the connection of a request, which is about to be closed, from the cache."""
        fd = self._descriptors.pop(_addresses_of(scope), None)
        if fd is not None and len(self._free) < MAX_FREE_DESCRIPTORS:
            self._free.add(fd)


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


def read_acknowledged(connection: socket.socket) -> int | None:
    """Return how many bytes the client's system has acknowledged (TCP_INFO, tcp(7)); None where the kernel has none."""
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(info) < _ACKNOWLEDGED + 8:
        return None
    acknowledged: int
    (acknowledged,) = struct.unpack_from("=Q", info, _ACKNOWLEDGED)
    return acknowledged


def count_acknowledged(connection: socket.socket, sent_bytes: int, before: int) -> int:
    """How many of the bytes of a body the client's system has acknowledged, as far as the kernel knows.

    `sent_bytes` of it were written, after `before` other bytes.
    """
    acknowledged = read_acknowledged(connection)
    return sent_bytes if acknowledged is None else max(min(sent_bytes, acknowledged - before), 0)


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
        acknowledged = read_acknowledged(connection)
        if acknowledged is None:
            acknowledged = self._acknowledged
        self._idle_checks = self._idle_checks + 1 if acknowledged == self._acknowledged else 0
        self._acknowledged = acknowledged
        return self._idle_checks >= CHECKS_PER_TIMEOUT

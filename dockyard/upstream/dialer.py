"""Connections whose every wait is bounded: looking names up, connecting to a checked address, reading.

A socket timeout limits one operation; an upstream that sends a byte a second passes it for ever. Here each read waits
for as long as its request has left (`Attempt`), so headers and bodies that drip end at the deadline as well, without a
thread that watches. Looking up a name has no timeout at all; it runs in a daemon thread, one per name at a time.
"""

import io
import socket
import ssl
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from contextlib import suppress
from enum import Enum, auto
from typing import Any

import attrs

from dockyard.upstream.network_zones import NetworkZone, find_zone, is_zone_allowed

LOOKUP_TIMEOUT_S = 5.0
MAX_LOOKUPS = 4
MAX_PREFERRED_ADDRESSES = 64
READ_BUFFER_BYTES = 16 * 1024
MANY_BYTES = 32 * 1024

SockAddr = tuple[Any, ...]
Address = tuple[socket.AddressFamily, SockAddr]


class Stage(Enum):
    """How far a request came."""

    CONNECT = auto()
    TLS = auto()
    ANSWER = auto()


class DialError(Exception):
    """No connection. `why` is fit for a message."""

    def __init__(
        self, why: str, *, is_timeout: bool = False, is_forbidden: bool = False, is_refused: bool = False
    ) -> None:
        super().__init__(why)
        self.why = why
        self.is_refused = is_refused
        self.is_timeout = is_timeout
        self.is_forbidden = is_forbidden


class Resolver:
    """Name lookups with a time limit. One per name at a time, whoever asks; `MAX_LOOKUPS` in all.

    A lookup that hangs keeps its thread until the C library gives up, and only names beside it wait for a place.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lookups: dict[tuple[str, int], Future[list[Address]]] = {}
        self._last_good: OrderedDict[tuple[str, int], Address] = OrderedDict()

    def find(self, host: str, port: int, within_s: float) -> list[Address]:
        """The addresses of a host, the one that worked last first, else IPv6 and IPv4 in turn. Raises DialFailed."""
        try:
            return _lookup(host, port, socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            pass
        try:
            found = self._share(host, port).result(within_s)
        except TimeoutError as exc:
            raise DialError("its name was not found in time") from exc
        except (OSError, UnicodeError) as exc:
            raise DialError("its name is not known") from exc
        found = _alternate(found)
        if (good := self._last_good.get((host, port))) in found:
            found.sort(key=lambda one: one != good)
        return found

    def remember(self, host: str, port: int, found: Address) -> None:
        """This address works: networks without a way out for IPv6 then cost one timeout and not one per connection."""
        with self._lock:
            self._last_good[host, port] = found
            self._last_good.move_to_end((host, port))
            while len(self._last_good) > MAX_PREFERRED_ADDRESSES:
                self._last_good.popitem(last=False)

    def _share(self, host: str, port: int) -> Future[list[Address]]:
        key = (host, port)
        with self._lock:
            future = self._lookups.get(key)
            if future is not None:
                return future
            if len(self._lookups) >= MAX_LOOKUPS:
                raise DialError("the name server does not answer")
            future = self._lookups[key] = Future()
        threading.Thread(target=self._run, args=(key, future), name="lookup", daemon=True).start()
        return future

    def _run(self, key: tuple[str, int], future: Future[list[Address]]) -> None:
        try:
            future.set_result(_lookup(*key))
        except (OSError, UnicodeError) as exc:
            future.set_exception(exc)
        finally:
            with self._lock:
                del self._lookups[key]


def _lookup(host: str, port: int, flags: int = 0) -> list[Address]:
    infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in infos]


def _alternate(found: list[Address]) -> list[Address]:
    """Families in turn, so that a dead one costs one attempt (RFC 8305 section 4)."""
    ranks: dict[int, int] = {}
    ordered = []
    for one in found:
        rank = ranks[one[0]] = ranks.get(one[0], -1) + 1
        ordered.append((rank, one))
    return [one for _, one in sorted(ordered, key=lambda pair: pair[0])]


@attrs.define(eq=False)
class Attempt:
    """One attempt at one request: its limits, and what became of it.

    `deadline` is on the monotonic clock; None: only `step_s` limits each wait. `registry_zone` is the zone of the
    registry that redirected there; None: the host is the registry itself or is listed as trusted.
    """

    resolver: Resolver
    connect_s: float
    step_s: float
    deadline: float | None
    registry_zone: NetworkZone | None
    is_fresh: bool = False  # do not use a connection that was used before
    stage: Stage = Stage.CONNECT
    is_reused: bool = False
    received_bytes: int = 0
    zone: NetworkZone = NetworkZone.PUBLIC
    sock: socket.socket | None = None
    used_at: float = attrs.field(factory=time.monotonic)  # when something was received last

    def left(self, max_bytes: float) -> float:
        """Seconds that the next wait may take. Raises TimeoutError when the time is over."""
        if self.deadline is None:
            return max_bytes
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time for this request is over")
        return min(max_bytes, left)

    def may_use(self, zone: NetworkZone) -> bool:
        return self.registry_zone is None or is_zone_allowed(zone, self.registry_zone)

    def dial(self, host: str, port: int, *, is_proxy: bool) -> tuple[socket.socket, NetworkZone]:
        """Connect to the first address that is allowed and answers; with the zone it lies in. Raises DialFailed."""
        try:
            found = self.resolver.find(host, port, self.left(LOOKUP_TIMEOUT_S))
            allowed = [one for one in found if is_proxy or self.may_use(find_zone(one[1][0]))]
            if not allowed:
                raise DialError("an address that is not allowed", is_forbidden=True)
            return self._connect(host, port, allowed)
        except TimeoutError as exc:
            raise DialError("no connection in time", is_timeout=True) from exc

    def _connect(self, host: str, port: int, found: list[Address]) -> tuple[socket.socket, NetworkZone]:
        refused: OSError | None = None
        for family, address in found:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(self.left(self.connect_s))
                sock.connect(address)
                sock.settimeout(self.left(self.connect_s))  # the handshake, if there is one
            except OSError as exc:
                sock.close()
                refused = refused if isinstance(exc, TimeoutError) else exc
                continue
            self.resolver.remember(host, port, (family, address))
            return sock, find_zone(address[0])
        if refused is None:
            raise TimeoutError
        raise DialError("no connection", is_refused=True) from refused

    def tap(self, sock: socket.socket) -> "DeadlineSocket":
        """What http.client reads an answer from."""
        self.sock = sock
        return DeadlineSocket(sock, self)

    def abort(self) -> None:
        """Make a read that waits in another thread fail."""
        if (sock := self.sock) is not None:
            with suppress(OSError):
                # SSLSocket.shutdown() would go on in plain text.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class DeadlineSocket:
    """Stands where http.client wants a socket, to give it a file that keeps to the watch."""

    def __init__(self, sock: socket.socket, watch: Attempt) -> None:
        self._sock = sock
        self._watch = watch

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._sock, self._watch), READ_BUFFER_BYTES)


class _DeadlineReader(io.RawIOBase):
    """The receiving side of a connection. Each read waits for as long as the watch has left."""

    def __init__(self, sock: socket.socket, watch: Attempt) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open while we need it
        self._watch = watch
        self._error: OSError | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._error is not None:
            raise self._error
        self._sock.settimeout(self._watch.left(self._watch.step_s))
        count = self._sock.recv_into(buffer)
        if isinstance(self._sock, ssl.SSLSocket) and 0 < count < len(buffer) and len(buffer) >= MANY_BYTES:
            count = self._gather(memoryview(buffer), count)
        self._watch.received_bytes += count
        self._watch.used_at = time.monotonic()
        return count

    def _gather(self, view: memoryview, count: int) -> int:
        """TLS gives one record of 16 KiB per call; take those that are here already as well."""
        self._sock.settimeout(0.0)
        try:
            while count < len(view) and (more := self._sock.recv_into(view[count:])):
                count += more
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        except OSError as exc:
            self._error = exc  # first what came before it
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

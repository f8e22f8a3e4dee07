"""Connections with a time limit on every wait: name lookup, connect, and each read of a response.

A socket timeout limits one operation; an upstream that sends one byte per second never exceeds it. Here each read
waits at most for what is left of the request's deadline (`Attempt`), so slow headers and bodies end at the deadline
without a watchdog thread. A name lookup has no timeout at all, so it runs in a daemon thread, one per name at a time.
"""

import socket
import ssl
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from enum import Enum
from typing import Any

import attrs
from cachetools import LRUCache

from dockyard.http1.response import ResponseReader
from dockyard.oci.origin import join_host_port
from dockyard.upstream.network_zones import NetworkZone, find_zone, is_zone_allowed

LOOKUP_TIMEOUT_S = 5.0
MAX_LOOKUPS = 4
MAX_PREFERRED_ADDRESSES = 64
MIN_GATHER_BYTES = 32 * 1024
MAX_SHOWN_ADDRESSES = 4  # in a message

SockAddr = tuple[Any, ...]
Address = tuple[socket.AddressFamily, SockAddr]


class Stage(Enum):
    """What a request is waiting for, as the log names it."""

    LOOKUP = "name resolution"
    CONNECT = "connect"
    PROXY_TLS = "TLS with the proxy"
    TUNNEL = "CONNECT by the proxy"
    TLS = "TLS"
    RESPONSE = "response"


class DialError(Exception):
    """No connection. `reason` contains no address and no host name; `error`, for the log, does."""

    def __init__(
        self,
        reason: str,
        error: str,
        *,
        is_timeout: bool = False,
        is_forbidden: bool = False,
        is_refused: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error
        self.is_refused = is_refused
        self.is_timeout = is_timeout
        self.is_forbidden = is_forbidden


class Resolver:
    """Name lookups with a time limit: one per name at a time, shared by all threads, and `MAX_LOOKUPS` in total.

    A lookup that hangs keeps its thread until the C library gives up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lookups: dict[tuple[str, int], Future[list[Address]]] = {}
        self._preferred: LRUCache[tuple[str, int], Address] = LRUCache(MAX_PREFERRED_ADDRESSES)

    def resolve(self, host: str, port: int, timeout_s: float) -> list[Address]:
        """The addresses of a host: the last one that worked first, then IPv6 and IPv4 in turn. Raises DialError."""
        try:
            return _lookup(host, port, socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            pass
        try:
            addresses = self._start_or_join(host, port).result(timeout_s)
        except TimeoutError as exc:
            raise DialError("name resolution timed out", f"no response for {host} after {timeout_s:.1f} s") from exc
        except (OSError, UnicodeError) as exc:
            raise DialError("name resolution failed", f"{host}: {exc}") from exc
        addresses = _alternate_families(addresses)
        with self._lock:
            preferred = self._preferred.get((host, port))
        if preferred in addresses:
            addresses.sort(key=lambda address: address != preferred)
        return addresses

    def prefer(self, host: str, port: int, address: Address) -> None:
        """Put this address first from now on: in networks without IPv6 routes only one connection has to time out."""
        with self._lock:
            self._preferred[host, port] = address

    def _start_or_join(self, host: str, port: int) -> Future[list[Address]]:
        key = (host, port)
        with self._lock:
            future = self._lookups.get(key)
            if future is not None:
                return future
            if len(self._lookups) >= MAX_LOOKUPS:
                reason = "name resolution failed: too many lookups are waiting for the name server"
                raise DialError(reason, f"{host}: not looked up, {MAX_LOOKUPS} other names are waiting")
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


def _alternate_families(addresses: list[Address]) -> list[Address]:
    """Alternate IPv6 and IPv4, so that a family without a route costs one attempt (RFC 8305 section 4)."""
    ranks: dict[int, int] = {}
    ranked = []
    for address in addresses:
        rank = ranks[address[0]] = ranks.get(address[0], -1) + 1
        ranked.append((rank, address))
    return [address for _, address in sorted(ranked, key=lambda pair: pair[0])]


@attrs.define(eq=False)
class Attempt:
    """One attempt to send a request and read its response: the time limits, and the connection that is used.

    `deadline` is on the monotonic clock; with None only `stall_timeout_s` limits each wait. `registry_zone` is the
    zone of the registry that referred to this host; None: the host is the registry itself or listed in
    `trusted_hosts`, and may have any address. `certificate` describes the one that was not trusted.
    """

    resolver: Resolver
    connect_timeout_s: float
    stall_timeout_s: float
    deadline: float | None
    registry_zone: NetworkZone | None
    needs_new_connection: bool = False
    stage: Stage = Stage.LOOKUP
    is_reused: bool = False
    received_bytes: int = 0
    zone: NetworkZone = NetworkZone.PUBLIC
    certificate: str = ""
    sock: socket.socket | None = None
    started_at: float = attrs.field(factory=time.monotonic)
    last_received_at: float = attrs.field(factory=time.monotonic)

    def remaining_s(self, max_s: float) -> float:
        """Seconds that the next wait may take, at most `max_s`. Raises TimeoutError when the deadline has passed."""
        if self.deadline is None:
            return max_s
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the deadline of the request has passed")
        return min(max_s, remaining)

    @property
    def is_past_deadline(self) -> bool:
        """Whether the time of the whole operation is over, not only that of one wait."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def may_connect_to(self, zone: NetworkZone) -> bool:
        return self.registry_zone is None or is_zone_allowed(zone, self.registry_zone)

    def connect(self, host: str, port: int, *, is_proxy: bool) -> tuple[socket.socket, NetworkZone]:
        """Connect to the first allowed address that accepts; return the socket and its zone. Raises DialError."""
        try:
            self.stage = Stage.LOOKUP
            addresses = self.resolver.resolve(host, port, self.remaining_s(LOOKUP_TIMEOUT_S))
            self.stage = Stage.CONNECT
            allowed = [address for address in addresses if is_proxy or self.may_connect_to(find_zone(address[1][0]))]
            if not allowed:
                found = ", ".join(join_host_port(*address[:2]) for _, address in addresses[:MAX_SHOWN_ADDRESSES])
                raise DialError("address not allowed", f"not allowed: {found}", is_forbidden=True)
            return self._connect_to_first(host, port, allowed)
        except TimeoutError as exc:
            raise DialError("connection timed out", str(exc), is_timeout=True) from exc

    def _connect_to_first(self, host: str, port: int, addresses: list[Address]) -> tuple[socket.socket, NetworkZone]:
        refused: OSError | None = None
        failed: list[str] = []
        for family, address in addresses:
            began = time.monotonic()
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(self.remaining_s(self.connect_timeout_s))
                sock.connect(address)
                sock.settimeout(self.remaining_s(self.connect_timeout_s))  # for a TLS handshake
            except OSError as exc:
                sock.close()
                is_timeout = isinstance(exc, TimeoutError)
                refused = refused if is_timeout else exc
                error = f"timed out after {time.monotonic() - began:.1f} s" if is_timeout else str(exc)
                failed.append(f"{join_host_port(*address[:2])}: {error}")
                continue
            self.resolver.prefer(host, port, (family, address))
            return sock, find_zone(address[0])
        error = "; ".join(failed[:MAX_SHOWN_ADDRESSES])
        if refused is None:
            raise TimeoutError(error)
        raise DialError("connection failed", error, is_refused=True) from refused

    def make_reader(self, sock: socket.socket) -> "DeadlineReader":
        """The object that http.client reads the response from."""
        self.sock = sock
        return DeadlineReader(sock, self)

    def abort(self) -> None:
        """Make a read that waits in another thread fail."""
        if (sock := self.sock) is not None:
            with suppress(OSError):
                # SSLSocket.shutdown() would continue in plain text.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class DeadlineReader(ResponseReader):
    """A reader whose reads wait at most for what is left of the attempt's deadline."""

    def __init__(self, sock: socket.socket, attempt: Attempt) -> None:
        super().__init__(sock)
        self._attempt = attempt
        self._error: OSError | None = None

    def receive(self, buffer: Any) -> int:
        if self._error is not None:
            raise self._error
        self.sock.settimeout(self._attempt.remaining_s(self._attempt.stall_timeout_s))
        count: int = self.sock.recv_into(buffer)
        if isinstance(self.sock, ssl.SSLSocket) and 0 < count < len(buffer) and len(buffer) >= MIN_GATHER_BYTES:
            count = self._gather(memoryview(buffer), count)
        self._attempt.received_bytes += count
        self._attempt.last_received_at = time.monotonic()
        return count

    def _gather(self, view: memoryview, count: int) -> int:
        """Add the TLS records that have arrived already: one call returns one record of at most 16 KiB."""
        self.sock.settimeout(0.0)
        try:
            while count < len(view) and (more := self.sock.recv_into(view[count:])):
                count += more
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        except OSError as exc:
            self._error = exc  # raised by the next read, after the bytes that came before it
        return count

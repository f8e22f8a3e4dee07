"""A client that discards response bodies at the lowest cost: one thread, MSG_TRUNC.

    python -m bench.peers.discard < plan.json > result.json

The plan has `port`, and `clients`: for each a list of `[path, size]` to download one after the other. All clients
connect, and then send their requests at once. After a response with `Connection: close` a client connects again, and
with `is_fresh` after each. With `is_tls` it uses TLS, whose bytes must be decrypted: into one buffer. A response that
is not a complete 200 (206 if the plan has a `range`) of the expected size ends the run with status 1. `method` may be
HEAD. With `limit_s` the run is stopped after that time, and `was_cut` in the result is true. Times are on the monotonic
clock.
"""

import contextlib
import json
import resource
import select
import socket
import ssl
import sys
import time
from collections import deque
from typing import Any

import attrs

from bench.peers.content import ACCEPT

HEAD_BYTES = 16 * 1024
CHUNK_BYTES = 4 * 1024 * 1024
TLS_CHUNK_BYTES = 16 * 1024  # the maximum of a record, and so of one read
MAX_RUN_S = 280.0
CONNECT_TIMEOUT_S = 30.0
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError)


class BadResponse(Exception):
    """The response of the server is not the expected one."""


@attrs.define(eq=False)
class Client:
    """One connection and its list of downloads."""

    socket: socket.socket
    todo: deque[tuple[str, int]]
    method: str = "GET"
    range: str = ""
    is_fresh: bool = False
    head: bytes = b""
    left: int = 0
    first_byte_at: float | None = None
    done_at: float | None = None
    received: int = 0
    first_byte_times: list[float] = attrs.field(factory=list)
    requested_at: float = 0.0
    is_closing: bool = False  # this connection is not used again

    def must_read_on(self) -> bool:
        """Return whether to read until that would block: poll does not report what TLS has decrypted already."""
        return isinstance(self.socket, ssl.SSLSocket) and self.left > 0

    def send_request(self) -> None:
        path, self.left = self.todo[0]
        self.head, self.is_closing = b"", False
        self.requested_at = time.monotonic()
        wanted = f"Range: {self.range}\r\n" if self.range else ""
        head = f"{self.method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: discard\r\nAccept: {ACCEPT}\r\n"
        request = f"{head}{wanted}\r\n".encode()
        if self.socket.send(request) != len(request):
            raise BadResponse("the request does not fit into the socket buffer")

    def receive(self, buffer: bytearray) -> bool:
        """Read available bytes; return whether the last download is complete."""
        if not self.head.endswith(b"\r\n\r\n") and not self._receive_head():
            return False
        if self.left:
            count = self._discard(buffer)
            if count == 0:
                raise BadResponse(f"{self.todo[0][0]}: ended {self.left} bytes early")
            self._count(count)
        if self.left:
            return False
        self.todo.popleft()
        if self.todo:
            if self.is_closing:
                return False
            self.send_request()
            return False
        self.done_at = time.monotonic()
        return True

    def _discard(self, buffer: bytearray) -> int:
        if isinstance(self.socket, ssl.SSLSocket):
            return self.socket.recv_into(buffer, min(TLS_CHUNK_BYTES, self.left))
        return self.socket.recv_into(buffer, min(CHUNK_BYTES, self.left), socket.MSG_TRUNC)

    def _count(self, count: int) -> None:
        if self.left == self.todo[0][1]:
            self._note_first_byte()
        self.left -= count
        self.received += count

    def _note_first_byte(self) -> None:
        now = time.monotonic()
        self.first_byte_times.append(now - self.requested_at)
        if self.first_byte_at is None:
            self.first_byte_at = now

    def _receive_head(self) -> bool:
        """Read from the head of the response; return whether it is complete and something has followed."""
        data = self.socket.recv(HEAD_BYTES)
        if not data:
            raise BadResponse(f"{self.todo[0][0]}: no response")
        head, end, body = (self.head + data).partition(b"\r\n\r\n")
        self.head = head + end
        if not end:
            return False
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path, size = self.todo[0]
        if status.split(" ")[1] != ("206" if self.range else "200") or headers.get("content-length") != str(size):
            raise BadResponse(f"{path}: {status}, Content-Length {headers.get('content-length')}, expected {size}")
        self.is_closing = self.is_fresh or headers.get("connection", "").lower() == "close"
        if self.method == "HEAD":
            self._note_first_byte()
            self.left = 0
            return True
        if body:
            self._count(len(body))
            return True
        return False


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Execute a plan."""
    with contextlib.ExitStack() as stack:
        return Run(plan, stack).execute()


class Run:
    """The clients of a plan, and their connections."""

    def __init__(self, plan: dict[str, Any], stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._port: int = plan["port"]
        self._limit_s: float | None = plan.get("limit_s")
        self._tls = _tls_context() if plan.get("is_tls") else None
        self._buffer = bytearray(CHUNK_BYTES)
        self._poll = stack.enter_context(select.epoll())
        self._connections = 0
        options = (plan.get("method", "GET"), plan.get("range", ""), plan.get("is_fresh", False))
        self._clients: dict[int, Client] = {}
        for todo in plan["clients"]:
            self._add(Client(self._connect(), deque((path, size) for path, size in todo), *options))
        self._waiting = len(self._clients)

    def execute(self) -> dict[str, Any]:
        """Send all requests, and receive until all clients are done or the time is over."""
        used_before_s = _cpu_s()
        began_at = time.monotonic()
        for client in self._clients.values():
            client.send_request()
        was_cut = False
        while self._waiting and not was_cut:
            passed_s = time.monotonic() - began_at
            if passed_s > MAX_RUN_S:
                raise BadResponse(f"{self._waiting} clients not done after {MAX_RUN_S:.0f} s")
            was_cut = self._limit_s is not None and passed_s > self._limit_s
            for descriptor, _ in self._poll.poll(0.5):
                self._receive(descriptor)
        clients = self._clients.values()
        return {
            "began_at": began_at,
            "wall_s": time.monotonic() - began_at,
            "first_byte_at": [client.first_byte_at for client in clients],
            "done_at": [client.done_at for client in clients],
            "first_byte_s": [value for client in clients for value in client.first_byte_times],
            "received": sum(client.received for client in clients),
            "connections": self._connections,
            "client_cpu_s": _cpu_s() - used_before_s,
            "was_cut": was_cut,
        }

    def _receive(self, descriptor: int) -> None:
        client = self._clients[descriptor]
        try:
            is_done = client.receive(self._buffer)
            while not is_done and client.must_read_on():
                is_done = client.receive(self._buffer)
        except WOULD_BLOCK:
            return
        if is_done:
            self._waiting -= 1
            self._poll.unregister(descriptor)
        elif client.is_closing and not client.left:
            self._poll.unregister(descriptor)
            del self._clients[descriptor]
            client.socket.close()
            client.socket = self._connect()
            self._add(client)
            client.send_request()

    def _add(self, client: Client) -> None:
        self._clients[client.socket.fileno()] = client
        self._poll.register(client.socket, select.EPOLLIN)

    def _connect(self) -> socket.socket:
        self._connections += 1
        return self._stack.enter_context(_connect(self._port, self._tls))


def _connect(port: int, tls: ssl.SSLContext | None) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_TIMEOUT_S)
    if tls is not None:
        connected = tls.wrap_socket(connected)
    connected.setblocking(False)
    return connected


def _tls_context() -> ssl.SSLContext:
    """Return a context that accepts any certificate: the servers are those of this benchmark."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Read the plan, run it, write the result."""
    try:
        result = run(json.load(sys.stdin))
    except (BadResponse, OSError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

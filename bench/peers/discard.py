"""A client that discards response bodies at the lowest cost: one thread, MSG_TRUNC.

    python -m bench.peers.discard < plan.json > result.json

The plan has `port`, and `clients`: for each a list of `[path, size]` to download one after the other. All clients
connect, and then send their requests at once. After a response with `Connection: close` a client connects again. A
response that is not a complete 200 (206 if the plan has a `range`) of the expected size ends the run with status 1.
With `limit_s` the run is stopped after that time, and `was_cut` in the result is true. Times are on the monotonic
clock.
"""

import contextlib
import json
import resource
import select
import socket
import sys
import time
from typing import Any

import attrs

HEAD_BYTES = 16 * 1024
CHUNK_BYTES = 4 * 1024 * 1024
MAX_RUN_S = 280.0


class BadResponse(Exception):
    """The response of the server is not the expected one."""


@attrs.define(eq=False)
class Client:
    """One connection and its list of downloads."""

    socket: socket.socket
    todo: list[tuple[str, int]]
    range: str = ""
    head: bytes = b""
    left: int = 0
    first_byte_at: float | None = None
    done_at: float | None = None
    received: int = 0
    first_byte_times: list[float] = attrs.field(factory=list)
    requested_at: float = 0.0
    is_closing: bool = False  # the response has Connection: close

    def send_request(self) -> None:
        path, self.left = self.todo[0]
        self.head, self.is_closing = b"", False
        self.requested_at = time.monotonic()
        wanted = f"Range: {self.range}\r\n" if self.range else ""
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: discard\r\n{wanted}\r\n".encode()
        if self.socket.send(request) != len(request):
            raise BadResponse("the request does not fit into the socket buffer")

    def receive(self, buffer: bytearray) -> bool:
        """Read available bytes; return whether the last download is complete."""
        if not self.head.endswith(b"\r\n\r\n") and not self._receive_head():
            return False
        if self.left:
            count = self.socket.recv_into(buffer, min(CHUNK_BYTES, self.left), socket.MSG_TRUNC)
            if count == 0:
                raise BadResponse(f"{self.todo[0][0]}: ended {self.left} bytes early")
            self._count(count)
        if self.left:
            return False
        self.todo.pop(0)
        if self.todo:
            if self.is_closing:
                return False
            self.send_request()
            return False
        self.done_at = time.monotonic()
        return True

    def _count(self, count: int) -> None:
        if self.left == self.todo[0][1]:
            self.first_byte_times.append(time.monotonic() - self.requested_at)
            if self.first_byte_at is None:
                self.first_byte_at = time.monotonic()
        self.left -= count
        self.received += count

    def _receive_head(self) -> bool:
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
        self.is_closing = headers.get("connection", "").lower() == "close"
        if body:
            self._count(len(body))
            return True
        return False


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Execute a plan."""
    with contextlib.ExitStack() as stack:
        return _run(plan, stack)


def _run(plan: dict[str, Any], stack: contextlib.ExitStack) -> dict[str, Any]:
    buffer = bytearray(CHUNK_BYTES)
    poll = stack.enter_context(select.epoll())
    clients: dict[int, Client] = {}
    for todo in plan["clients"]:
        connected = stack.enter_context(_connect(plan["port"]))
        clients[connected.fileno()] = Client(connected, [(path, size) for path, size in todo], plan.get("range", ""))
        poll.register(connected, select.EPOLLIN)
    limit_s = plan.get("limit_s")
    used_before_s = _cpu_s()
    began_at = time.monotonic()
    for client in clients.values():
        client.send_request()
    waiting = len(clients)
    was_cut = False
    while waiting:
        now = time.monotonic()
        if limit_s is not None and now - began_at > limit_s:
            was_cut = True
            break
        if now - began_at > MAX_RUN_S:
            raise BadResponse(f"{waiting} clients not done after {MAX_RUN_S:.0f} s")
        for descriptor, _ in poll.poll(0.5):
            client = clients[descriptor]
            try:
                is_done = client.receive(buffer)
            except BlockingIOError:
                continue
            if is_done:
                waiting -= 1
                poll.unregister(descriptor)
            elif client.is_closing and not client.left:
                poll.unregister(descriptor)
                client.socket.close()
                client.socket = stack.enter_context(_connect(plan["port"]))
                clients[client.socket.fileno()] = clients.pop(descriptor)
                poll.register(client.socket, select.EPOLLIN)
                client.send_request()
    ended_at = time.monotonic()
    return {
        "began_at": began_at,
        "wall_s": ended_at - began_at,
        "first_byte_at": [client.first_byte_at for client in clients.values()],
        "done_at": [client.done_at for client in clients.values()],
        "first_byte_s": [value for client in clients.values() for value in client.first_byte_times],
        "received": sum(client.received for client in clients.values()),
        "client_cpu_s": _cpu_s() - used_before_s,
        "was_cut": was_cut,
    }


def _connect(port: int) -> socket.socket:
    connected = socket.create_connection(("127.0.0.1", port), timeout=30)
    connected.setblocking(False)
    return connected


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

"""A client that throws away what it gets, as cheaply as the kernel allows: one thread, MSG_TRUNC.

    python -m bench.peers.discard < plan.json > result.json

The plan has `port`, and `clients`: for each the list of `[path, size]` that it downloads one after the other. All
connect, then all ask at once; who is told `Connection: close` connects anew for the next. An answer that is not a
whole 200 (206 when the plan has a `range`) of the size expected ends the run with status 1. With `limit_s` the run is
cut there, on purpose, and says so. Times are on the monotonic clock.
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
PIECE_BYTES = 4 * 1024 * 1024
PATIENCE_S = 280.0


class BadAnswer(Exception):
    """The server did not give what it should."""


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
    firsts: list[float] = attrs.field(factory=list)
    asked_at: float = 0.0
    is_last_answer: bool = False  # has the server said that it closes the connection after this one?

    def ask(self) -> None:
        path, self.left = self.todo[0]
        self.head, self.is_last_answer = b"", False
        self.asked_at = time.monotonic()
        wanted = f"Range: {self.range}\r\n" if self.range else ""
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: discard\r\n{wanted}\r\n".encode()
        if self.socket.send(request) != len(request):
            raise BadAnswer("the request did not fit")

    def take(self, buffer: bytearray) -> bool:
        """Read what is there; return whether the last download is complete."""
        if not self.head.endswith(b"\r\n\r\n") and not self._take_head():
            return False
        if self.left:
            count = self.socket.recv_into(buffer, min(PIECE_BYTES, self.left), socket.MSG_TRUNC)
            if count == 0:
                raise BadAnswer(f"{self.todo[0][0]}: ended {self.left} bytes early")
            self._got(count)
        if self.left:
            return False
        self.todo.pop(0)
        if self.todo:
            if self.is_last_answer:
                return False
            self.ask()
            return False
        self.done_at = time.monotonic()
        return True

    def _got(self, count: int) -> None:
        if self.left == self.todo[0][1]:
            self.firsts.append(time.monotonic() - self.asked_at)
            if self.first_byte_at is None:
                self.first_byte_at = time.monotonic()
        self.left -= count
        self.received += count

    def _take_head(self) -> bool:
        heard = self.socket.recv(HEAD_BYTES)
        if not heard:
            raise BadAnswer(f"{self.todo[0][0]}: no answer")
        head, end, body = (self.head + heard).partition(b"\r\n\r\n")
        self.head = head + end
        if not end:
            return False
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        path, size = self.todo[0]
        if status.split(" ")[1] != ("206" if self.range else "200") or headers.get("content-length") != str(size):
            raise BadAnswer(f"{path}: {status}, Content-Length {headers.get('content-length')}, expected {size}")
        self.is_last_answer = headers.get("connection", "").lower() == "close"
        if body:
            self._got(len(body))
            return True
        return False


def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Carry out the plan."""
    with contextlib.ExitStack() as opened:
        return _run(plan, opened)


def _run(plan: dict[str, Any], opened: contextlib.ExitStack) -> dict[str, Any]:
    buffer = bytearray(PIECE_BYTES)
    poll = opened.enter_context(select.epoll())
    clients: dict[int, Client] = {}
    for todo in plan["clients"]:
        connected = opened.enter_context(_connect(plan["port"]))
        clients[connected.fileno()] = Client(connected, [(path, size) for path, size in todo], plan.get("range", ""))
        poll.register(connected, select.EPOLLIN)
    limit_s = plan.get("limit_s")
    used_before_s = _cpu_s()
    began_at = time.monotonic()
    for client in clients.values():
        client.ask()
    waiting = len(clients)
    was_cut = False
    while waiting:
        now = time.monotonic()
        if limit_s is not None and now - began_at > limit_s:
            was_cut = True
            break
        if now - began_at > PATIENCE_S:
            raise BadAnswer(f"{waiting} clients not done after {PATIENCE_S:.0f} s")
        for descriptor, _ in poll.poll(0.5):
            client = clients[descriptor]
            try:
                is_done = client.take(buffer)
            except BlockingIOError:
                continue
            if is_done:
                waiting -= 1
                poll.unregister(descriptor)
            elif client.is_last_answer and not client.left:
                poll.unregister(descriptor)
                client.socket.close()
                client.socket = opened.enter_context(_connect(plan["port"]))
                clients[client.socket.fileno()] = clients.pop(descriptor)
                poll.register(client.socket, select.EPOLLIN)
                client.ask()
    ended_at = time.monotonic()
    return {
        "began_at": began_at,
        "wall_s": ended_at - began_at,
        "first_byte_at": [client.first_byte_at for client in clients.values()],
        "done_at": [client.done_at for client in clients.values()],
        "first_byte_s": [value for client in clients.values() for value in client.firsts],
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
    except (BadAnswer, OSError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    json.dump(result, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The registry behind all peers: one thread, sendfile, a settable delay and a settable line.

    python -m bench.peers.upstream PORT DIRECTORY

It serves `DIRECTORY/blobs/DIGEST` and `DIRECTORY/manifests/REPOSITORY/REFERENCE`, GET and HEAD, with Range. Every
answer waits for the delay; all bodies together share the line's bandwidth, as they would share a site's uplink. It
counts what it was asked. `/control/...` sets, counts and forgets.
"""

import hashlib
import heapq
import json
import os
import re
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qsl

import attrs

QUANTUM_BYTES = 256 * 1024  # what one connection sends before the next has its turn
LIMITED_QUANTUM_BYTES = 16 * 1024
BURST_S = 0.004  # how much unused bandwidth is kept
TICK_S = 0.001
MAX_HEAD_BYTES = 64 * 1024
BACKLOG = 1024
MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")
BLOB = re.compile(r"/v2/.+/blobs/([^/]+)")
RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d*) *\r\n", re.IGNORECASE)


@attrs.define
class Count:
    """What one path was asked; times are on the monotonic clock, which all processes of a machine share."""

    gets: int = 0
    heads: int = 0
    body_bytes: int = 0
    first_byte_at: float | None = None
    last_byte_at: float | None = None


@attrs.define
class Line:
    """The bandwidth that all connections share: bytes that may be sent now, growing with time. 0 has no limit."""

    bytes_per_s: float = 0.0
    allowance: float = 0.0
    filled_at: float = 0.0

    def may_send(self, now: float) -> int:
        if not self.bytes_per_s:
            return QUANTUM_BYTES
        most = max(self.bytes_per_s * BURST_S, LIMITED_QUANTUM_BYTES)
        self.allowance = min(self.allowance + (now - self.filled_at) * self.bytes_per_s, most)
        self.filled_at = now
        return int(self.allowance)

    def spend(self, sent: int) -> None:
        if self.bytes_per_s:
            self.allowance -= sent


@attrs.frozen
class Found:
    """What a path leads to: bytes in memory, or a file."""

    media_type: str
    digest: str
    size: int
    data: bytes = b""
    file: int = -1


@attrs.define(eq=False)
class Connection:
    """One client: what it has said, and what is still to be sent to it."""

    socket: socket.socket
    heard: bytes = b""
    head: bytes = b""
    file: int = -1
    offset: int = 0
    left: int = 0
    count: Count | None = None
    is_answering: bool = False
    is_open: bool = True


class Server:
    """The event loop. `turn` holds the connections that have a body to send and room to send it."""

    def __init__(self, listener: socket.socket, directory: Path) -> None:
        self._listener = listener
        self._directory = directory
        self._poll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._turn: deque[Connection] = deque()
        self._later: list[tuple[float, int, Connection, Callable[[], None]]] = []
        self._found: dict[str, Found | None] = {}
        self._counts: dict[str, Count] = {}
        self._line = Line()
        self._delay_s = 0.0
        self._number = 0

    def run(self) -> None:
        self._poll.register(self._listener, select.EPOLLIN)
        while True:
            for descriptor, events in self._poll.poll(self._patience()):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif (connection := self._connections.get(descriptor)) is not None:
                    self._wake(connection, events)
            now = time.monotonic()
            while self._later and self._later[0][0] <= now:
                _, _, connection, act = heapq.heappop(self._later)
                if connection.is_open:
                    act()
            self._send_bodies()

    def _patience(self) -> float:
        now = time.monotonic()
        if self._turn:
            return 0.0 if self._line.may_send(now) >= LIMITED_QUANTUM_BYTES else TICK_S
        return max(0.0, self._later[0][0] - now) if self._later else -1

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[accepted.fileno()] = Connection(accepted)
            self._poll.register(accepted, select.EPOLLIN)

    def _wake(self, connection: Connection, events: int) -> None:
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self._close(connection)
            return
        if events & select.EPOLLOUT:
            self._poll.modify(connection.socket, select.EPOLLIN)
            self._turn.append(connection)
        if events & select.EPOLLIN:
            try:
                heard = connection.socket.recv(MAX_HEAD_BYTES)
            except BlockingIOError:
                return
            except OSError:
                heard = b""
            if not heard:
                self._close(connection)
                return
            connection.heard += heard
            self._listen(connection)

    def _close(self, connection: Connection) -> None:
        connection.is_open = False
        descriptor = connection.socket.fileno()
        self._connections.pop(descriptor, None)
        self._poll.unregister(descriptor)
        connection.socket.close()

    def _listen(self, connection: Connection) -> None:
        """Take the next request, when the last one is answered."""
        if connection.is_answering or b"\r\n\r\n" not in connection.heard:
            return
        request, _, connection.heard = connection.heard.partition(b"\r\n\r\n")
        connection.is_answering = True
        method, target, _ = request.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if target.startswith("/control/"):
            self._answer(connection, HTTPStatus.OK, Found("application/json", "", 0, self._control(target)), method)
            return
        self._number += 1
        due = time.monotonic() + self._delay_s
        if self._delay_s:
            heapq.heappush(
                self._later, (due, self._number, connection, lambda: self._serve(connection, method, target, request))
            )
        else:
            self._serve(connection, method, target, request)

    def _serve(self, connection: Connection, method: str, target: str, request: bytes) -> None:
        path = target.partition("?")[0]
        count = self._counts.setdefault(path, Count())
        if method == "HEAD":
            count.heads += 1
        else:
            count.gets += 1
        connection.count = count
        if path == "/v2/":
            self._answer(connection, HTTPStatus.OK, Found("application/json", "", 2, b"{}"), method)
            return
        found = self._find(path)
        if found is None:
            body = b'{"errors":[{"code":"NAME_UNKNOWN","message":"not here"}]}'
            self._answer(connection, HTTPStatus.NOT_FOUND, Found("application/json", "", 0, body), method)
            return
        wanted = RANGE.search(request + b"\r\n")
        if wanted is None:
            self._answer(connection, HTTPStatus.OK, found, method)
            return
        first = int(wanted[1])
        last = min(int(wanted[2]) if wanted[2] else found.size - 1, found.size - 1)
        if first > last:
            body = b"{}"
            nothing = Found("application/json", "", 0, body)
            self._answer(connection, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, nothing, method)
            return
        self._answer(connection, HTTPStatus.PARTIAL_CONTENT, found, method, (first, last))

    def _find(self, path: str) -> Found | None:
        """Look once; what is there stays as it is for the life of the server."""
        found = self._found.get(path)
        if found is None:
            found = self._found[path] = self._look(path)
        return found

    def _look(self, path: str) -> Found | None:
        if (manifest := MANIFEST.fullmatch(path)) is not None:
            file = self._directory / "manifests" / manifest[1] / manifest[2]
            if not file.is_file():
                return None
            data = file.read_bytes()
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            return Found(json.loads(data)["mediaType"], digest, len(data), data)
        if (blob := BLOB.fullmatch(path)) is not None:
            file = self._directory / "blobs" / blob[1]
            if not file.is_file():
                return None
            descriptor = os.open(file, os.O_RDONLY)
            return Found("application/octet-stream", blob[1], file.stat().st_size, file=descriptor)
        return None

    def _answer(
        self,
        connection: Connection,
        status: HTTPStatus,
        found: Found,
        method: str,
        part: tuple[int, int] | None = None,
    ) -> None:
        size = found.size if found.file >= 0 else len(found.data)
        first, last = part or (0, size - 1)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {found.media_type}",
            f"Content-Length: {last - first + 1}",
            "Accept-Ranges: bytes",
            "Docker-Distribution-Api-Version: registry/2.0",
        ]
        if found.digest:
            lines += [f"Docker-Content-Digest: {found.digest}", f'ETag: "{found.digest}"']
        if part is not None:
            lines.append(f"Content-Range: bytes {first}-{last}/{size}")
        connection.head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        connection.file, connection.offset, connection.left = -1, 0, 0
        if method != "HEAD":
            if found.file < 0:
                connection.head += found.data[first : last + 1]
                if connection.count is not None:
                    connection.count.body_bytes += last - first + 1
            else:
                connection.file, connection.offset, connection.left = found.file, first, last - first + 1
        if connection.left:
            self._turn.append(connection)
        else:
            self._turn.appendleft(connection)  # what has no body to send does not wait for the line

    def _send_bodies(self) -> None:
        """Give every connection that has room its turn, until the line is used up; the next comes first next time."""
        for _ in range(len(self._turn)):
            if self._turn[0].left and self._line.may_send(time.monotonic()) < LIMITED_QUANTUM_BYTES:
                return
            connection = self._turn.popleft()
            if not connection.is_open:
                continue
            try:
                is_done = self._send(connection)
            except BlockingIOError:
                self._poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)
                continue
            except OSError:
                self._close(connection)
                continue
            if not is_done:
                self._turn.append(connection)
                continue
            connection.is_answering = False
            connection.count = None
            self._listen(connection)

    def _send(self, connection: Connection) -> bool:
        """Send a piece; return whether the answer has been sent whole."""
        if connection.head:
            sent = connection.socket.send(connection.head, socket.MSG_MORE if connection.left else 0)
            connection.head = connection.head[sent:]
            if connection.head:
                return False
        if not connection.left:
            return True
        quantum = LIMITED_QUANTUM_BYTES if self._line.bytes_per_s else QUANTUM_BYTES
        sent = os.sendfile(
            connection.socket.fileno(), connection.file, connection.offset, min(quantum, connection.left)
        )
        self._line.spend(sent)
        connection.offset += sent
        connection.left -= sent
        if (count := connection.count) is not None:
            now = time.monotonic()
            count.body_bytes += sent
            count.last_byte_at = now
            if count.first_byte_at is None:
                count.first_byte_at = now
        return not connection.left

    def _control(self, target: str) -> bytes:
        path, _, query = target.partition("?")
        match path.removeprefix("/control/"):
            case "counts":
                return json.dumps({path: attrs.asdict(count) for path, count in self._counts.items()}).encode()
            case "forget":
                self._counts = {}
            case "set":
                for key, value in parse_qsl(query):
                    match key:
                        case "delay_s":
                            self._delay_s = float(value)
                        case "bytes_per_s":
                            self._line = Line(float(value), 0.0, time.monotonic())
        return b"{}"


def main() -> None:
    """Serve until killed."""
    port, directory = int(sys.argv[1]), Path(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    listener.setblocking(False)
    Server(listener, directory).run()


if __name__ == "__main__":
    main()

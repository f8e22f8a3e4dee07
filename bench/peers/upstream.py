"""The registry that is the upstream of all caches: one thread, sendfile, with a configurable delay and bandwidth.

    python -m bench.peers.upstream PORT DIRECTORY

It serves `DIRECTORY/blobs/DIGEST` and `DIRECTORY/manifests/REPOSITORY/REFERENCE`, GET and HEAD, with Range. Each
response is delayed; all bodies together share the bandwidth, as the clients of one site share its uplink, and are sent
in pieces of a size that can be set. Requests are counted. `/control/...` configures it, and returns and resets the
counts.
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

QUANTUM_BYTES = 256 * 1024  # what one connection sends before the next one
LIMITED_QUANTUM_BYTES = 16 * 1024
BURST_S = 0.004  # for how long unused bandwidth is saved
TICK_S = 0.001
MAX_HEAD_BYTES = 64 * 1024
BACKLOG = 1024
MANIFEST = re.compile(r"/v2/(.+)/manifests/([^/]+)")
BLOB = re.compile(r"/v2/.+/blobs/([^/]+)")
RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d*) *\r\n", re.IGNORECASE)


@attrs.define
class Count:
    """The requests for one path. Times are on the monotonic clock, which all processes of a machine share."""

    gets: int = 0
    heads: int = 0
    body_bytes: int = 0
    first_byte_at: float | None = None
    last_byte_at: float | None = None


@attrs.define
class BandwidthLimit:
    """The bandwidth that all connections share, as a token bucket. 0 is no limit."""

    bytes_per_s: float = 0.0
    allowance: float = 0.0
    filled_at: float = 0.0

    def available(self, now: float) -> int:
        if not self.bytes_per_s:
            return QUANTUM_BYTES
        maximum = max(self.bytes_per_s * BURST_S, LIMITED_QUANTUM_BYTES)
        self.allowance = min(self.allowance + (now - self.filled_at) * self.bytes_per_s, maximum)
        self.filled_at = now
        return int(self.allowance)

    def spend(self, sent: int) -> None:
        if self.bytes_per_s:
            self.allowance -= sent


@attrs.frozen
class Resource:
    """The content of a path: bytes in memory, or a file."""

    media_type: str
    digest: str
    size: int
    data: bytes = b""
    file: int = -1


@attrs.define(eq=False)
class Connection:
    """The connection of a client: what was received, and what is still to be sent."""

    socket: socket.socket
    received: bytes = b""
    head: bytes = b""
    file: int = -1
    offset: int = 0
    left: int = 0
    count: Count | None = None
    is_responding: bool = False
    is_open: bool = True


class Server:
    """The event loop. `sending` has the connections with a body to send and space in the socket buffer."""

    def __init__(self, listener: socket.socket, directory: Path) -> None:
        self._listener = listener
        self._directory = directory
        self._poll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._sending: deque[Connection] = deque()
        self._delayed: list[tuple[float, int, Connection, Callable[[], None]]] = []
        self._resources: dict[str, Resource | None] = {}
        self._counts: dict[str, Count] = {}
        self._limit = BandwidthLimit()
        self._delay_s = 0.0
        self._piece_bytes = LIMITED_QUANTUM_BYTES
        self._number = 0

    def run(self) -> None:
        self._poll.register(self._listener, select.EPOLLIN)
        while True:
            for descriptor, events in self._poll.poll(self._poll_timeout()):
                if descriptor == self._listener.fileno():
                    self._accept()
                elif (connection := self._connections.get(descriptor)) is not None:
                    self._handle_events(connection, events)
            now = time.monotonic()
            while self._delayed and self._delayed[0][0] <= now:
                _, _, connection, act = heapq.heappop(self._delayed)
                if connection.is_open:
                    act()
            self._send_bodies()

    def _poll_timeout(self) -> float:
        now = time.monotonic()
        if self._sending:
            return 0.0 if self._limit.available(now) >= self._piece_bytes else TICK_S
        return max(0.0, self._delayed[0][0] - now) if self._delayed else -1

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

    def _handle_events(self, connection: Connection, events: int) -> None:
        if events & (select.EPOLLERR | select.EPOLLHUP):
            self._close(connection)
            return
        if events & select.EPOLLOUT:
            self._poll.modify(connection.socket, select.EPOLLIN)
            self._sending.append(connection)
        if events & select.EPOLLIN:
            try:
                received = connection.socket.recv(MAX_HEAD_BYTES)
            except BlockingIOError:
                return
            except OSError:
                received = b""
            if not received:
                self._close(connection)
                return
            connection.received += received
            self._handle_request(connection)

    def _close(self, connection: Connection) -> None:
        connection.is_open = False
        descriptor = connection.socket.fileno()
        self._connections.pop(descriptor, None)
        self._poll.unregister(descriptor)
        connection.socket.close()

    def _handle_request(self, connection: Connection) -> None:
        """Handle the next request, if the response to the last one is complete."""
        if connection.is_responding or b"\r\n\r\n" not in connection.received:
            return
        request, _, connection.received = connection.received.partition(b"\r\n\r\n")
        connection.is_responding = True
        method, target, _ = request.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if target.startswith("/control/"):
            self._respond(connection, HTTPStatus.OK, Resource("application/json", "", 0, self._control(target)), method)
            return
        self._number += 1
        due = time.monotonic() + self._delay_s
        if self._delay_s:
            heapq.heappush(
                self._delayed, (due, self._number, connection, lambda: self._serve(connection, method, target, request))
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
            self._respond(connection, HTTPStatus.OK, Resource("application/json", "", 2, b"{}"), method)
            return
        resource = self._find(path)
        if resource is None:
            body = b'{"errors":[{"code":"NAME_UNKNOWN","message":"not here"}]}'
            self._respond(connection, HTTPStatus.NOT_FOUND, Resource("application/json", "", 0, body), method)
            return
        wanted = RANGE.search(request + b"\r\n")
        if wanted is None:
            self._respond(connection, HTTPStatus.OK, resource, method)
            return
        first = int(wanted[1])
        last = min(int(wanted[2]) if wanted[2] else resource.size - 1, resource.size - 1)
        if first > last:
            body = b"{}"
            empty = Resource("application/json", "", 0, body)
            self._respond(connection, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, empty, method)
            return
        self._respond(connection, HTTPStatus.PARTIAL_CONTENT, resource, method, (first, last))

    def _find(self, path: str) -> Resource | None:
        """Find the content of a path; it does not change while the server runs."""
        resource = self._resources.get(path)
        if resource is None:
            resource = self._resources[path] = self._load(path)
        return resource

    def _load(self, path: str) -> Resource | None:
        if (manifest := MANIFEST.fullmatch(path)) is not None:
            file = self._directory / "manifests" / manifest[1] / manifest[2]
            if not file.is_file():
                return None
            data = file.read_bytes()
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            return Resource(json.loads(data)["mediaType"], digest, len(data), data)
        if (blob := BLOB.fullmatch(path)) is not None:
            file = self._directory / "blobs" / blob[1]
            if not file.is_file():
                return None
            descriptor = os.open(file, os.O_RDONLY)
            return Resource("application/octet-stream", blob[1], file.stat().st_size, file=descriptor)
        return None

    def _respond(
        self,
        connection: Connection,
        status: HTTPStatus,
        resource: Resource,
        method: str,
        part: tuple[int, int] | None = None,
    ) -> None:
        size = resource.size if resource.file >= 0 else len(resource.data)
        first, last = part or (0, size - 1)
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {resource.media_type}",
            f"Content-Length: {last - first + 1}",
            "Accept-Ranges: bytes",
            "Docker-Distribution-Api-Version: registry/2.0",
        ]
        if resource.digest:
            lines += [f"Docker-Content-Digest: {resource.digest}", f'ETag: "{resource.digest}"']
        if part is not None:
            lines.append(f"Content-Range: bytes {first}-{last}/{size}")
        connection.head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        connection.file, connection.offset, connection.left = -1, 0, 0
        if method != "HEAD":
            if resource.file < 0:
                connection.head += resource.data[first : last + 1]
                if connection.count is not None:
                    connection.count.body_bytes += last - first + 1
            else:
                connection.file, connection.offset, connection.left = resource.file, first, last - first + 1
        if connection.left:
            self._sending.append(connection)
        else:
            self._sending.appendleft(connection)  # a response without a body does not wait for bandwidth

    def _send_bodies(self) -> None:
        """Send a part of the body on each connection in turn, until the bandwidth is used up."""
        for _ in range(len(self._sending)):
            if self._sending[0].left and self._limit.available(time.monotonic()) < self._piece_bytes:
                return
            connection = self._sending.popleft()
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
                self._sending.append(connection)
                continue
            connection.is_responding = False
            connection.count = None
            self._handle_request(connection)

    def _send(self, connection: Connection) -> bool:
        """Send a chunk; return whether the response is complete."""
        if connection.head:
            sent = connection.socket.send(connection.head, socket.MSG_MORE if connection.left else 0)
            connection.head = connection.head[sent:]
            if connection.head:
                return False
        if not connection.left:
            return True
        quantum = self._piece_bytes if self._limit.bytes_per_s else QUANTUM_BYTES
        sent = os.sendfile(
            connection.socket.fileno(), connection.file, connection.offset, min(quantum, connection.left)
        )
        self._limit.spend(sent)
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
                            self._limit = BandwidthLimit(float(value), 0.0, time.monotonic())
                        case "piece_bytes":
                            self._piece_bytes = int(float(value)) or LIMITED_QUANTUM_BYTES
        return b"{}"


def main() -> None:
    """Serve until killed."""
    port, directory = int(sys.argv[1]), Path(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    listener.setblocking(False)
    Server(listener, directory).run()


if __name__ == "__main__":
    main()

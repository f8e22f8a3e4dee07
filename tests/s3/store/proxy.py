"""A proxy before an S3 server, which records the requests and injects faults.

It closes each connection after one request, so that it sees all of them. A rule decides what happens to a request.
"""

import contextlib
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import attrs

from tests.support.raw_http import reset

TIMEOUT_S = 30.0
READ_BYTES = 64 * 1024


@attrs.frozen
class Request:
    """A request: method, target with its query, headers with names in lower case."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def operation(self) -> str:
        """The method, with the S3 operation if it is another than that of the method on an object."""
        query = {part.partition("=")[0] for part in self.target.partition("?")[2].split("&")}
        extras = sorted(query & {"uploads", "uploadId"}) + ["copy"] * ("x-amz-copy-source" in self.headers)
        return " ".join([self.method, *extras])


@attrs.frozen
class Forward:
    """Forward the request to the server, and its response to the client.

    `cut_request_after` and `cut_response_after` close both connections after that many bytes of the request body, or of
    the response with its head: by RST if `by_reset`, else by FIN. `stall_response_after` stops sending there until the
    proxy is closed. `before_response` is called when the server has responded, before anything of that is forwarded.
    """

    cut_request_after: int | None = None
    cut_response_after: int | None = None
    stall_response_after: int | None = None
    by_reset: bool = False
    before_response: Callable[[], object] | None = None


@attrs.frozen
class Respond:
    """Respond to the request in place of the server, after its body was received."""

    status: int
    body: bytes = b""
    headers: str = "Content-Type: application/xml\r\n"


@attrs.frozen
class Stall:
    """Send no response until the proxy is closed."""


Rule = Callable[[Request], Forward | Respond | Stall]


def s3_error(status: int, code: str, details: str = "") -> Respond:
    """Return an error response of S3."""
    return Respond(status, f"<?xml version='1.0'?><Error><Code>{code}</Code>{details}</Error>".encode())


class S3Proxy:
    """Listens on its own port. `requests` are the requests received. `rule` may be set at any time."""

    def __init__(self, port: int) -> None:
        self.requests: list[Request] = []
        self.rule: Rule = lambda _: Forward()
        self._server_address = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def counted(self) -> Counter[str]:
        """Count the requests by operation."""
        return Counter(request.operation for request in self.requests)

    def close(self) -> None:
        """Stop listening, and wait for the running requests."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(TIMEOUT_S)
            head, body_start = _read_head(client)
            if not head:
                return
            request = _parse(head)
            self.requests.append(request)
            left = int(request.headers.get("content-length", "0")) - len(body_start)
            match self.rule(request):
                case Respond(status, body, headers):
                    for _ in _receive(client, left):
                        pass
                    response = (
                        f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n"
                    )
                    client.sendall(response.encode() + (b"" if request.method == "HEAD" else body))
                case Stall():
                    self._closed.wait(TIMEOUT_S)
                case Forward() as action:
                    self._forward(client, head, body_start, left, action)

    def _forward(self, client: socket.socket, head: bytes, body_start: bytes, left: int, action: Forward) -> None:
        with socket.create_connection(self._server_address, TIMEOUT_S) as server:
            server.sendall(head[:-2] + b"Connection: close\r\n\r\n")
            sent = 0
            for piece in itertools.chain([body_start], _receive(client, left)):
                if action.cut_request_after is not None and sent + len(piece) >= action.cut_request_after:
                    server.sendall(piece[: action.cut_request_after - sent])
                    if action.by_reset:
                        reset(server, self._closed)
                        reset(client, self._closed)
                    return
                server.sendall(piece)
                sent += len(piece)
            end = action.cut_response_after if action.stall_response_after is None else action.stall_response_after
            sent = 0
            while piece := server.recv(READ_BYTES if not end else min(READ_BYTES, end - sent)):
                if action.before_response is not None and not sent:
                    action.before_response()
                if end == 0:
                    return
                client.sendall(piece)
                sent += len(piece)
                if sent == end:
                    self._closed.wait(TIMEOUT_S if action.stall_response_after else 0)
                    if action.by_reset:
                        reset(client, self._closed)
                    return


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    read = b""
    while b"\r\n\r\n" not in read:
        piece = client.recv(READ_BYTES)
        if not piece:
            return b"", b""
        read += piece
    head, _, body_start = read.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", body_start


def _parse(head: bytes) -> Request:
    line, *lines = head.decode("latin-1").strip().split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    return Request(method, target, headers)


def _receive(client: socket.socket, left: int) -> Iterator[bytes]:
    while left > 0:
        piece = client.recv(min(left, READ_BYTES))
        if not piece:
            raise ConnectionError("the client closed the connection")
        left -= len(piece)
        yield piece

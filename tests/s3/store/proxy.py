"""A proxy before an S3 server: the witness of what reached it, and the one that makes trouble.

It carries one request for each connection, so that every request is seen, and asks `rule` what becomes of it.
"""

import contextlib
import itertools
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import attrs

from tests.support.raw_http import reset

LIMIT_S = 30.0
AT_ONCE = 64 * 1024


@attrs.frozen
class Request:
    """What was asked: method, target with its query, headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def operation(self) -> str:
        """The method, and what is asked with it beside an object."""
        query = {part.partition("=")[0] for part in self.target.partition("?")[2].split("&")}
        beside = sorted(query & {"uploads", "uploadId"}) + ["copy"] * ("x-amz-copy-source" in self.headers)
        return " ".join([self.method, *beside])


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
    """Answer it here, once its body has come."""

    status: int
    body: bytes = b""
    headers: str = "Content-Type: application/xml\r\n"


@attrs.frozen
class Stall:
    """Say nothing until the proxy is closed."""


Rule = Callable[[Request], Forward | Respond | Stall]


def s3_error(status: int, code: str, more: str = "") -> Respond:
    """An error as S3 says it."""
    return Respond(status, f"<?xml version='1.0'?><Error><Code>{code}</Code>{more}</Error>".encode())


class S3Proxy:
    """Listens on a port of its own. `requests` are those that came, `rule` may be set at any time."""

    def __init__(self, port: int) -> None:
        self.requests: list[Request] = []
        self.rule: Rule = lambda _: Forward()
        self._to = ("127.0.0.1", port)
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
        """How many requests of each kind came."""
        return Counter(request.operation for request in self.requests)

    def close(self) -> None:
        """Listen no more, and wait for what is under way."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(LIMIT_S)

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
            client.settimeout(LIMIT_S)
            head, begun = _read_head(client)
            if not head:
                return
            request = _parse(head)
            self.requests.append(request)
            left = int(request.headers.get("content-length", "0")) - len(begun)
            match self.rule(request):
                case Respond(status, body, headers):
                    for _ in _receive(client, left):
                        pass
                    answer = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}Connection: close\r\n\r\n"
                    client.sendall(answer.encode() + (b"" if request.method == "HEAD" else body))
                case Stall():
                    self._closed.wait(LIMIT_S)
                case Forward() as how:
                    self._carry(client, head, begun, left, how)

    def _carry(self, client: socket.socket, head: bytes, begun: bytes, left: int, how: Forward) -> None:
        with socket.create_connection(self._to, LIMIT_S) as server:
            server.sendall(head[:-2] + b"Connection: close\r\n\r\n")
            passed = 0
            for piece in itertools.chain([begun], _receive(client, left)):
                if how.cut_request_after is not None and passed + len(piece) >= how.cut_request_after:
                    server.sendall(piece[: how.cut_request_after - passed])
                    if how.by_reset:
                        reset(server, self._closed)
                        reset(client, self._closed)
                    return
                server.sendall(piece)
                passed += len(piece)
            end = how.cut_response_after if how.stall_response_after is None else how.stall_response_after
            passed = 0
            while piece := server.recv(AT_ONCE if not end else min(AT_ONCE, end - passed)):
                if how.before_response is not None and not passed:
                    how.before_response()
                if end == 0:
                    return
                client.sendall(piece)
                passed += len(piece)
                if passed == end:
                    self._closed.wait(LIMIT_S if how.stall_response_after else 0)
                    if how.by_reset:
                        reset(client, self._closed)
                    return


def _read_head(client: socket.socket) -> tuple[bytes, bytes]:
    read = b""
    while b"\r\n\r\n" not in read:
        piece = client.recv(AT_ONCE)
        if not piece:
            return b"", b""
        read += piece
    head, _, begun = read.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", begun


def _parse(head: bytes) -> Request:
    line, *lines = head.decode("latin-1").strip().split("\r\n")
    method, target, _ = line.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    return Request(method, target, headers)


def _receive(client: socket.socket, left: int) -> Iterator[bytes]:
    while left > 0:
        piece = client.recv(min(left, AT_ONCE))
        if not piece:
            raise ConnectionError("the client left")
        left -= len(piece)
        yield piece

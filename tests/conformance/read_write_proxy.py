"""A proxy that sends writes to a registry, and reads to the cache in front of it.

The conformance suite pushes what it then reads, and a cache accepts no pushes: through this proxy both look like one
registry. The Host header is forwarded, so that the registry's own Locations lead back to the proxy.

With `is_warm` every read is sent twice, and the second response is forwarded; before a HEAD a GET is sent, because HEAD
alone caches nothing.
"""

import contextlib
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import attrs

from tests.support.busy_machine import EVENT_TIMEOUT_S

FRAMING = frozenset({"connection", "content-length", "keep-alive", "transfer-encoding"})


@attrs.frozen
class Backend:
    """A server on loopback, and the path that is put before those of the requests."""

    port: int
    path: str = ""


@attrs.define
class RequestCounts:
    """The number of requests by destination."""

    reads: int = 0
    writes: int = 0


class ReadWriteProxy:
    """The proxy. `address` is the registry of the suite; `counts` are the forwarded requests."""

    def __init__(self, writes: Backend, reads: Backend, *, is_warm: bool = False) -> None:
        self.counts = RequestCounts()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = EVENT_TIMEOUT_S
            disable_nagle_algorithm = True

            def do_GET(handler) -> None:  # noqa: N805  http.server's name; the proxy is `self` here
                body = _read_body(handler)
                if handler.command not in ("GET", "HEAD") or "/blobs/uploads/" in handler.path:
                    self.counts.writes += 1
                    _forward(handler, writes, body)
                    return
                self.counts.reads += 1
                if is_warm:
                    with _request(handler, reads, body, method="GET") as response:
                        response.read()
                _forward(handler, reads, body)

            do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815  as above

            def log_message(handler, *_: object) -> None:  # noqa: N805
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(EVENT_TIMEOUT_S)


def _read_body(handler: BaseHTTPRequestHandler) -> bytes | None:
    """The body of a request, decoded if it is chunked; None when there is none."""
    if "chunked" in handler.headers.get("Transfer-Encoding", ""):
        chunks = []
        while size := int(handler.rfile.readline().partition(b";")[0], 16):
            chunks.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(chunks)
    length = handler.headers.get("Content-Length")
    return None if length is None else handler.rfile.read(int(length))


@contextlib.contextmanager
def _request(
    handler: BaseHTTPRequestHandler, backend: Backend, body: bytes | None, *, method: str
) -> Iterator[HTTPResponse]:
    with contextlib.closing(HTTPConnection("127.0.0.1", backend.port, timeout=EVENT_TIMEOUT_S)) as connection:
        connection.putrequest(method, backend.path + handler.path, skip_host=True, skip_accept_encoding=True)
        for name, value in handler.headers.items():
            if name.lower() not in FRAMING:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        yield connection.getresponse()


def _forward(handler: BaseHTTPRequestHandler, backend: Backend, body: bytes | None) -> None:
    """Send the request and forward the response with its headers."""
    with _request(handler, backend, body, method=handler.command) as response:
        data = response.read()
        length = response.getheader("Content-Length") if handler.command == "HEAD" else str(len(data))
        handler.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in FRAMING:
                handler.send_header(name, value)
        if length is not None:
            handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.wfile.write(data)

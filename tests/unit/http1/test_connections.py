"""Which connections are used again, over plain TCP and over TLS."""

import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
import urllib3
from urllib3.exceptions import HTTPError

from dockyard.http1 import connections as connections_module
from dockyard.http1.connections import PlainPool, Suspensions, use_strict_pools
from dockyard.http1.response import InvalidResponse
from dockyard.http1.tls import make_tls_context
from tests.support.raw_server import RawConnection, RawServer, response

TIMEOUT_S = 5.0

Serve = Callable[[RawConnection], None]


class Site:
    """A client with strict pools, and the servers that it asks."""

    def __init__(self, tls: ssl.SSLContext | None, ca_file: str) -> None:
        self._tls = tls
        self.manager = urllib3.PoolManager(timeout=TIMEOUT_S, retries=False)
        use_strict_pools(self.manager, make_tls_context=lambda: make_tls_context(ca_file))
        self._servers: list[RawServer] = []

    def serve(self, serve: Serve) -> RawServer:
        server = RawServer(serve, self._tls)
        self._servers.append(server)
        return server

    def get(self, server: RawServer, path: str, method: str = "GET") -> bytes:
        return self.manager.request(method, f"{server.url}{path}").data

    def close(self) -> None:
        self.manager.clear()
        for server in self._servers:
            server.__exit__()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A private certificate authority."""
    return trustme.CA()


@pytest.fixture(params=["plain", "tls"])
def site(request: pytest.FixtureRequest, authority: trustme.CA, tmp_path: Path) -> Iterator[Site]:
    """A client, and servers without and with TLS."""
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    tls = None
    if request.param == "tls":
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(tls)
    site = Site(tls, str(ca_file))
    yield site
    site.close()


def echo(connection: RawConnection, before: bytes = b"", after: bytes = b"") -> None:
    """Respond to each request with its request line, and with other bytes before and after the first response."""
    while line := connection.receive_request():
        connection.send(before + response(b"" if line.startswith("HEAD") else line.encode()) + after)
        before = after = b""


def line(path: str) -> bytes:
    """The body of the response to GET."""
    return f"GET {path} HTTP/1.1".encode()


def test_a_connection_is_used_again(site: Site) -> None:
    """After responses that were read to their end."""
    server = site.serve(echo)
    for number in range(5):
        assert site.get(server, f"/{number}") == line(f"/{number}")
        assert site.get(server, f"/{number}", "HEAD") == b""
    assert server.connections == 1


def test_100_continue_is_no_reason_to_close_a_connection(site: Site) -> None:
    """Every client knows it."""
    server = site.serve(lambda connection: echo(connection, before=b"HTTP/1.1 100 Continue\r\n\r\n"))
    assert [site.get(server, "/a"), site.get(server, "/b")] == [line("/a"), line("/b")]
    assert server.connections == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", b""),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * 5, b""),
        (b"", response(b"other")),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"", b"garbage"),
        (b"", b"\r\n"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_each_request_gets_its_own_response(site: Site, before: bytes, after: bytes, method: str) -> None:
    """Interim responses, a second response, a body after HEAD: the next request goes over another connection."""
    server = site.serve(lambda connection: echo(connection, before, after))
    for path in ("/a", "/b", "/c"):
        assert site.get(server, path, method) == (line(path) if method == "GET" else b"")
    assert server.request_lines == [f"{method} {path} HTTP/1.1" for path in ("/a", "/b", "/c")]
    assert server.connections >= 2


@pytest.mark.parametrize("extra", [response(b"other"), b"x", b"HTTP/1.1 408 Request Timeout\r\n\r\n"])
def test_what_arrives_on_an_idle_connection_closes_it(site: Site, extra: bytes) -> None:
    """After the response was read and before the next request."""
    is_sent, may_send = threading.Event(), threading.Event()

    def serve(connection: RawConnection) -> None:
        if connection.number > 1:
            echo(connection)
            return
        connection.send(response(connection.receive_request().encode()))
        may_send.wait(TIMEOUT_S)
        connection.send(extra)
        is_sent.set()
        connection.wait_for_end()

    server = site.serve(serve)
    assert site.get(server, "/a") == line("/a")
    may_send.set()
    assert is_sent.wait(TIMEOUT_S)
    assert site.get(server, "/b") == line("/b")
    assert server.connections == 2


def test_a_response_that_was_not_read_costs_its_connection(site: Site) -> None:
    """Its rest would be the beginning of the next response."""
    server = site.serve(echo)
    abandoned = site.manager.request("GET", f"{server.url}/a", preload_content=False)
    assert abandoned.read(3) == b"GET"
    abandoned.release_conn()
    assert site.get(server, "/b") == line("/b")
    assert server.connections == 2


def test_after_unexpected_bytes_no_connection_is_used_twice_for_some_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next ones could come while a request is on its way, when nothing can tell them from its response."""
    server = site.serve(lambda connection: echo(connection, after=b"x" if connection.number == 1 else b""))
    other = site.serve(echo)
    for _ in range(4):
        site.get(server, "/a")
        site.get(other, "/a")
    assert (server.connections, other.connections) == (4, 1)
    later = time.monotonic() + connections_module.SUSPENSION_S
    monkeypatch.setattr(connections_module, "time", SimpleNamespace(monotonic=lambda: later))
    for _ in range(4):
        site.get(server, "/a")
    assert server.connections == 4


def test_what_is_no_response_on_a_connection_that_was_used_before_is_unexpected(site: Site) -> None:
    """It belongs to the response before: no connection to that server is used again."""

    def serve(connection: RawConnection) -> None:
        connection.send(response(connection.receive_request().encode()))
        if connection.number == 1:
            connection.receive_request()
            connection.send(b'{"body": "of the response before"}\r\n' + response(b"other"))
        connection.wait_for_end()

    server = site.serve(serve)
    assert site.get(server, "/a") == line("/a")
    with pytest.raises(HTTPError):
        site.get(server, "/b")
    for _ in range(3):
        assert site.get(server, "/c") == line("/c")
    assert server.connections == 4


def test_a_response_before_the_request_is_no_response() -> None:
    """The server cannot have known the request."""
    with RawServer(lambda connection: (connection.send(response(b"other")), connection.wait_for_end())) as server:  # type: ignore[func-returns-value]
        connection: Any = PlainPool(Suspensions(), "127.0.0.1", server.port, timeout=TIMEOUT_S)._new_conn()
        connection.connect()
        assert select.select([connection.sock], [], [], TIMEOUT_S)[0]
        with pytest.raises(InvalidResponse, match="before the request"):
            connection.request("GET", "/")
        connection.close()
    assert server.heads == []


def test_bytes_that_come_before_the_request_was_received_are_no_response() -> None:
    """They cross with the request; the server's system has not acknowledged it."""
    may_send = threading.Event()

    def serve(connection: RawConnection) -> None:
        connection.send(response(connection.receive_request().encode()))
        may_send.wait(TIMEOUT_S)
        connection.acknowledge_late()
        connection.send(response(b"other"))
        connection.wait_for_end()

    def is_found(server: RawServer) -> bool:
        may_send.clear()
        connection: Any = PlainPool(Suspensions(), "127.0.0.1", server.port, timeout=TIMEOUT_S)._new_conn()
        connection.request("GET", "/a", preload_content=False)
        assert connection.getresponse().read() == line("/a")
        may_send.set()
        assert select.select([connection.sock], [], [], TIMEOUT_S)[0]
        connection.request("GET", "/b", preload_content=False)
        try:
            return connection.getresponse().read() != b"other"
        except InvalidResponse as exc:
            return "before the request was received" in str(exc)
        finally:
            connection.close()

    with RawServer(serve) as server:
        assert any(is_found(server) for _ in range(5))  # within 40 ms, which a busy machine may exceed


def test_session_tickets_are_no_unexpected_bytes(authority: trustme.CA, tmp_path: Path) -> None:
    """TLS 1.3 sends them after the handshake, at any time; they make a socket readable."""
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    tls.num_tickets = 8
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    site = Site(tls, str(ca_file))
    server = site.serve(echo)
    for _ in range(5):
        assert site.get(server, "/a") == line("/a")
    site.close()
    assert server.connections == 1

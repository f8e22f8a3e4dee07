"""What clients reach that ask a registry itself and not Dockyard: their proxy, which answers for all registries.

All names but loopback addresses go through the proxy that a client has in its environment. This one ends the TLS
connections to any name, with a certificate of its own authority, and counts the requests: for a client that pulls
through Dockyard there must be none.
"""

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import trustme

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.certificates import server_context
from tests.support.distribution import TEST_USER_AGENT, DistributionRegistry

CHUNK_BYTES = 1 << 20
HOP_HEADERS = {"connection", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "user-agent"}


@attrs.frozen
class DirectRequest:
    """One request: the name of the registry, the method, and the path with its query.

    The method is CONNECT for a connection that had no request, because the registry was down.
    """

    host: str
    method: str
    target: str = ""

    def __str__(self) -> str:
        return f"{self.method} {self.host}{self.target}"


class DirectRegistry:
    """A proxy on loopback that stands for all registries.

    While `answering`, they have the content of a real one. Otherwise they are down: it counts, and closes connections.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA()
        self.ca_file = directory / "direct-ca.pem"
        authority.cert_pem.write_to_path(str(self.ca_file))
        self._authority = authority
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._lock = threading.Lock()
        self._requests: list[DirectRequest] = []
        self._registry: DistributionRegistry | None = None
        direct = self

        class Proxy(_Proxy):
            def __init__(self, *words: Any) -> None:
                self.direct = direct
                super().__init__(*words)

        self._server = _Server(("127.0.0.1", 0), Proxy)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a client that reaches it, and nothing else but loopback."""
        return {
            "HTTPS_PROXY": self.url,
            "HTTP_PROXY": self.url,
            "NO_PROXY": "127.0.0.1",
            "SSL_CERT_FILE": str(self.ca_file),
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def answering(self, registry: DistributionRegistry) -> Iterator[None]:
        """For the duration of the block, all registries have the content of this one."""
        self._registry = registry
        try:
            yield
        finally:
            self._registry = None

    def requests(self) -> list[DirectRequest]:
        """What went past Dockyard since `clear`."""
        with self._lock:
            return list(self._requests)

    def clear(self) -> None:
        """Start counting from here."""
        with self._lock:
            self._requests.clear()

    def count(self, request: DirectRequest) -> DistributionRegistry | None:
        """Count a request, and return the registry that has its content; None while all are down."""
        with self._lock:
            self._requests.append(request)
        return self._registry

    @property
    def is_answering(self) -> bool:
        return self._registry is not None

    def write_certificate(self, directory: Path) -> tuple[Path, Path]:
        """Write a certificate and its key for servers on loopback, which the clients trust; return their paths."""
        issued = self._authority.issue_cert("127.0.0.1", "localhost")
        certificate, key = directory / "tls.crt", directory / "tls.key"
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        issued.private_key_pem.write_to_path(str(key))
        return certificate, key

    def context(self, host: str) -> ssl.SSLContext:
        """The TLS context of a name."""
        with self._lock:
            if host not in self._contexts:
                self._contexts[host] = server_context(self._authority, host)
            return self._contexts[host]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that disconnects is no error."""


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = EVENT_TIMEOUT_S
    direct: DirectRegistry

    def do_CONNECT(self) -> None:
        """End TLS as the server that the client wants, and handle its requests."""
        host = self.path.rpartition(":")[0]
        if not self.direct.is_answering:
            self.direct.count(DirectRequest(host, "CONNECT"))
            self.send_error(502)
            self.close_connection = True
            return
        self.send_response(200)
        self.end_headers()
        direct = self.direct

        class Registry(_Registry):
            def __init__(self, *words: Any) -> None:
                self.direct, self.host = direct, host
                super().__init__(*words)

        with direct.context(host).wrap_socket(self.connection, server_side=True) as connection:
            Registry(connection, self.client_address, self.server)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def do_GET(self) -> None:
        """A request over plain HTTP."""
        url = urlsplit(self.path)
        _forward(self, self.direct, url.hostname or "", f"{url.path}?{url.query}" if url.query else url.path)

    do_HEAD = do_GET  # noqa: N815  the name is that of the method

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""


class _Registry(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = EVENT_TIMEOUT_S
    direct: DirectRegistry
    host: str

    def do_GET(self) -> None:
        _forward(self, self.direct, self.host, self.path)

    do_HEAD = do_GET  # noqa: N815  the name is that of the method

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing."""


def _forward(handler: BaseHTTPRequestHandler, direct: DirectRegistry, host: str, target: str) -> None:
    """Answer with the content of the registry, whose log does not show it."""
    registry = direct.count(DirectRequest(host, handler.command, target))
    if registry is None:
        handler.send_error(502)
        handler.close_connection = True
        return
    names = {name.lower() for name in handler.headers} - HOP_HEADERS
    headers = {name: ", ".join(handler.headers.get_all(name, [])) for name in names}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", registry.port, timeout=EVENT_TIMEOUT_S)) as sent:
        sent.request(handler.command, target, headers=headers | {"User-Agent": TEST_USER_AGENT})
        response = sent.getresponse()
        handler.send_response_only(response.status)
        for name, value in response.getheaders():
            if name.lower() not in HOP_HEADERS:
                handler.send_header(name, value)
        if response.length is None and handler.command != "HEAD":
            handler.send_header("Connection", "close")
        handler.end_headers()
        while piece := response.read(CHUNK_BYTES):
            handler.wfile.write(piece)

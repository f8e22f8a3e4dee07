"""A TCP server whose responses are bytes: for what is not valid HTTP, or comes when it should not."""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Self

MAX_HEAD_BYTES = 64 * 1024


class RawConnection:
    """One connection of a RawServer. `number` counts them from 1, `head` is that of the last request."""

    def __init__(self, sock: socket.socket, number: int, server: "RawServer") -> None:
        self.number = number
        self.head = b""
        self._sock = sock
        self._server = server
        self._received = b""

    def receive_request(self) -> str:
        """The request line of the next request, whose head has arrived completely; empty when there is none.

        A check of the registry itself, which comes at any time after a failure, is answered and not recorded.
        """
        while True:
            while b"\r\n\r\n" not in self._received:
                data = self._sock.recv(65536)
                if not data or len(self._received) > MAX_HEAD_BYTES:
                    return ""
                self._received += data
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            if not head.startswith(b"GET /v2/ "):
                break
            self.send(response(b"{}"))
        self.head = head + b"\r\n\r\n"
        self._server.heads.append(self.head)
        return head.partition(b"\r\n")[0].decode("latin-1")

    def receive_some(self) -> bytes:
        """Some bytes, as soon as there are any; empty at the end of the connection."""
        return self._sock.recv(65536)

    def has_received_more(self) -> bool:
        """Whether a part of another request has arrived, or the end of the connection."""
        return bool(self._received or select.select([self._sock], [], [], 0)[0])

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def acknowledge_late(self) -> None:
        """Let the system acknowledge what it receives some time later, or together with what is sent."""
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    def wait_for_end(self) -> None:
        """Wait until the client has closed the connection; what it sends is discarded."""
        while self._sock.recv(65536):
            pass


class RawServer:
    """Calls `serve` with each connection, in a thread of its own, and closes the connection after that.

    `heads` are the heads of all requests, `connections` is the number of connections.
    """

    def __init__(self, serve: Callable[[RawConnection], None], tls: ssl.SSLContext | None = None) -> None:
        self.heads: list[bytes] = []
        self.connections = 0
        self._serve = serve
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listening.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @property
    def request_lines(self) -> list[str]:
        return [head.partition(b"\r\n")[0].decode("latin-1") for head in self.heads]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                self.connections += 1
                threading.Thread(target=self._run, args=(sock, self.connections), daemon=True).start()

    def _run(self, sock: socket.socket, number: int) -> None:
        self._open.add(sock)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                self._open.discard(sock)
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._open.add(sock)
            self._serve(RawConnection(sock, number, self))
        except OSError:
            return  # the client has closed the connection
        finally:
            self._open.discard(sock)
            sock.close()


def response(body: bytes, *headers: str, status: int = 200) -> bytes:
    """The bytes of a response with a Content-Length."""
    lines = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body

"""An HTTP/1.1 server over raw sockets: the listeners of the fake registry, and responses with faults.

`Listener` owns a port and a thread per connection. `Sender` sends one `ScriptedResponse` with its faults: wrong
lengths, other framings, a pause at a byte, an end by FIN or RST at a byte. Every wait ends when the fake registry is
closed or the client disconnects.
"""

import fcntl
import re
import select
import socket
import ssl
import struct
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import attrs

from tests.support.bodies import PIECE_BYTES, Body, Bytes

MAX_HEAD_BYTES = 1024 * 1024
TICK_S = 0.02
BACKLOG = 1024
DROPPED_AFTER_S = 0.2
STOP_ACCEPTING_TIMEOUT_S = 10.0
TLS_HANDSHAKE = b"\x16"

_MANIFEST_PATH = re.compile(r"/v2/(?P<repo>.+)/manifests/(?P<reference>[^/]+)")
_BLOB_PATH = re.compile(r"/v2/(?P<repo>.+)/blobs/(?P<reference>[^/]+)")
_CDN_PATH = re.compile(r"/cdn/(?P<reference>[^/]+)")


Framing = Literal["length", "chunked", "chunked-unended", "close"]
Ending = Literal["fin", "rst"]


@attrs.frozen
class Request:
    """One request as it arrived. `path` is decoded, `target` is taken verbatim from the request line."""

    listener: str
    method: str
    target: str
    path: str
    query: dict[str, str]
    headers: tuple[tuple[str, str], ...]
    body: bytes
    kind: str  # "manifest", "blob", "ping", "token", "cdn", "connect" or "other"
    repo: str
    reference: str  # tag or digest; "" for other requests

    def header(self, name: str) -> str | None:
        """The values of a header joined with a comma, or None."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None


@attrs.frozen
class Pause:
    """A position in the body where sending waits until the event is set."""

    at: int
    event: threading.Event


@attrs.frozen
class ScriptedResponse:
    """One response as it will be sent; rules make changed copies with `attrs.evolve`.

    `body` is sent from `start` to `stop`. `length` replaces the correct Content-Length. `cut` ends the connection after
    that number of body bytes. `before` is waited for before the status line; `disconnects` ends the connection instead
    of a response. `interim` are bytes before everything else, `trailing` bytes after the response.
    """

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: Body = attrs.field(factory=lambda: Bytes(b""))
    start: int = 0
    stop: int = 0
    framing: Framing = "length"
    length: int | None = None
    cut: int | None = None
    cut_how: Ending = "fin"
    pauses: tuple[Pause, ...] = ()
    bytes_per_s: int | None = None
    full_speed: threading.Event | None = None  # once it is set, `bytes_per_s` does not apply
    before: threading.Event | None = None
    disconnects: Ending | None = None
    header_interval_s: float = 0.0
    interim: bytes = b""
    trailing: bytes = b""

    @classmethod
    def of(cls, status: int, body: Body | bytes = b"", *headers: tuple[str, str]) -> "ScriptedResponse":
        """A response with a whole body."""
        whole = Bytes(body) if isinstance(body, bytes) else body
        return cls(status=status, headers=headers, body=whole, stop=whole.size)

    @property
    def is_last(self) -> bool:
        """Whether the connection ends after this response."""
        return ("connection", "close") in [(name.lower(), value.lower()) for name, value in self.headers]

    def with_header(self, name: str, *values: str) -> "ScriptedResponse":
        """A copy with this header replaced by these values, each sent separately; without values it is removed."""
        kept = tuple(pair for pair in self.headers if pair[0].lower() != name.lower())
        return attrs.evolve(self, headers=kept + tuple((name, value) for value in values))


@attrs.define(eq=False)
class Exchange:
    """A request and its response. `ended` is "" while it runs, then whole, fin, rst, gone or closed."""

    request: Request
    began_at: float
    client_port: int = 0
    status: int = 0
    sent_bytes: int = 0
    ended: str = ""
    ended_at: float = float("inf")


class ClientGoneError(Exception):
    """The client closed or reset the connection during the response."""


class RegistryClosedError(Exception):
    """The fake registry was closed: the test has ended."""


class Listener:
    """One port of a fake registry. It can be closed (connections are then refused) and opened again on the same port.

    After `drop_syns` new connections time out until `accept_syns`; existing connections stay. With `tls` it speaks
    TLS from the first byte; with `tunnel` it is a forward proxy whose every CONNECT leads to the fake registry itself,
    which speaks TLS there.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        tls: ssl.SSLContext | None,
        tunnel: ssl.SSLContext | None,
        handle: Callable[[socket.socket, Request], bool],
    ) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.connections = 0
        self._handle = handle  # returns True when the connection can be used again
        self._tls = tls
        self._tunnel = tunnel
        self._socket: socket.socket | None = None
        self._reservation: socket.socket | None = None  # of the port, while it refuses connections
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._is_dropping = False
        self._accepts_nothing = threading.Event()
        self._fillers: list[socket.socket] = []
        self.first_bytes: list[bytes] = []  # of each connection, while `keep_first_bytes` is set
        self.keep_first_bytes = False
        self.open()

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.authority}"

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def open(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._release_port()
        self._socket = socket.create_server((self.host, self.port), backlog=BACKLOG)
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._socket,), daemon=True).start()

    def close(self) -> None:
        """Refuse new connections and end existing ones. The port stays reserved: no other server gets it."""
        if self._stop_listening():
            self._reservation = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
            self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._reservation.bind((self.host, self.port))  # without `listen`: connections are refused
        self.drop_connections()

    def end(self) -> None:
        """Refuse new connections, end existing ones, and give back the port."""
        self._stop_listening()
        self._release_port()
        self.drop_connections()

    def _stop_listening(self) -> bool:
        """Close the socket; whether there was one."""
        if self._socket is None:
            return False
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._socket = None
        return True

    def _release_port(self) -> None:
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None

    def use_tls(self, tls: ssl.SSLContext | None) -> None:
        """Use TLS with another certificate, or no TLS, for new connections."""
        self._tls = tls

    def drop_syns(self) -> None:
        """Drop new connection attempts: the kernel's accept queue is made short and filled."""
        assert self._socket is not None, "the listener is closed"
        self._is_dropping = True
        self._fillers.append(socket.create_connection((self.host, self.port)))  # wakes the accepting thread
        assert self._accepts_nothing.wait(STOP_ACCEPTING_TIMEOUT_S), "the listener goes on"
        self._socket.listen(0)
        while True:
            filler = socket.socket()
            filler.settimeout(DROPPED_AFTER_S)
            self._fillers.append(filler)
            try:
                filler.connect((self.host, self.port))
            except TimeoutError:
                return

    def accept_syns(self) -> None:
        """Undo `drop_syns`."""
        if not self._is_dropping:
            return
        assert self._socket is not None, "the listener is closed"
        self._is_dropping = False
        self._accepts_nothing.clear()
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        self._socket.listen(BACKLOG)

    def drop_connections(self) -> None:
        """End every open connection of this listener, idle or busy."""
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            if self._is_dropping:
                self._accepts_nothing.set()
                time.sleep(TICK_S)
                continue
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with self._lock:
                if self._socket is not listening:  # closed meanwhile, perhaps after `drop_connections`
                    connection.close()
                    return
                self.connections += 1
                self._open.add(connection)
            threading.Thread(target=self._serve_connection, args=(connection,), daemon=True).start()

    def _serve_connection(self, raw: socket.socket) -> None:
        connection = raw
        try:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.keep_first_bytes:
                self.first_bytes.append(raw.recv(65536, socket.MSG_PEEK))
            if self._tls is not None:
                connection = self._secure(raw, self._tls)
            elif raw.recv(1, socket.MSG_PEEK) == TLS_HANDSHAKE:
                raw.recv(65536)
                raw.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nThis port speaks plain HTTP.\n")
                return
            left = b""
            while True:
                request, left = _read_request(connection, left, self.name)
                if request is None or not self._handle(connection, request):
                    return
                if request.method == "CONNECT" and self._tunnel is not None:
                    connection = self._secure(connection, self._tunnel)
        except (OSError, ClientGoneError, RegistryClosedError, ValueError):
            return
        finally:
            with self._lock:
                self._open.discard(raw)
                self._open.discard(connection)
            with suppress(OSError):
                connection.close()

    def _secure(self, connection: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        use_tls = context.wrap_socket(connection, server_side=True)
        with self._lock:
            self._open.discard(connection)
            self._open.add(use_tls)
        return use_tls


class Sender:
    """Sends one response with its faults."""

    def __init__(self, connection: socket.socket, closing: threading.Event, exchange: Exchange) -> None:
        self._connection = connection
        self._closing = closing
        self._exchange = exchange

    def send(self, request: Request, response: ScriptedResponse) -> str:
        """Send the response; return how it ended: whole (the connection can be used again), fin or rst."""
        if response.interim:
            self._connection.sendall(response.interim)
        if response.before is not None:
            self._wait(response.before)
        if response.disconnects is not None:
            return self._end_connection(response.disconnects)
        ended = self._send_response(request, response)
        if response.trailing and ended == "whole":
            self._connection.sendall(response.trailing)
        return ended

    def _send_response(self, request: Request, response: ScriptedResponse) -> str:
        self._send_head(request, response)
        if request.method in ("HEAD", "CONNECT") or response.status in (204, 304):
            return self._end_connection("fin") if response.is_last else "whole"
        if not self._send_body(response):
            return self._end_connection(response.cut_how)
        if response.framing == "chunked":
            self._connection.sendall(b"0\r\n\r\n")
        if response.framing in ("close", "chunked-unended") or response.length is not None or response.is_last:
            return self._end_connection("fin")
        return "whole"

    def _send_head(self, request: Request, response: ScriptedResponse) -> None:
        headers = list(response.headers)
        match response.framing:
            case "length" if request.method != "CONNECT":
                length = response.stop - response.start if response.length is None else response.length
                if length >= 0:
                    headers.append(("Content-Length", str(length)))
            case "chunked" | "chunked-unended":
                headers.append(("Transfer-Encoding", "chunked"))
            case "close":
                headers.append(("Connection", "close"))
        lines = [f"HTTP/1.1 {response.status} Scripted", *(f"{name}: {value}" for name, value in headers), "", ""]
        head = "\r\n".join(lines).encode("latin-1")
        if not response.header_interval_s:
            self._connection.sendall(head)
            return
        for byte in head:
            self._connection.sendall(bytes([byte]))
            self._pause(response.header_interval_s)

    def _send_body(self, response: ScriptedResponse) -> bool:
        """Send the body; return False when the response is to be cut at this point."""
        begun = time.monotonic()
        sent = 0
        pauses = sorted(response.pauses, key=lambda pause: pause.at)
        stops = sorted({pause.at for pause in pauses} | ({response.cut} if response.cut is not None else set()))
        for piece in response.body.pieces(response.start, response.stop):
            view = memoryview(piece)
            while view:
                while pauses and pauses[0].at <= sent:
                    self._wait(pauses.pop(0).event)
                if response.cut is not None and sent >= response.cut:
                    return False
                limit = min([stop - sent for stop in stops if stop > sent], default=PIECE_BYTES)
                is_slow = response.bytes_per_s and not (response.full_speed and response.full_speed.is_set())
                part = view[: min(limit, 64 * 1024, max(1, response.bytes_per_s // 10))] if is_slow else view[:limit]
                if is_slow:
                    self._pause(begun + (sent + len(part)) / response.bytes_per_s - time.monotonic())
                self._send_part(part, response.framing)
                sent += len(part)
                self._exchange.sent_bytes = sent
                view = view[len(part) :]
        while pauses and pauses[0].at <= sent:
            self._wait(pauses.pop(0).event)
        return response.cut is None or sent < response.cut

    def _send_part(self, part: memoryview, framing: Framing) -> None:
        if framing.startswith("chunked"):
            self._connection.sendall(b"%x\r\n" % len(part) + part + b"\r\n")
        else:
            self._connection.sendall(part)

    def _end_connection(self, how: Ending) -> str:
        """End the connection visibly, after everything sent so far has left."""
        self._exchange.ended_at = time.monotonic()  # before the client can notice
        if how == "rst":
            if not reset(self._connection, self._closing):
                raise RegistryClosedError
            return "rst"
        self._connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline and not self._closing.is_set():
            if _is_readable(self._connection, TICK_S) and not self._connection.recv(65536):
                break
        return "fin"

    def _pause(self, seconds: float) -> None:
        if seconds > 0 and self._closing.wait(seconds):
            raise RegistryClosedError

    def _wait(self, event: threading.Event) -> None:
        while not event.wait(TICK_S):
            if self._closing.is_set():
                raise RegistryClosedError
            if _is_readable(self._connection, 0) and not _peek(self._connection):
                raise ClientGoneError


def _read_request(connection: socket.socket, left: bytes, listener: str) -> tuple[Request | None, bytes]:
    """The next request and the bytes read beyond it; None when the client has closed the connection."""
    data = left
    while b"\r\n\r\n" not in data:
        if len(data) > MAX_HEAD_BYTES:
            raise ValueError("endless request head")
        more = connection.recv(65536)
        if not more:
            return None, b""
        data += more
    head, _, data = data.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    method, target, _ = line.split(" ", 2)
    headers = tuple((name, value.strip()) for name, _, value in (field.partition(":") for field in fields))
    length = int({name.lower(): value for name, value in headers}.get("content-length", "0"))
    while len(data) < length:
        more = connection.recv(65536)
        if not more:
            raise ClientGoneError
        data += more
    parts = urlsplit(target)
    path = unquote(parts.path)
    kind, repo, reference = ("connect", "", "") if method == "CONNECT" else _classify(path)
    request = Request(
        listener=listener,
        method=method,
        target=target,
        path=path,
        query=dict(parse_qsl(parts.query, keep_blank_values=True)),
        headers=headers,
        body=data[:length],
        kind=kind,
        repo=repo,
        reference=reference,
    )
    return request, data[length:]


def _classify(path: str) -> tuple[str, str, str]:
    for kind, pattern in (("manifest", _MANIFEST_PATH), ("blob", _BLOB_PATH), ("cdn", _CDN_PATH)):
        if match := pattern.fullmatch(path):
            fields = match.groupdict()
            return kind, fields.get("repo", ""), fields["reference"]
    if path in ("/v2", "/v2/"):
        return "ping", "", ""
    return ("token" if path.startswith("/token") else "other"), "", ""


def _is_readable(connection: socket.socket, within_s: float) -> bool:
    if isinstance(connection, ssl.SSLSocket) and connection.pending():
        return True
    poll = select.poll()  # select() cannot handle descriptors above 1023
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def _peek(connection: socket.socket) -> bytes:
    if isinstance(connection, ssl.SSLSocket):
        return b"?"
    return connection.recv(1, socket.MSG_PEEK)


def reset(connection: socket.socket, closing: threading.Event) -> bool:
    """End a connection by RST, after everything sent so far has left; False when `closing` is set before that."""
    deadline = time.monotonic() + 10
    while _unsent_bytes(connection) and time.monotonic() < deadline:
        if closing.wait(0.001):
            return False
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    return True


def _unsent_bytes(connection: socket.socket) -> int:
    response = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int(struct.unpack("i", response)[0])

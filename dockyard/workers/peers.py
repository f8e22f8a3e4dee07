"""Requests between the workers of one server, over unix sockets.

One connection per request. The client sends one message and reads messages until the connection ends. The first reply,
Acknowledged, costs the peer nothing: without it, a peer that uses no processor time meanwhile is frozen, and one whose
connection ended is dead. In both cases the next owner of the key is asked, in the end this worker itself. A peer that
uses processor time is only busy, and is waited for.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import structlog

from dockyard.errors import FailureDetails, UpstreamTimeout
from dockyard.log import is_debug
from dockyard.oci.login import Login
from dockyard.routing import Target
from dockyard.workers.messages import (
    MAX_LINE_BYTES,
    Acknowledged,
    ErrorReply,
    MalformedMessage,
    PeerReply,
    PeerRequest,
    Repository,
    decode_line,
    encode,
    key_of,
    to_error,
)
from dockyard.workers.processes import find_worker, processor_ticks
from dockyard.workers.rendezvous import owners
from dockyard.workers.shard_lock import socket_name

CONNECT_TIMEOUT_S = 2.0
ACKNOWLEDGE_TIMEOUT_S = 1.0
MAX_BUSY_S = 20.0
REPLY_TIMEOUT_S = 60.0

_ACKNOWLEDGEMENT = encode(Acknowledged())

T = TypeVar("T")

log = structlog.get_logger()


class PeerUnavailable(Exception):
    """The peer gives no reply: no process has its socket, or the connection ended before the reply did."""


class PeerNotResponding(PeerUnavailable):
    """The peer has its socket and does not respond: the process is frozen. It may wake up and continue its work."""


@attrs.frozen
class OwnersTried(Generic[T]):
    """The result of the first owner that is available; None when it is this worker's turn.

    `is_one_frozen`: an owner before it does not respond, and may wake up later.
    """

    result: T | None
    is_one_frozen: bool


class PeerConnection:
    """The replying side of one connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(self, reply: PeerReply) -> None:
        """Send one reply. Raises ConnectionError when the client has closed the connection."""
        await self._write(encode(reply))

    async def acknowledge(self) -> None:
        """Send the first reply. Raises ConnectionError as `send`."""
        await self._write(_ACKNOWLEDGEMENT)

    async def _write(self, data: bytes) -> None:
        if self._writer.is_closing():  # uvloop raises RuntimeError for a write to a closed transport
            raise ConnectionResetError("the client has closed the connection")
        self._writer.write(data)
        await self._writer.drain()


class PeerReplies:
    """The replies on one connection, in order."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def next(self) -> Any:
        """The next reply. Raises PeerUnavailable at the end of the connection, and for what is not a message."""
        try:
            return await _read_message(self._reader)
        except (OSError, EOFError, asyncio.LimitOverrunError, MalformedMessage) as exc:
            raise PeerUnavailable(str(exc)) from exc


Handler = Callable[[PeerRequest, PeerConnection], Awaitable[None]]


class Peers:
    """The other workers of this server, by the shard that each owns.

    `run` is the directory with the sockets of all `shards`; `shard` is the one of this worker, None while it has none.
    Sockets are opened through a descriptor of that directory: the path of a unix socket has at most 107 bytes. `seal`
    encrypts the login of a client; without it, logins are not sent.
    """

    def __init__(self, run: Path, shards: int, seal: Callable[[Login], str] | None = None) -> None:
        self.shard: int | None = None
        self._seal = seal
        self._run = run
        self._shards = shards
        self._directory = -1
        self._server: asyncio.AbstractServer | None = None
        self._socket: os.stat_result | None = None
        with contextlib.suppress(OSError):  # it cannot be created: then there are no peers
            self.open_directory()

    def owners_before_us(self, key: str) -> tuple[int, ...]:
        """The shards that own a key before this worker does, first owner first."""
        order = owners(key, self._shards)
        return order if self.shard is None else order[: order.index(self.shard)]

    def is_owner(self, key: str) -> bool:
        """Whether this worker is the first owner of a key."""
        return not self.owners_before_us(key)

    @property
    def others(self) -> tuple[int, ...]:
        """All shards but the one of this worker."""
        return tuple(shard for shard in range(self._shards) if shard != self.shard)

    def repository_of(self, target: Target) -> Repository:
        """The repository of a routed request, as messages have it: with the login of the client, sealed."""
        return Repository.of(target, self._seal(target.login) if self._seal and target.login else "")

    def open_directory(self) -> None:
        """Open the run directory, again when somebody has deleted it and it was created again.

        Blocks. Raises OSError.
        """
        opened = os.open(self._run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if self._directory < 0:
            self._directory = opened
            return
        os.dup2(opened, self._directory, inheritable=False)  # under the same number: it may be in use
        os.close(opened)

    @property
    def is_reachable(self) -> bool:
        """Whether the other workers find the socket of this one: not when somebody has deleted it."""
        if self._socket is None or self.shard is None:
            return False
        try:
            return os.path.samestat(self._socket, (self._run / socket_name(self.shard)).stat())
        except OSError:
            return False

    async def listen(self, shard: int, handle: Handler) -> None:
        """Handle the requests to the owner of `shard`, which this process has locked (`claim_shard`).

        Call `open_directory` before. Again when the socket was deleted; requests that are being handled continue.
        Raises OSError.
        """

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await serve_connection(reader, writer, handle)

        self.stop_listening()
        self._server = await asyncio.start_unix_server(serve, self._path(shard), limit=MAX_LINE_BYTES, backlog=1024)
        self._socket = os.stat(self._path(shard))
        self.shard = shard

    def stop_listening(self) -> None:
        """Own no shard any more. Requests that are being handled continue."""
        if self._server is not None:
            self._server.close()
        self._server = self._socket = self.shard = None

    async def try_owners(self, key: str, attempt: Callable[[int], Awaitable[T]]) -> OwnersTried[T]:
        """Call `attempt(shard)` for the owners of a key before this worker, in order, until one is available."""
        is_one_frozen = False
        for shard in self.owners_before_us(key):
            try:
                return OwnersTried(await attempt(shard), is_one_frozen)
            except PeerUnavailable as exc:
                is_one_frozen = is_one_frozen or isinstance(exc, PeerNotResponding)
                log.info("worker unavailable: trying the next owner", shard=shard, key=key, reason=str(exc))
        return OwnersTried(None, is_one_frozen)

    @contextlib.asynccontextmanager
    async def connect(self, shard: int, request: PeerRequest) -> AsyncIterator[PeerReplies]:
        """Send a request to the owner of `shard`; the replies after the acknowledgement. Raises PeerUnavailable."""
        if is_debug():
            log.debug(
                "asking the worker that owns it", shard=shard, request=type(request).__name__, key=key_of(request)
            )
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._path(shard), limit=MAX_LINE_BYTES)
        except TimeoutError as exc:
            raise PeerNotResponding("does not accept a connection") from exc
        except OSError as exc:
            raise PeerUnavailable("is not running") from exc
        try:
            writer.write(encode(request))
            replies = PeerReplies(reader)
            await self._wait_for_acknowledgement(shard, replies)
            yield replies
        finally:
            writer.close()

    async def request(self, shard: int, request: PeerRequest, kind: type[T]) -> T:
        """Send a request that has one reply, of this kind. Raises PeerUnavailable, or the RegistryError replied."""
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S), self.connect(shard, request) as replies:
                reply = await replies.next()
        except TimeoutError as exc:
            error = f"the worker of shard {shard} did not reply within {REPLY_TIMEOUT_S:g} s"
            raise UpstreamTimeout(
                "the upstream did not respond in time", retry_after_s=5, details=FailureDetails(error=error)
            ) from exc
        if isinstance(reply, ErrorReply):
            raise to_error(reply)
        if not isinstance(reply, kind):
            raise PeerUnavailable(f"replied {type(reply).__name__} to {type(request).__name__}")
        return reply

    def close(self) -> None:
        """Stop listening."""
        self.stop_listening()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    async def _wait_for_acknowledgement(self, shard: int, replies: PeerReplies) -> None:
        """Wait for the first reply for as long as the peer uses processor time. Raises PeerUnavailable."""
        deadline = time.monotonic() + MAX_BUSY_S
        ticks: int | None = None
        while True:
            try:
                async with asyncio.timeout(ACKNOWLEDGE_TIMEOUT_S):
                    await replies.next()
                    return
            except TimeoutError as exc:
                pid = find_worker(self._run, shard)
                before, ticks = ticks, processor_ticks(pid) if pid else 0
                if ticks == before or not ticks or time.monotonic() > deadline:
                    raise PeerNotResponding("does not respond") from exc

    def _path(self, shard: int) -> str:
        return f"/proc/self/fd/{self._directory}/{socket_name(shard)}"


async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler) -> None:
    """Acknowledge one request and handle it. What is malformed is logged, and ends its connection only."""
    try:
        request = await _read_request(reader)
        connection = PeerConnection(writer)
        await connection.acknowledge()
        await handle(request, connection)
    except (OSError, EOFError):
        pass  # the client has closed the connection
    except (MalformedMessage, asyncio.LimitOverrunError) as exc:
        log.warning("malformed request from another worker ignored", error=repr(exc)[:200])
    finally:
        writer.close()


async def _read_request(reader: asyncio.StreamReader) -> PeerRequest:
    request = await _read_message(reader)
    if not isinstance(request, PeerRequest):
        raise MalformedMessage(f"{type(request).__name__} is not a request")
    return request


async def _read_message(reader: asyncio.StreamReader) -> Any:
    """Read one message. Raises OSError, EOFError, LimitOverrunError, MalformedMessage."""
    message = decode_line(await reader.readuntil(b"\n"))
    body = await reader.readexactly(message.body_bytes) if message.body_bytes else b""
    return message.complete(body)

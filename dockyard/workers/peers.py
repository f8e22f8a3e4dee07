"""Worker asks worker, over a unix socket. Only words travel; the bytes of a blob stay in the file that they name.

One connection per question. The asker sends one line of JSON and reads lines of JSON until the connection ends; a line
with `"payload": n` is followed by n raw bytes. The first line back is an acknowledgement that costs the peer nothing:
its absence means a frozen process if the peer does not run meanwhile, and the end of the connection means a dead one.
In both cases the asker does the work itself. A peer that runs is only busy, and is waited for.
"""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import cattrs
import structlog

from dockyard.errors import UpstreamTimeout, from_words
from dockyard.workers.processes import find_worker, processor_ticks
from dockyard.workers.rendezvous import owners
from dockyard.workers.shard_lock import socket_name

CONNECT_TIMEOUT_S = 2.0
ACKNOWLEDGE_TIMEOUT_S = 1.0
BUSY_AT_MOST_S = 20.0
ANSWER_TIMEOUT_S = 60.0
MAX_LINE_BYTES = 64 * 1024
MAX_PAYLOAD_BYTES = 8 * 1024 * 1024

log = structlog.get_logger()

Words = dict[str, Any]


class PeerGone(Exception):
    """Nobody listens there, or the connection ended before the answer did."""


class PeerSilent(Exception):
    """Somebody holds the socket and does not answer: a frozen process, or one that is far too busy."""


@attrs.frozen
class Question:
    """What one worker asks another: `kind` is blob, tag, manifest, tags, referrers or ping; the rest is what about."""

    kind: str
    upstream: str = ""
    repository: str = ""
    name: str = ""
    reference: str = ""
    only_running: bool = False


class Reply:
    """The answering side of one connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def say(self, words: Words, payload: bytes = b"") -> None:
        """Send a line, and the payload behind it. Raises ConnectionError when the asker has gone."""
        if payload:
            words = words | {"payload": len(payload)}
        if self._writer.is_closing():  # uvloop has a RuntimeError for whoever writes there
            raise ConnectionResetError("the asker has gone")
        self._writer.write(json.dumps(words).encode() + b"\n" + payload)
        await self._writer.drain()


Answerer = Callable[[Question, Reply], Awaitable[None]]


class Peers:
    """The way to the other shards, and their way to us.

    `run` is the directory of the sockets of all `shards`; `shard` is ours, None while we have none. Their paths go
    through a descriptor of that directory, because the path of a unix socket may have 107 bytes only.
    """

    def __init__(self, run: Path, shards: int) -> None:
        self.shard: int | None = None
        self._run = run
        self._shards = shards
        self._directory = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._server: asyncio.AbstractServer | None = None

    def before_us(self, key: str) -> tuple[int, ...]:
        """The shards to ask about a key, in their order, before it is our turn."""
        order = owners(key, self._shards)
        return order if self.shard is None else order[: order.index(self.shard)]

    @property
    def others(self) -> tuple[int, ...]:
        """All shards but ours."""
        return tuple(shard for shard in range(self._shards) if shard != self.shard)

    async def listen(self, shard: int, answer: Answerer) -> None:
        """Answer as the owner of `shard`, which this process has locked."""
        path = self._path(shard)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _serve(reader, writer, answer)

        self._server = await asyncio.start_unix_server(serve, path, limit=MAX_LINE_BYTES, backlog=1024)
        self.shard = shard

    @contextlib.asynccontextmanager
    async def ask(self, shard: int, question: Question) -> AsyncIterator["Answer"]:
        """Ask the owner of `shard`. Raises PeerGone or PeerSilent."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._path(shard), limit=MAX_LINE_BYTES)
        except TimeoutError as exc:
            raise PeerSilent from exc
        except OSError as exc:
            raise PeerGone from exc
        try:
            writer.write(json.dumps(attrs.asdict(question)).encode() + b"\n")
            answer = Answer(reader)
            await self._acknowledgement(shard, answer)
            yield answer
        finally:
            writer.close()

    async def ask_once(self, shard: int, question: Question) -> tuple[Words, bytes]:
        """Ask for one line and its payload. Raises PeerGone, PeerSilent, or the error that is the answer."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self.ask(shard, question) as answer:
                words = await answer.next_words()
                payload = await answer.read_payload(words)
        except TimeoutError as exc:
            raise UpstreamTimeout("the upstream did not answer in time", retry_after_s=5) from exc
        if "error" in words:
            raise from_words(words)
        return words, payload

    async def _acknowledgement(self, shard: int, answer: "Answer") -> None:
        """Wait for the first line for as long as the peer runs. Raises PeerGone or PeerSilent."""
        patience_until = time.monotonic() + BUSY_AT_MOST_S
        ran = None
        while True:
            try:
                async with asyncio.timeout(ACKNOWLEDGE_TIMEOUT_S):
                    await answer.next_words()
                    return
            except TimeoutError as exc:
                pid = find_worker(self._run, shard)
                before, ran = ran, processor_ticks(pid) if pid else 0
                if ran == before or not ran or time.monotonic() > patience_until:
                    raise PeerSilent from exc

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _path(self, shard: int) -> str:
        return f"/proc/self/fd/{self._directory}/{socket_name(shard)}"


class Answer:
    """The asking side of one connection."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def next_words(self) -> Words:
        """The next line. Raises PeerGone at the end of the connection or on a line that makes no sense."""
        try:
            line = await self._reader.readuntil(b"\n")
            words = json.loads(line)
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as exc:
            raise PeerGone from exc
        if not isinstance(words, dict):
            raise PeerGone
        return words

    async def read_payload(self, words: Words) -> bytes:
        """The raw bytes behind a line. Raises PeerGone."""
        length = words.get("payload", 0)
        if not isinstance(length, int) or not 0 <= length <= MAX_PAYLOAD_BYTES:
            raise PeerGone
        try:
            return await self._reader.readexactly(length)
        except (OSError, EOFError) as exc:
            raise PeerGone from exc


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answerer) -> None:
    try:
        question = cattrs.structure(json.loads(await reader.readuntil(b"\n")), Question)
        reply = Reply(writer)
        await reply.say({"heard": question.kind})
        if question.kind != "ping":
            await answer(question, reply)
    except (OSError, EOFError):
        pass  # the asker has gone: nobody is left to tell
    except (ValueError, TypeError, KeyError, asyncio.LimitOverrunError, cattrs.BaseValidationError) as exc:
        log.warning("a worker sent a question that makes no sense", error=repr(exc)[:200])
    finally:
        writer.close()

"""Requests between workers: replies in order, dead, frozen and busy peers, malformed messages."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from dockyard.errors import Denied
from dockyard.oci.reference import Digest, Name
from dockyard.workers import peers as peers_module
from dockyard.workers.messages import (
    Acknowledged,
    DownloadProgress,
    ErrorReply,
    ListReply,
    ManifestReply,
    ManifestRequest,
    NotDownloading,
    PeerRequest,
    Repository,
    TagListRequest,
    encode,
)
from dockyard.workers.peers import PeerConnection, PeerNotResponding, Peers, PeerUnavailable
from dockyard.workers.processes import processor_ticks
from dockyard.workers.shard_lock import lock_path, socket_name
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import eventually


@pytest.fixture
async def peers(tmp_path: Path) -> AsyncIterator[Peers]:
    """The sockets of a run directory whose path is longer than a unix socket's may be."""
    run = tmp_path / ("long" * 30)
    run.mkdir()
    peers = Peers(run, 4)
    yield peers
    peers.close()


@pytest.fixture
def owner(peers: Peers) -> Iterator[Callable[[int, str], None]]:
    """Start a process that has claimed a shard and runs this program."""
    with contextlib.ExitStack() as stack:

        def start(shard: int, program: str) -> None:
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE))
            stack.callback(process.kill)
            lock_path(peers._run, shard).write_text(str(process.pid))
            eventually(lambda: processor_ticks(process.pid), "it has used processor time")

        yield start


REPOSITORY = Repository("up", "library/img", Name.parse("up/library/img"))
REQUEST = TagListRequest(REPOSITORY)
REPLY = ListReply(b"[]", "hit", 0.0)


async def test_replies_come_back_in_order_with_their_bodies(peers: Peers) -> None:
    """The request arrives whole; lines and raw bytes come back in order."""
    received: list[PeerRequest] = []
    manifest = ManifestReply(b"\n\x00bytes", "a/b")
    replies = [DownloadProgress(None, 1, 2, is_complete=False), manifest, NotDownloading()]

    async def handle(request: PeerRequest, connection: PeerConnection) -> None:
        received.append(request)
        for reply in replies:
            await connection.send(reply)

    await peers.listen(3, handle)
    request = ManifestRequest(REPOSITORY, Digest.of(b"manifest"))
    async with peers.connect(3, request) as connection:
        assert [await connection.next() for _ in replies] == replies
        with pytest.raises(PeerUnavailable):
            await connection.next()
    assert received == [request]


async def test_an_error_is_raised_at_the_other_worker(peers: Peers) -> None:
    """With its class, message and retry time."""

    async def handle(request: PeerRequest, connection: PeerConnection) -> None:
        await connection.send(ErrorReply("Denied", "no", 7, remembered=True))

    await peers.listen(0, handle)
    with pytest.raises(Denied) as raised:
        await peers.request(0, REQUEST, ListReply)
    assert (raised.value.message, raised.value.retry_after_s, raised.value.remembered) == ("no", 7, True)


async def test_a_reply_of_another_kind_is_no_reply(peers: Peers) -> None:
    """The peer counts as unavailable."""

    async def handle(request: PeerRequest, connection: PeerConnection) -> None:
        await connection.send(NotDownloading())

    await peers.listen(0, handle)
    with pytest.raises(PeerUnavailable):
        await peers.request(0, REQUEST, ListReply)


async def test_a_shard_without_a_worker_is_unavailable(peers: Peers) -> None:
    """No process has its socket."""
    with pytest.raises(PeerUnavailable):
        async with peers.connect(0, REQUEST):
            pass


async def test_a_frozen_peer_does_not_respond(
    peers: Peers, owner: Callable[[int, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open socket of a process that uses no processor time is not taken for that of a dead one."""
    monkeypatch.setattr(peers_module, "ACKNOWLEDGE_TIMEOUT_S", 0.05)
    owner(1, "sum(range(5_000_000)); input()")  # some processor time, then nothing
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(f"/proc/self/fd/{peers._directory}/{socket_name(1)}")
        frozen.listen()
        with pytest.raises(PeerNotResponding):
            async with peers.connect(1, REQUEST):
                pass


async def test_a_busy_peer_is_waited_for(
    peers: Peers, owner: Callable[[int, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that claimed the shard uses processor time, and its acknowledgement comes late."""
    monkeypatch.setattr(peers_module, "ACKNOWLEDGE_TIMEOUT_S", 0.4)  # so long that it gets some processor time
    owner(1, "while True: pass")

    async def reply_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await asyncio.sleep(1.0)
        writer.write(encode(Acknowledged()) + encode(REPLY))
        writer.close()

    async with await asyncio.start_unix_server(reply_late, f"/proc/self/fd/{peers._directory}/{socket_name(1)}"):
        assert await peers.request(1, REQUEST, ListReply) == REPLY


@pytest.mark.parametrize("is_frozen", [False, True])
async def test_the_owners_are_tried_in_order(peers: Peers, *, is_frozen: bool) -> None:
    """Unavailable ones are skipped; that one of them is frozen is in the result."""
    first, second, *_ = peers.owners_before_us("key")

    async def attempt(shard: int) -> int:
        tried.append(shard)
        if shard == first:
            raise PeerNotResponding if is_frozen else PeerUnavailable
        return shard

    tried: list[int] = []
    found = await peers.try_owners("key", attempt)
    assert (found.result, found.is_one_frozen) == (second, is_frozen)
    assert tried == [first, second]


async def test_without_an_available_owner_it_is_our_turn(peers: Peers) -> None:
    """Every owner before this worker was tried."""

    async def attempt(shard: int) -> int:
        tried.append(shard)
        raise PeerUnavailable

    tried: list[int] = []
    assert (await peers.try_owners("key", attempt)).result is None
    assert tried == list(peers.owners_before_us("key"))


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b"[]\n",
        b'{"type": 1}\n',
        b'{"type": "NotDownloading"}\n',
        b'{"type": "NotDownloading", "more": 1}\n',
        b"\xff\n",
        b"x" * 100_000,
        b'{"type": "TagListRequest"',
    ],
)
async def test_a_malformed_request_ends_its_connection_only(peers: Peers, line: bytes) -> None:
    """It is dropped, and the next request is handled."""

    async def handle(request: PeerRequest, connection: PeerConnection) -> None:
        await connection.send(REPLY)

    await peers.listen(0, handle)
    reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{peers._directory}/{socket_name(0)}")
    writer.write(line)
    writer.write_eof()
    while await reader.read(1000):
        pass
    writer.close()
    assert await peers.request(0, REQUEST, ListReply) == REPLY


def test_a_reply_to_a_closed_connection_is_a_connection_error(tmp_path: Path) -> None:
    """Also on the loop that the server uses, whose transports raise RuntimeError once they are closed."""

    async def reply_to_nobody() -> None:
        has_ended = asyncio.Event()

        async def handle(request: PeerRequest, connection: PeerConnection) -> None:
            for _ in range(3):
                with contextlib.suppress(ConnectionError):
                    await connection.send(REPLY)
                await asyncio.sleep(0.05)  # the loop closes what cannot be written to
            has_ended.set()

        with contextlib.closing(Peers(tmp_path, 1)) as peers:
            await peers.listen(0, handle)
            async with peers.connect(0, REQUEST):
                pass
            await asyncio.wait_for(has_ended.wait(), EVENT_TIMEOUT_S)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(reply_to_nobody())

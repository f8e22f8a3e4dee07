"""Worker asks worker: the answer, a dead peer, a frozen one, and words that make no sense."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import uvloop

from dockyard.workers import peers as peers_module
from dockyard.workers.peers import PeerGone, Peers, PeerSilent, Question, Reply
from dockyard.workers.processes import processor_ticks
from dockyard.workers.shard_lock import lock_path, socket_name
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
    """Have a process claim a shard, and do this."""
    with contextlib.ExitStack() as stack:

        def start(shard: int, program: str) -> None:
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE))
            stack.callback(process.kill)
            lock_path(peers._run, shard).write_text(str(process.pid))
            eventually(lambda: processor_ticks(process.pid), "it runs")

        yield start


async def test_an_answer_comes_back_with_its_payload(peers: Peers) -> None:
    """The question arrives whole, and lines and raw bytes come back in order."""
    heard: list[Question] = []

    async def answer(question: Question, reply: Reply) -> None:
        heard.append(question)
        await reply.say({"one": 1})
        await reply.say({"two": 2}, b"\n\x00bytes")

    await peers.listen(3, answer)
    question = Question("manifest", "up", "library/img", "up/library/img", "sha256:1")
    async with peers.ask(3, question) as reply:
        assert await reply.next_words() == {"one": 1}
        words = await reply.next_words()
        assert await reply.read_payload(words) == b"\n\x00bytes"
        with pytest.raises(PeerGone):
            await reply.next_words()
    assert heard == [question]


async def test_nobody_listens(peers: Peers) -> None:
    """A shard without a worker is gone."""
    with pytest.raises(PeerGone):
        async with peers.ask(0, Question("tag")):
            pass


async def test_a_frozen_peer_is_silent(
    peers: Peers, owner: Callable[[int, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket that is open but never answered, by a process that does not run, is told from a dead one."""
    monkeypatch.setattr(peers_module, "ACKNOWLEDGE_TIMEOUT_S", 0.05)
    owner(1, "sum(range(5_000_000)); input()")  # some processor time, then nothing
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(f"/proc/self/fd/{peers._directory}/{socket_name(1)}")
        frozen.listen()
        with pytest.raises(PeerSilent):
            async with peers.ask(1, Question("tag")):
                pass


async def test_a_busy_peer_is_waited_for(
    peers: Peers, owner: Callable[[int, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that claimed the shard runs, and its first word comes late."""
    monkeypatch.setattr(peers_module, "ACKNOWLEDGE_TIMEOUT_S", 0.1)
    owner(1, "while True: pass")

    async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        await asyncio.sleep(0.5)
        writer.write(b'{"heard": "tag"}\n{"well": true}\n')
        writer.close()

    async with await asyncio.start_unix_server(answer_late, f"/proc/self/fd/{peers._directory}/{socket_name(1)}"):
        assert await peers.ask_once(1, Question("tag")) == ({"well": True}, b"")


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[]\n", b'{"kind": 1}\n', b"\xff\n", b"x" * 100_000, b'{"kind": "tag"']
)
async def test_words_that_make_no_sense_end_their_connection_only(peers: Peers, line: bytes) -> None:
    """A broken question is dropped, and the next one is answered."""

    async def answer(question: Question, reply: Reply) -> None:
        await reply.say({"well": True})

    await peers.listen(0, answer)
    reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{peers._directory}/{socket_name(0)}")
    writer.write(line)
    writer.write_eof()
    while await reader.read(1000):
        pass
    writer.close()
    async with peers.ask(0, Question("tag")) as reply:
        assert await reply.next_words() == {"well": True}


def test_what_is_said_to_an_asker_that_has_gone_is_no_fault_of_ours(tmp_path: Path) -> None:
    """Also on the loop that the server runs on, whose transports raise RuntimeError once they are closed."""

    async def tell_nobody() -> None:
        has_ended = asyncio.Event()

        async def answer(question: Question, reply: Reply) -> None:
            for _ in range(3):
                with contextlib.suppress(ConnectionError):
                    await reply.say({"still": "here"})
                await asyncio.sleep(0.05)  # the loop closes what cannot be written to
            has_ended.set()

        with contextlib.closing(Peers(tmp_path, 1)) as peers:
            await peers.listen(0, answer)
            async with peers.ask(0, Question("tag")):
                pass
            await asyncio.wait_for(has_ended.wait(), 5)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(tell_nobody())

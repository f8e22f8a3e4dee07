"""A short while of fuzzing on each run: F1 to F6, and F7, what one worker reads from another."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dockyard.errors import RegistryError, from_words
from dockyard.workers.peers import MAX_PAYLOAD_BYTES, Answer, PeerGone, Question, Reply, _serve
from tests.fuzz.budget import runs
from tests.fuzz.targets import TARGETS


def _made_of(words: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(words) | st.binary(max_size=3), max_size=14).map(b"".join)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=runs(200))
@given(data=st.data())
def test_readers_hold_against_anything(name: str, data: st.DataObject) -> None:
    """F1 to F6: whatever is read, a slow reader agrees, and nothing but the reader's own errors is raised."""
    target = TARGETS[name]
    begin = data.draw(st.sampled_from(list(target.begins)))
    target.feed(begin + data.draw(_made_of(list(target.words))))


class Sink:
    """A stream's writing side that keeps what was written."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    async def drain(self) -> None:
        """Nothing waits here."""

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


def _stream(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=1024)
    reader.feed_data(data)
    reader.feed_eof()
    return reader


FRAMES = [
    *(
        b'{"kind": "blob", "upstream": "u", "name": "n", "reference": "r"}\n',
        b'{"kind": "ping"}\n',
        b"\n",
        b"{}",
        b"[]\n",
    ),
    *(
        b'{"payload": 3}\nabc',
        b'{"payload": -1}\n',
        b'{"payload": 9000000}\n',
        b'{"payload": true}\n',
        b'{"payload": 1e9}\n',
    ),
    *(
        b'{"error": "UNKNOWN", "status": 502}\n',
        b'{"error": 1}\n',
        b'{"landed": 5}\n',
        b"\xff",
        b"\0",
        b"x" * 2000,
        b'{"a":' * 300,
    ),
    *(b'{"error": "BlobUnknown", "message": []}\n', b'{"error": "Denied", "retry_after_s": "x"}\n'),
]


@settings(max_examples=runs(200))
@given(_made_of(FRAMES))
def test_f7_frames_between_workers(data: bytes) -> None:
    """F7: a question is whole or nobody is asked, answers are words, and no payload is longer than its cap."""
    asyncio.run(_converse(data))


async def _converse(data: bytes) -> None:
    heard: list[Question] = []

    async def answer(question: Question, reply: Reply) -> None:
        heard.append(question)
        await reply.say({"done": True}, b"payload")

    sink = Sink()
    await _serve(_stream(data), cast(asyncio.StreamWriter, sink), answer)
    assert sink.is_closed
    assert len(heard) <= 1
    for question in heard:
        assert all(isinstance(value, str | bool) for value in attrs.asdict(question).values())
        assert json.loads(data.partition(b"\n")[0])["kind"] == question.kind
    asked = Answer(_stream(data))
    async for words, payload in _words(asked):
        assert len(payload) == words.get("payload", 0) <= MAX_PAYLOAD_BYTES
        if "error" in words:
            error: Any = from_words(words)
            assert isinstance(error, RegistryError)
            assert 400 <= error.status < 600


async def _words(answer: Answer) -> AsyncIterator[tuple[dict[str, Any], bytes]]:
    try:
        while True:
            words = await answer.next_words()
            yield words, await answer.read_payload(words)
    except PeerGone:
        return

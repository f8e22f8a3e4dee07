"""A server whose responses are hostile to clients that use a connection for more than one request.

Each response is right, in itself, for the request that it answers, or invalid. What is hostile is around it: interim
responses, bytes and whole responses that no request asked for, pauses, doubtful framing, early ends. `BEHAVIOURS` has
them all. A client may fail, but it must never take what belongs to one request for the response to another.

There is one case in which no client can always tell: bytes that the server sends while the next request is on its way.
So bytes that come late are sent only while the client sends nothing: the client holds the lock `is_asking` during each
exchange.
"""

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import attrs

from tests.support.raw_server import RawConnection, RawServer

MAX_PAUSE_S = 0.003
_RANGE = re.compile(rb"\r\nRange: bytes=([0-9]+)-([0-9]+)\r\n")
INTERIM_STATUSES = (102, 103, 103, 110, 199)


@attrs.frozen
class Answer:
    """The right response to a request: its headers without those of the framing, and its body."""

    body: bytes
    headers: tuple[str, ...] = ()
    status: int = 200

    def part(self, head: bytes) -> "Answer":
        """The answer to a request with this head, which may have a Range."""
        found = _RANGE.search(head)
        start, stop = (int(found[1]), min(int(found[2]) + 1, len(self.body))) if found else (0, 0)
        if start >= stop or self.status != 200:
            return self
        content_range = f"Content-Range: bytes {start}-{stop - 1}/{len(self.body)}"
        return Answer(self.body[start:stop], (*self.headers, content_range), 206)


@attrs.frozen
class Pause:
    """Wait for a part of this time."""

    max_s: float = MAX_PAUSE_S


@attrs.frozen
class Late:
    """Send bytes that no request asked for, when the exchange is over, before the next one begins."""

    data: bytes


class Close:
    """Close the connection."""


Step = bytes | Pause | Late | Close


@attrs.frozen
class Turn:
    """One request to be answered: the right answer, and an answer for another reference."""

    rng: Random
    method: str
    answer: Answer
    other: Answer

    def head(self, *framing: str, answer: Answer | None = None, status: int = 0, version: str = "1.1") -> bytes:
        """The head of a response with these headers for its framing."""
        answer = answer or self.answer
        lines = [f"HTTP/{version} {status or answer.status} Scripted", *answer.headers, *framing, "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def message(self, answer: Answer | None = None) -> bytes:
        """A response with a Content-Length."""
        answer = answer or self.answer
        body = b"" if self.method == "HEAD" else answer.body
        return self.head(f"Content-Length: {len(answer.body)}", answer=answer) + body

    def unwanted(self) -> bytes:
        """What no request asked for."""
        whole = Turn(self.rng, "GET", self.other, self.answer)
        return self.rng.choice(
            [
                self.message(self.other),
                whole.message(),
                whole.message() * 2,
                whole.head("Content-Length: 0"),
                self.answer.body or b"{}",
                self.interim(),
                b"\r\n",
                b"0\r\n\r\n",
                self.rng.randbytes(20),
            ]
        )

    def interim(self) -> bytes:
        """An interim response, with or without headers."""
        headers = self.rng.choice(["", "Link: </style.css>; rel=preload\r\n", "Content-Length: 7\r\nX: y\r\n"])
        return f"HTTP/1.1 {self.rng.choice(INTERIM_STATUSES)} Interim\r\n{headers}\r\n".encode()

    def pieces(self, data: bytes, max_pieces: int = 4) -> list[Step]:
        """The same bytes in several packets."""
        cuts = sorted(self.rng.randrange(len(data) + 1) for _ in range(self.rng.randrange(1, max_pieces)))
        steps: list[Step] = []
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            steps += [data[start:end], Pause(MAX_PAUSE_S / 4)]
        return steps

    def chunked_body(self) -> bytes:
        """The body in chunks, with a trailer."""
        size = self.rng.randrange(1, len(self.answer.body) + 2)
        parts = [self.answer.body[start : start + size] for start in range(0, len(self.answer.body), size)]
        return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nX-Trailer: y\r\n\r\n"


def _plain(turn: Turn) -> list[Step]:
    return [turn.message()]


def _in_pieces(turn: Turn) -> list[Step]:
    return turn.pieces(turn.message())


def _chunked(turn: Turn) -> list[Step]:
    return turn.pieces(
        turn.head("Transfer-Encoding: chunked") + (b"" if turn.method == "HEAD" else turn.chunked_body())
    )


def _interim_before(turn: Turn) -> list[Step]:
    steps: list[Step] = []
    for _ in range(turn.rng.randrange(1, 5)):
        steps += [*turn.pieces(turn.interim(), 2), Pause()]
    return [*steps, *turn.pieces(turn.message())]


def _interim_in_one_packet(turn: Turn) -> list[Step]:
    return [turn.interim() * turn.rng.randrange(1, 5) + turn.message()]


def _continue_before(turn: Turn) -> list[Step]:
    return [b"HTTP/1.1 100 Continue\r\n\r\n", Pause(), turn.message()]


def _change_of_protocol(turn: Turn) -> list[Step]:
    return [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + turn.message(turn.other)]


def _more_in_the_same_packet(turn: Turn) -> list[Step]:
    return [turn.message() + turn.unwanted()]


def _more_in_the_next_packet(turn: Turn) -> list[Step]:
    return [turn.message(), Late(turn.unwanted())]


def _more_some_time_later(turn: Turn) -> list[Step]:
    return [turn.message(), Pause(), Late(turn.unwanted())]


def _more_after_chunks(turn: Turn) -> list[Step]:
    body = b"" if turn.method == "HEAD" else turn.chunked_body()
    return [turn.head("Transfer-Encoding: chunked") + body + turn.unwanted()]


def _body_after_head(turn: Turn) -> list[Step]:
    if turn.method != "HEAD":
        return turn.pieces(turn.message())
    body = turn.answer.body
    return [turn.message(), Late(body)] if turn.rng.random() < 0.5 else [turn.message() + body]


def _body_without_content(turn: Turn) -> list[Step]:
    status = turn.rng.choice([204, 304])
    return [turn.head(f"Content-Length: {len(turn.other.body)}", status=status) + turn.message(turn.other)]


def _length_and_chunks(turn: Turn) -> list[Step]:
    framing = turn.head(f"Content-Length: {turn.rng.randrange(200)}", "Transfer-Encoding: chunked")
    return [framing + (b"" if turn.method == "HEAD" else turn.chunked_body()) + turn.message(turn.other)]


def _length_twice(turn: Turn) -> list[Step]:
    length = len(turn.answer.body)
    framing = turn.head(f"Content-Length: {length}", f"Content-Length: {length}")
    return [framing + (b"" if turn.method == "HEAD" else turn.answer.body)]


def _two_lengths(turn: Turn) -> list[Step]:
    framing = turn.head(f"Content-Length: {len(turn.answer.body)}", f"Content-Length: {turn.rng.randrange(200)}")
    return [framing + turn.answer.body + turn.message(turn.other)]


def _invalid_length(turn: Turn) -> list[Step]:
    length = turn.rng.choice(["+5", "-1", "5_0", "0x10", "5 5", ""])
    return [turn.head(f"Content-Length: {length}") + turn.answer.body]


def _short_length(turn: Turn) -> list[Step]:
    return [turn.head(f"Content-Length: {len(turn.answer.body) // 2}") + turn.answer.body + turn.message(turn.other)]


def _long_length(turn: Turn) -> list[Step]:
    return [turn.head(f"Content-Length: {len(turn.answer.body) + 9}") + turn.answer.body, Close()]


def _chunks_without_end(turn: Turn) -> list[Step]:
    body = turn.chunked_body()
    return [turn.head("Transfer-Encoding: chunked") + body[: turn.rng.randrange(len(body))], Close()]


def _malformed_chunks(turn: Turn) -> list[Step]:
    size = turn.rng.choice([b"+9", b"0x9", b"9_0", b"", b"-1", b"zz"])
    return [turn.head("Transfer-Encoding: chunked") + size + b"\r\n" + turn.chunked_body() + turn.message(turn.other)]


def _unknown_coding(turn: Turn) -> list[Step]:
    return [turn.head("Transfer-Encoding: gzip, chunked") + turn.answer.body, Close()]


def _folded_header(turn: Turn) -> list[Step]:
    framing = turn.head(
        "X-Folded: a", f" Content-Length: {turn.rng.randrange(200)}", f"Content-Length: {len(turn.answer.body)}"
    )
    return [framing + (b"" if turn.method == "HEAD" else turn.answer.body)]


def _bare_cr(turn: Turn) -> list[Step]:
    return [turn.head(f"X: y\rContent-Length: {turn.rng.randrange(200)}") + turn.message()]


def _malformed_header(turn: Turn) -> list[Step]:
    line = turn.rng.choice(["no colon", "Content-Length : 5", ": x", "X\0: y"])
    return [turn.head(line, f"Content-Length: {len(turn.answer.body)}") + turn.answer.body]


def _no_framing(turn: Turn) -> list[Step]:
    return [turn.head() + (b"" if turn.method == "HEAD" else turn.answer.body), Close()]


def _http_1_0(turn: Turn) -> list[Step]:
    framing = turn.head(f"Content-Length: {len(turn.answer.body)}", version="1.0")
    return [framing + (b"" if turn.method == "HEAD" else turn.answer.body) + turn.message(turn.other)]


def _announced_close(turn: Turn) -> list[Step]:
    framing = turn.head("Connection: x, Close", f"Content-Length: {len(turn.answer.body)}")
    return [framing + (b"" if turn.method == "HEAD" else turn.answer.body), Late(turn.message(turn.other))]


def _end_within_the_head(turn: Turn) -> list[Step]:
    head = turn.head(f"Content-Length: {len(turn.answer.body)}")
    return [turn.rng.choice([b"", turn.interim()]) + head[: turn.rng.randrange(len(head))], Close()]


Behaviour = Callable[[Turn], list[Step]]

# With how often each is used, relative to the others.
BEHAVIOURS: Mapping[Behaviour, float] = {
    _plain: 30,
    _in_pieces: 6,
    _chunked: 6,
    _interim_before: 6,
    _interim_in_one_packet: 6,
    _continue_before: 2,
    _more_in_the_same_packet: 6,
    _more_in_the_next_packet: 4,
    _more_some_time_later: 4,
    _more_after_chunks: 3,
    _body_after_head: 5,
    _length_and_chunks: 2,
    _length_twice: 2,
    _folded_header: 2,
    _no_framing: 2,
    _http_1_0: 2,
    _announced_close: 2,
    # These are no valid responses.
    _body_without_content: 1,
    _change_of_protocol: 1,
    _two_lengths: 1,
    _invalid_length: 1,
    _short_length: 1,
    _long_length: 1,
    _chunks_without_end: 1,
    _malformed_chunks: 1,
    _unknown_coding: 1,
    _bare_cr: 1,
    _malformed_header: 1,
    _end_within_the_head: 1,
}


class HostileServer:
    """Answers requests as `answers` says by their target, with random BEHAVIOURS. Other targets are 404.

    `counts` are the behaviours so far; `reused` is the number of requests that were not the first one of their
    connection; `late` is how often bytes came late, and `late_steps` how often they will come soon. Without `is_asking`
    nothing comes late.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer],
        seed: int,
        *,
        is_asking: Any = None,
        behaviours: Mapping[Behaviour, float] = BEHAVIOURS,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.late = 0
        self.late_steps = 0
        self.reused = 0
        self._lock = threading.Lock()
        self._answers = answers
        self._others = list(answers.values())
        self._seed = seed
        self._is_asking = is_asking
        self._behaviours = behaviours
        self.raw = RawServer(self._serve)

    def _serve(self, connection: RawConnection) -> None:
        rng = Random(f"{self._seed} {connection.number}")
        is_first = True
        while line := connection.receive_request():
            method, target = line.split()[:2]
            self.reused += not is_first
            is_first = False
            answer = self._answers.get(target) or Answer(b'{"errors": []}', status=404)
            (behaviour,) = rng.choices(list(self._behaviours), list(self._behaviours.values()))
            self.counts[behaviour.__name__] += 1
            answer = answer.part(connection.head)
            steps = behaviour(Turn(rng, method, answer, rng.choice(self._others)))
            late_steps = sum(isinstance(step, Late) for step in steps) if self._is_asking else 0
            self._add_late_steps(late_steps)
            try:
                if not self._run(connection, steps, rng):
                    return
            finally:
                self._add_late_steps(-late_steps)

    def _add_late_steps(self, count: int) -> None:
        with self._lock:
            self.late_steps += count

    def _run(self, connection: RawConnection, steps: list[Step], rng: Random) -> bool:
        for step in steps:
            match step:
                case Pause(max_s=max_s):
                    time.sleep(rng.uniform(0, max_s))
                case Late(data=data):
                    self._send_late(connection, data)
                case bytes(data):
                    connection.send(data)
                case Close():
                    return False
        return True

    def _send_late(self, connection: RawConnection, data: bytes) -> None:
        lock = self._is_asking
        while lock is not None and not connection.has_received_more():
            if lock.acquire(timeout=0.001):
                try:
                    if not connection.has_received_more():
                        connection.send(data)
                        self.late += 1
                finally:
                    lock.release()
                return

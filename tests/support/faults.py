"""What an upstream can do wrong, each a change to an honest answer: `fake_registry.on("blob", cut(1000), times=1)`.

Positions are counted in the body of the answer at hand: in a 206 from the first byte of the range.
"""

import threading
from collections.abc import Callable

import attrs

from tests.support.bodies import Body, Bytes, Endless, Flipped
from tests.support.fake_registry import Change
from tests.support.raw_http import Ending, Framing, Pause, Request, ScriptedResponse

HTML = b"<!doctype html><title>Sign in</title><p>Please sign in to the hotel network.</p>"


def replaced(status: int, body: bytes | Body = b"", *headers: tuple[str, str]) -> Change:
    """Another answer altogether."""
    return lambda request, answer: ScriptedResponse.of(status, body, *headers)


def error_response(status: int, code: str = "UNKNOWN", retry_after: str | None = None) -> Change:
    """An error of the registry, with its JSON body."""
    body = b'{"errors":[{"code":"%s","message":"said the upstream"}]}' % code.encode()
    headers = [("Content-Type", "application/json")]
    if retry_after is not None:
        headers.append(("Retry-After", retry_after))
    return replaced(status, body, *headers)


def html_page() -> Change:
    """A 200 with the page of a captive portal."""
    return replaced(200, HTML, ("Content-Type", "text/html"))


def header(name: str, *values: str) -> Change:
    """One header replaced; without values it is left out."""
    return lambda request, answer: answer.with_header(name, *values)


def without(*names: str) -> Change:
    """Headers left out. Content-Length is one of them only for HEAD: it must end the body otherwise."""

    def change(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        for name in names:
            answer = attrs.evolve(answer, length=-1) if name == "Content-Length" else answer.with_header(name)
        return answer

    return change


def cut(at: float, how: Ending = "fin") -> Change:
    """The body breaks off: after `at` bytes, or at that part of it when `at` is a fraction below 1."""

    def change(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        size = answer.stop - answer.start
        return attrs.evolve(answer, cut=_place(at, size), cut_how=how)

    return change


def stalled(at: float, until: threading.Event) -> Change:
    """The body stops at a byte (or a fraction of it) until the event is set."""

    def change(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        place = _place(at, answer.stop - answer.start)
        return attrs.evolve(answer, pauses=(*answer.pauses, Pause(place, until)))

    return change


def silent(until: threading.Event | None = None) -> Change:
    """Not a byte of an answer, until the event is set; without an event for ever."""
    event = until or threading.Event()
    return lambda request, answer: attrs.evolve(answer, before=event)


def disconnected(how: Ending = "rst") -> Change:
    """The connection ends without a byte of an answer."""
    return lambda request, answer: attrs.evolve(answer, disconnects=how)


def slow_headers(pause_s: float) -> Change:
    """Status line and headers come one byte at a time."""
    return lambda request, answer: attrs.evolve(answer, header_interval_s=pause_s)


def slow(bytes_per_s: int, until: threading.Event | None = None) -> Change:
    """The body comes at this speed, until the event is set."""
    return lambda request, answer: attrs.evolve(answer, bytes_per_s=bytes_per_s, full_speed=until)


def chunked(*, ended: bool = True) -> Change:
    """No Content-Length but chunks; `ended=False`: the last chunk is missing."""
    framing: Framing = "chunked" if ended else "chunked-unended"
    return lambda request, answer: attrs.evolve(answer, framing=framing)


def close_delimited() -> Change:
    """No length at all: the body ends where the connection ends."""
    return lambda request, answer: attrs.evolve(answer, framing="close")


def short(missing: int) -> Change:
    """The last bytes are missing, and the framing says that all is well (for chunked and close-delimited)."""
    return lambda request, answer: attrs.evolve(answer, stop=max(answer.start, answer.stop - missing))


def wrong_length(more: int) -> Change:
    """A Content-Length that is wrong by so many bytes; the body is sent whole."""
    return lambda request, answer: attrs.evolve(answer, length=answer.stop - answer.start + more)


def longer(extra: bytes) -> Change:
    """More bytes than the blob has, with a matching Content-Length."""

    def change(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        whole = b"".join(answer.body.pieces(answer.start, answer.stop)) + extra
        return attrs.evolve(answer, body=Bytes(whole), start=0, stop=len(whole))

    return change


def flipped(at: int) -> Change:
    """One bit of the content is wrong (`at` counts from the start of the blob)."""
    return lambda request, answer: attrs.evolve(answer, body=Flipped(answer.body, at))


def with_body(body: bytes) -> Change:
    """Other bytes under the honest headers."""
    return lambda request, answer: attrs.evolve(answer, body=Bytes(body), start=0, stop=len(body))


def endless(block: bytes = b" " * 65536) -> Change:
    """A 200 whose body never ends, in chunks."""
    body = Endless(block)
    return lambda request, answer: attrs.evolve(answer, body=body, start=0, stop=body.size, framing="chunked")


def ignoring_range() -> Change:
    """200 with the whole body, whatever range was asked for."""

    def change(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        whole = attrs.evolve(answer, status=200, start=0, stop=answer.body.size)
        return whole.with_header("Content-Range") if answer.status == 206 else answer

    return change


def redirected(location: str | Callable[[Request], str], status: int = 307) -> Change:
    """A redirect; `location` is the header's value, or makes it from the request."""

    def change(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        where = location if isinstance(location, str) else location(request)
        return ScriptedResponse.of(status).with_header("Location", where)

    return change


def challenged(*challenges: str) -> Change:
    """401 with these WWW-Authenticate headers."""
    body = b'{"errors":[{"code":"UNAUTHORIZED","message":"said the upstream"}]}'
    answer_401 = ScriptedResponse.of(401, body, ("Content-Type", "application/json"))
    return lambda request, answer: answer_401.with_header("WWW-Authenticate", *challenges)


def cut_at_offset(place: int) -> Change:
    """The upstream has no byte of the blob from `place` on: every answer ends there, and claims more."""
    return lambda request, answer: attrs.evolve(answer, cut=max(0, place - answer.start))


def stalled_at_offset(place: int, until: threading.Event) -> Change:
    """No answer goes beyond a byte of the blob until the event is set."""

    def change(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        return attrs.evolve(answer, pauses=(*answer.pauses, Pause(max(0, place - answer.start), until)))

    return change


def _place(at: float, size: int) -> int:
    return int(at * size) if 0 < at < 1 else min(int(at), size)

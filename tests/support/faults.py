"""Faults of an upstream, each a change to the correct response: `fake_registry.on("blob", faults.cut(1000), times=1)`.

Positions count from the start of the response body: in a 206 response from the first byte of the range.
"""

import threading
from collections.abc import Callable

import attrs

from tests.support.bodies import Body, Bytes, Endless, Flipped
from tests.support.fake_registry import Change
from tests.support.raw_http import Ending, Framing, Pause, Request, ScriptedResponse

HTML = b"<!doctype html><title>Sign in</title><p>Please sign in to the hotel network.</p>"


def replaced(status: int, body: bytes | Body = b"", *headers: tuple[str, str]) -> Change:
    """Replace the whole response."""
    return lambda request, response: ScriptedResponse.of(status, body, *headers)


def error_response(status: int, code: str = "UNKNOWN", retry_after: str | None = None) -> Change:
    """Replace the response by an error of the registry with a JSON body."""
    body = b'{"errors":[{"code":"%s","message":"message from the upstream"}]}' % code.encode()
    headers = [("Content-Type", "application/json")]
    if retry_after is not None:
        headers.append(("Retry-After", retry_after))
    return replaced(status, body, *headers)


def html_page() -> Change:
    """Replace the response by a 200 with the HTML page of a captive portal."""
    return replaced(200, HTML, ("Content-Type", "text/html"))


def header(name: str, *values: str) -> Change:
    """Replace one header; without values, remove it."""
    return lambda request, response: response.with_header(name, *values)


def without(*names: str) -> Change:
    """Remove headers. Content-Length can be removed for HEAD only: in other responses it ends the body."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        for name in names:
            response = attrs.evolve(response, length=-1) if name == "Content-Length" else response.with_header(name)
        return response

    return change


def cut(at: float, how: Ending = "fin") -> Change:
    """Cut the body after `at` bytes, or after that fraction of it when `at` is below 1."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        size = response.stop - response.start
        return attrs.evolve(response, cut=_place(at, size), cut_how=how)

    return change


def stalled(at: float, until: threading.Event) -> Change:
    """Stop sending the body at a byte (or a fraction of it) until the event is set."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        place = _place(at, response.stop - response.start)
        return attrs.evolve(response, pauses=(*response.pauses, Pause(place, until)))

    return change


def silent(until: threading.Event | None = None) -> Change:
    """Send nothing until the event is set; without an event, never."""
    event = until or threading.Event()
    return lambda request, response: attrs.evolve(response, before=event)


def disconnected(how: Ending = "rst") -> Change:
    """Close the connection without sending a byte."""
    return lambda request, response: attrs.evolve(response, disconnects=how)


def interim(head: bytes, until: threading.Event | None = None) -> Change:
    """Send these bytes first, such as the head of an interim response (RFC 9110, 15.2), and wait for the event."""
    return lambda request, response: attrs.evolve(response, interim=head, before=until)


def trailing(data: bytes) -> Change:
    """Send bytes after the response that do not belong to it."""
    return lambda request, response: attrs.evolve(response, trailing=data)


def slow_headers(pause_s: float) -> Change:
    """Send status line and headers one byte at a time."""
    return lambda request, response: attrs.evolve(response, header_interval_s=pause_s)


def slow(bytes_per_s: int, until: threading.Event | None = None) -> Change:
    """Limit the speed of the body until the event is set."""
    return lambda request, response: attrs.evolve(response, bytes_per_s=bytes_per_s, full_speed=until)


def chunked(*, ended: bool = True) -> Change:
    """Send the body in chunks without Content-Length; with `ended=False` the last chunk is missing."""
    framing: Framing = "chunked" if ended else "chunked-unended"
    return lambda request, response: attrs.evolve(response, framing=framing)


def close_delimited() -> Change:
    """Send the body without any length: it ends where the connection ends."""
    return lambda request, response: attrs.evolve(response, framing="close")


def short(missing: int) -> Change:
    """Leave out the last bytes without breaking the framing (for chunked and close-delimited bodies)."""
    return lambda request, response: attrs.evolve(response, stop=max(response.start, response.stop - missing))


def wrong_length(more: int) -> Change:
    """Send a Content-Length that is wrong by `more` bytes, and the whole body."""
    return lambda request, response: attrs.evolve(response, length=response.stop - response.start + more)


def longer(extra: bytes) -> Change:
    """Send extra bytes after the blob, with a matching Content-Length."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        whole = b"".join(response.body.pieces(response.start, response.stop)) + extra
        return attrs.evolve(response, body=Bytes(whole), start=0, stop=len(whole))

    return change


def flipped(at: int) -> Change:
    """Flip one bit of the content (`at` counts from the start of the blob)."""
    return lambda request, response: attrs.evolve(response, body=Flipped(response.body, at))


def with_body(body: bytes) -> Change:
    """Send other bytes with the correct headers."""
    return lambda request, response: attrs.evolve(response, body=Bytes(body), start=0, stop=len(body))


def encoded(encoding: str, encode: Callable[[bytes], bytes]) -> Change:
    """Encode the whole body, and say so; Docker-Content-Digest is still that of the content."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        body = encode(b"".join(response.body.pieces(0, response.body.size)))
        return with_body(body)(request, response).with_header("Content-Encoding", encoding)

    return change


def endless(block: bytes = b" " * 65536) -> Change:
    """Send a 200 whose chunked body never ends."""
    body = Endless(block)
    return lambda request, response: attrs.evolve(response, body=body, start=0, stop=body.size, framing="chunked")


def ignoring_range() -> Change:
    """Send 200 with the whole body, whatever range was requested."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        whole = attrs.evolve(response, status=200, start=0, stop=response.body.size)
        return whole.with_header("Content-Range") if response.status == 206 else response

    return change


def redirected(location: str | Callable[[Request], str], status: int = 307) -> Change:
    """Redirect; `location` is the header's value, or a function that makes it from the request."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        where = location if isinstance(location, str) else location(request)
        return ScriptedResponse.of(status).with_header("Location", where)

    return change


def challenged(*challenges: str) -> Change:
    """Answer 401 with these WWW-Authenticate headers."""
    body = b'{"errors":[{"code":"UNAUTHORIZED","message":"message from the upstream"}]}'
    answer_401 = ScriptedResponse.of(401, body, ("Content-Type", "application/json"))
    return lambda request, response: answer_401.with_header("WWW-Authenticate", *challenges)


def cut_at_offset(place: int) -> Change:
    """End every response at byte `place` of the blob, whatever range it starts from; the length claims more."""
    return lambda request, response: attrs.evolve(response, cut=max(0, place - response.start))


def stalled_at_offset(place: int, until: threading.Event) -> Change:
    """Stop every response at byte `place` of the blob until the event is set."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        return attrs.evolve(response, pauses=(*response.pauses, Pause(max(0, place - response.start), until)))

    return change


def _place(at: float, size: int) -> int:
    return int(at * size) if 0 < at < 1 else min(int(at), size)

"""What servers do with a request for a range of a blob, as a table for tests.

The changes apply to requests with a Range header only, so that the whole blob can be had in any case.
"""

import attrs

from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.fake_registry import Change
from tests.support.raw_http import Request, ScriptedResponse

BOUNDARY = "part"


@attrs.frozen
class RangeHabit:
    """`change` is made to the correct responses to ranges.

    `is_usable`: the bytes of a range can be had all the same. Otherwise ranges are not used: of no blob of this server
    (`concerns_all_blobs`), or not of this blob.
    """

    name: str
    change: Change
    is_usable: bool = False
    concerns_all_blobs: bool = True

    def __str__(self) -> str:
        return self.name


def only_ranges(change: Change) -> Change:
    """A change to the responses to requests with a Range header."""
    return lambda request, response: change(request, response) if request.header("Range") else response


def moved(first: int = 0, last: int = 0, total: int = 0) -> Change:
    """Change the numbers in Content-Range by these, and send the bytes of the range that it then names."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        if response.status != 206:
            return response
        start, stop, size = response.start + first, response.stop + last, response.body.size + total
        part = attrs.evolve(response, start=start, stop=stop)
        return part.with_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")

    return change


def to_the_end() -> Change:
    """Ignore where the range ends."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        return moved(last=response.body.size - response.stop)(request, response)

    return change


def halved() -> Change:
    """Send the first half of the range, with a Content-Range that says so."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        return moved(last=-((response.stop - response.start) // 2))(request, response)

    return change


def hidden_size() -> Change:
    """Send `*` instead of the size in Content-Range."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        return response.with_header("Content-Range", f"bytes {response.start}-{response.stop - 1}/*")

    return change


def multipart(*, keeps_content_range: bool = False) -> Change:
    """Send the range as the only part of a multipart/byteranges body (RFC 9110 section 14.6)."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        if response.status != 206:
            return response
        content_range = dict(response.headers)["Content-Range"]
        part = b"".join(response.body.pieces(response.start, response.stop))
        head = f"--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Range: {content_range}\r\n\r\n"
        body = head.encode() + part + f"\r\n--{BOUNDARY}--\r\n".encode()
        changed = attrs.evolve(response, body=Bytes(body), start=0, stop=len(body), framing="chunked")
        if not keeps_content_range:
            changed = changed.with_header("Content-Range")
        return changed.with_header("Content-Type", f"multipart/byteranges; boundary={BOUNDARY}")

    return change


def unsatisfied(total: str | None) -> Change:
    """Reject the range with 416."""
    headers = [] if total is None else [("Content-Range", f"bytes */{total}")]
    return faults.replaced(416, b"", *headers)


RANGE_HABITS = (
    # The right bytes, or the first of them
    RangeHabit("part of the range", only_ranges(halved()), is_usable=True),
    RangeHabit("chunked", only_ranges(faults.chunked()), is_usable=True),
    RangeHabit("no length", only_ranges(faults.close_delimited()), is_usable=True),
    # Not a range
    RangeHabit("200", only_ranges(faults.ignoring_range())),
    # No part of the blob, or another one
    RangeHabit("multipart/byteranges", only_ranges(multipart())),
    RangeHabit("multipart/byteranges with Content-Range", only_ranges(multipart(keeps_content_range=True))),
    RangeHabit("no Content-Range", only_ranges(faults.header("Content-Range"))),
    RangeHabit("Content-Range of another unit", only_ranges(faults.header("Content-Range", "items 0-1/2"))),
    RangeHabit("two of Content-Range", only_ranges(faults.header("Content-Range", *["bytes 1000-1099/2048"] * 2))),
    RangeHabit("starts earlier", only_ranges(moved(first=-1))),
    RangeHabit("starts later", only_ranges(moved(first=1))),
    RangeHabit("ends later", only_ranges(moved(last=1))),
    RangeHabit("to the end", only_ranges(to_the_end())),
    RangeHabit("ends after the size", only_ranges(faults.header("Content-Range", "bytes 1000-1099/1050"))),
    RangeHabit("Content-Length of another range", only_ranges(faults.wrong_length(1))),
    RangeHabit("unknown Transfer-Encoding", only_ranges(faults.header("Transfer-Encoding", "gzip, chunked"))),
    # Refused
    RangeHabit("416", only_ranges(unsatisfied(None))),
    RangeHabit("416 with the size", only_ranges(unsatisfied("2048"))),
    RangeHabit("416 with a smaller size", only_ranges(unsatisfied("10"))),
    RangeHabit("416 with *", only_ranges(unsatisfied("*"))),
    RangeHabit("501", only_ranges(faults.error_response(501))),
    RangeHabit("400", only_ranges(faults.error_response(400))),
    RangeHabit("405", only_ranges(faults.error_response(405))),
    RangeHabit("412", only_ranges(faults.error_response(412))),
    # May be something else than the blob
    RangeHabit(
        "labelled as a web page",
        only_ranges(faults.header("Content-Type", "text/html; charset=utf-8")),
        concerns_all_blobs=False,
    ),
)

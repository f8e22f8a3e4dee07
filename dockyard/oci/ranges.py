"""The Range header: byte ranges out, or None for the whole body (RFC 9110 section 14).

A header that is not a list of byte ranges is ignored, as the RFC allows. A range that asks for nothing of this blob
(`500-0`, `-0`, behind the end) is passed over; when none is left the answer is 416. The others are answered one by
one, in the order asked and never merged: clients count the parts and refuse to pull when the number differs.
"""

import re
from typing import Final, Self

import attrs

from dockyard.errors import RangeNotSatisfiable, RequestInvalid

MAX_RANGES: Final = 256

_RANGE: Final = re.compile(r"([0-9]*)-([0-9]*)", re.ASCII)
# Behind every blob. Longer numbers mean the same, and int() would refuse some and be slow with others.
_FAR: Final = 10**18


@attrs.frozen
class ByteRange:
    """Bytes from `start` up to, not including, `stop`. Never empty."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def content_range(self, size: int) -> str:
        """Return the Content-Range of this part of a body of `size` bytes."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"

    @classmethod
    def between(cls, start: int, stop: int) -> Self | None:
        """Return the range, or None if no byte is in it."""
        return cls(start, stop) if start < stop else None


def parse_ranges(header: str | None, size: int) -> tuple[ByteRange, ...] | None:
    """Return the ranges that a Range header asks of `size` bytes; None means the whole body.

    Raise RangeNotSatisfiable when none of them has a byte, and RequestInvalid (400, on which clients ask for the whole
    blob instead) when there are more than 256 or when they would send the blob more than twice.
    """
    unit, equals, text = (header or "").partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    specs = [spec for part in text.split(",") if (spec := part.strip(" \t"))]
    if len(specs) > MAX_RANGES:
        raise RequestInvalid(f"more than {MAX_RANGES} ranges in one request")
    matches = [_RANGE.fullmatch(spec) for spec in specs]
    if not specs or any(match is None or match[0] == "-" for match in matches):
        return None
    ranges = tuple(found for match in matches if match and (found := _resolve(match[1], match[2], size)))
    if not ranges:
        raise RangeNotSatisfiable(size)
    if len(ranges) > 1 and sum(part.length for part in ranges) > 2 * size:
        raise RequestInvalid("the ranges overlap too much")
    return ranges


def _resolve(first: str, last: str, size: int) -> ByteRange | None:
    if not first:
        return ByteRange.between(max(size - _number(last), 0), size)
    stop = min(_number(last) + 1, size) if last else size
    return ByteRange.between(_number(first), stop)


def _number(digits: str) -> int:
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) <= 18 else _FAR

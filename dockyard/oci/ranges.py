"""Parses the Range header (RFC 9110 section 14).

A header that is not a list of byte ranges is ignored, as the RFC allows. A range without a byte of this blob (`500-0`,
`-0`, beyond the end) is ignored; if none is left, the status is 416. All others are kept in the requested order and
never merged, because clients count the parts of the response.
"""

import re
from typing import Final, Self

import attrs

from dockyard.errors import RangeNotSatisfiable, RequestInvalid

MAX_RANGES: Final = 256

_RANGE: Final = re.compile(r"([0-9]*)-([0-9]*)", re.ASCII)
# Beyond the end of any blob. It replaces longer numbers, for which int() is slow or raises.
_BEYOND_END: Final = 10**18


@attrs.frozen
class ByteRange:
    """The bytes from `start` up to, but not including, `stop`. Never empty."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def content_range(self, size: int) -> str:
        """Return the value of Content-Range for this part of a body of `size` bytes."""
        return f"bytes {self.start}-{self.stop - 1}/{size}"

    @classmethod
    def between(cls, start: int, stop: int) -> Self | None:
        """Return the range; None if it is empty."""
        return cls(start, stop) if start < stop else None


def parse_ranges(header: str | None, size: int) -> tuple[ByteRange, ...] | None:
    """Return the ranges that a Range header requests of a body of `size` bytes; None for the whole body.

    Raises RangeNotSatisfiable if all ranges are empty, and RequestInvalid if there are more than 256, or if together
    they are more than twice the blob. RequestInvalid is a 400, after which clients request the whole blob.
    """
    specs = _split(header)
    if len(specs) > MAX_RANGES:
        raise RequestInvalid(f"a request may have at most {MAX_RANGES} ranges")
    matches = [_RANGE.fullmatch(spec) for spec in specs]
    if not specs or any(match is None or match[0] == "-" for match in matches):
        return None
    ranges = tuple(found for match in matches if match and (found := _find_range(match[1], match[2], size)))
    if not ranges:
        raise RangeNotSatisfiable(size)
    if len(ranges) > 1 and sum(part.length for part in ranges) > 2 * size:
        raise RequestInvalid("the ranges together are more than twice the size of the blob")
    return ranges


def has_open_end(header: str | None) -> bool:
    """Whether a Range header requests one range without an end, such as `bytes=8388608-`."""
    specs = _split(header)
    match = _RANGE.fullmatch(specs[0]) if len(specs) == 1 else None
    return bool(match and match[1] and not match[2])


def _split(header: str | None) -> list[str]:
    """Return the ranges of a header, without those that are empty; none if the unit is not bytes."""
    unit, equals, text = (header or "").partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return []
    return [spec for part in text.split(",") if (spec := part.strip(" \t"))]


def _find_range(first: str, last: str, size: int) -> ByteRange | None:
    if not first:
        return ByteRange.between(max(size - _parse_number(last), 0), size)
    stop = min(_parse_number(last) + 1, size) if last else size
    return ByteRange.between(_parse_number(first), stop)


def _parse_number(digits: str) -> int:
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) <= 18 else _BEYOND_END

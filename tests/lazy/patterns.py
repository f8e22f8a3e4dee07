"""The requests that lazy clients make for one layer, in order: `patterns.json`.

`source` says how they were found: recorded, with the packages or the program of the client and a real layer that its
own converter made, or read in its code.
"""

import json
from pathlib import Path
from typing import Final

import attrs

from dockyard.oci.ranges import MAX_RANGES, ByteRange


@attrs.frozen
class LazyRequest:
    """One request for the layer; `header` is its Range header, None without one."""

    method: str
    header: str | None

    @property
    def places(self) -> list[ByteRange]:
        """The ranges, in the order of the header."""
        pairs = [part.split("-") for part in (self.header or "=").partition("=")[2].split(",") if part]
        return [ByteRange(int(first), int(last) + 1) for first, last in pairs]

    @property
    def has_too_many_ranges(self) -> bool:
        return len(self.places) > MAX_RANGES


@attrs.frozen
class Pattern:
    """The requests of one client for a layer of `size` bytes.

    `at_once`: all after the first are sent at once. `has_namespace`: the name of the registry is in `?ns=`.
    """

    name: str
    client: str
    source: str
    size: int
    requests: tuple[LazyRequest, ...]
    at_once: bool = False
    has_namespace: bool = False


def _read() -> dict[str, Pattern]:
    found = json.loads((Path(__file__).parent / "patterns.json").read_text())
    patterns = [
        Pattern(**{**each, "requests": tuple(LazyRequest(method, header) for method, header in each["requests"])})
        for each in found
    ]
    return {pattern.name: pattern for pattern in patterns}


PATTERNS: Final = _read()

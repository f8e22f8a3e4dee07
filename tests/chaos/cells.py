"""The cells of the fault matrix: a fault, one of its variants, and the state in which it strikes.

A cell that ran leaves a `Record`, one line of JSON. `ops/FAULTS.md` is made of such lines, and a cell without a line
counts as failed.
"""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Any

import attrs


class State(StrEnum):
    """What a client asks for when the fault strikes, and whether Dockyard has it."""

    TAG_CACHED = "tag cached"
    TAG_COLD = "tag not cached"
    MANIFEST = "digest manifest"  # one that is cached, and one that is not
    BLOB_CACHED = "blob cached"
    BLOB_COLD = "blob cold"
    BLOB_DOWNLOAD = "blob in progress"  # a leader and nine followers, half of it fetched


@attrs.frozen(order=True)
class Cell:
    """One square of the matrix: `U01`, a variant's name, a state."""

    fault: str
    variant: str
    state: State

    def __str__(self) -> str:
        return f"{self.fault} {self.variant}: {self.state}"


@attrs.define
class Record:
    """What came of a cell. `problems` is empty when all is as it must be."""

    cell: Cell
    title: str  # of the fault
    expected: str
    seen: str = ""
    requests: int = 0  # that reached the upstream while the fault was on
    received_bytes: int = 0  # body bytes that the upstream handed over meanwhile
    rss_max_bytes: int = 0  # the largest worker
    recovery_s: float | None = None
    seed: int = 0
    problems: list[str] = attrs.field(factory=list)

    def check(self, holds: object, problem: str) -> None:
        """Note a problem unless something holds."""
        if not holds:
            self.problems.append(problem)

    def to_line(self) -> str:
        """One line of JSON."""
        words = attrs.asdict(self, recurse=False)
        cell = words.pop("cell")
        return json.dumps({"fault": cell.fault, "variant": cell.variant, "state": str(cell.state), **words})

    @classmethod
    def parse(cls, line: str) -> "Record":
        """A record from its line."""
        words: dict[str, Any] = json.loads(line)
        cell = Cell(words.pop("fault"), words.pop("variant"), State(words.pop("state")))
        return cls(cell=cell, **words)


def append_record(path: Path, record: Record) -> None:
    """Add a line to a file that several processes write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, record.to_line().encode() + b"\n")
    finally:
        os.close(descriptor)


def read_records(path: Path) -> list[Record]:
    """All lines of a file."""
    return [Record.parse(line) for line in path.read_text().splitlines()]

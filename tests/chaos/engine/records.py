"""Records: the results of cases, one line of JSON each. `ops/FAULTS.md` is made from them."""

import json
import os
from pathlib import Path
from typing import Any

import attrs

from tests.chaos.engine.case import Case, State


@attrs.define
class Record:
    """The result of a case. The case has passed when `problems` is empty."""

    case: Case
    title: str  # of the fault
    expected: str
    seen: str = ""
    requests: int = 0  # that reached the upstream while the fault was active
    received_bytes: int = 0  # body bytes that the upstream sent meanwhile
    rss_max_bytes: int = 0  # the largest worker
    recovery_s: float | None = None
    problems: list[str] = attrs.field(factory=list)

    def check(self, holds: object, problem: str) -> None:
        """Add a problem unless `holds` is true."""
        if not holds:
            self.problems.append(problem)

    def to_line(self) -> str:
        """Serialize the record to one line of JSON."""
        fields = attrs.asdict(self, recurse=False)
        case = fields.pop("case")
        return json.dumps({"fault": case.fault, "variant": case.variant, "state": str(case.state), **fields})

    @classmethod
    def parse(cls, line: str) -> "Record":
        """Parse a line that `to_line` made."""
        fields: dict[str, Any] = json.loads(line)
        case = Case(fields.pop("fault"), fields.pop("variant"), State(fields.pop("state")))
        return cls(case=case, **fields)


def append_record(path: Path, record: Record) -> None:
    """Append one line to a file that several processes write to."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, record.to_line().encode() + b"\n")
    finally:
        os.close(descriptor)


def read_records(path: Path) -> list[Record]:
    """Read all records of a file."""
    return [Record.parse(line) for line in path.read_text().splitlines()]

"""Make `ops/FAULTS.md` from the records of runs: what a user sees under each fault.

    python -m tests.chaos.report FILE...

For a fault that the files have records of, the measured columns are those of the records, and a case without a record
has failed. For the other faults, the measured columns are kept from the page. Everything else on the page is written
anew from the matrix. The exit status is 1 if a case has failed.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from tests.chaos.engine.case import Case, State
from tests.chaos.engine.outcomes import Outcome
from tests.chaos.engine.records import Record, read_records
from tests.chaos.engine.variant import Fault
from tests.chaos.matrix import all_faults, cases_of
from tests.support.paths import ROOT

PAGE = ROOT / "ops" / "FAULTS.md"
FAILED = "FAILED"
INTRO = """\
# What a user sees when something fails

Made by `python -m tests.chaos.report` from the records of the fault matrix; do not edit.

Each line is a test: what a client requests while a fault is active, the variant of the fault, and what a user sees.
The tests run with short timeouts (`connect_timeout` 1 s, `check_timeout` 2 s, `stall_timeout` 2 s for U, 30 s for S and
P); with other settings the times change accordingly. Where a digest manifest has two outcomes, the first is for one
that is cached and the second for one that is not. A blob in progress has several clients, and a part of it has been
fetched when the fault begins. "Seen" is from one run on a shared machine of two cores; "recovered" is the time from the
end of the fault to the first right and fresh response.

Faults of an upstream have the letter U, those of the bucket and the disk S, those of processes, clients and the clock
P. L is for load.
"""
_HEADER = ["| requested | variant | what a user sees | seen | recovered |", "|---|---|---|---|---|"]
_SECTION = re.compile(r"^## (\w+) ", re.MULTILINE)
_ROW = re.compile(
    r"^\| (?P<state>[a-z ]+) \| (?P<variant>[^|]+) \| [^|]* \| (?P<seen>[^|]*) \| (?P<recovered>[^|]*) \|$",
    re.MULTILINE,
)


@attrs.frozen
class Measured:
    """The measured columns of a line."""

    seen: str
    recovered: str = ""

    @classmethod
    def of(cls, record: Record | None) -> "Measured":
        """What a record says."""
        if record is None:
            return cls(f"{FAILED}: no record")
        if record.problems:
            return cls(f"{FAILED}: {_in_one_line(record.problems[0])}")
        return cls(record.seen, "" if record.recovery_s is None else f"{record.recovery_s:.1f} s")


def write_page(faults: Iterable[Fault], records: Sequence[Record], before: str = "") -> str:
    """Write the page. `before` is the page whose measured columns are kept for faults without records."""
    last = {record.case: record for record in records}
    measured_faults = {record.case.fault for record in records}
    kept = parse_page(before)

    def measured(case: Case) -> Measured:
        if case.fault not in measured_faults and case in kept:
            return kept[case]
        return Measured.of(last.get(case))

    return "\n".join(
        [INTRO, *(_write_section(fault, {case: measured(case) for case, _ in cases_of(fault)}) for fault in faults)]
    )


def parse_page(page: str) -> dict[Case, Measured]:
    """The measured columns of a page, in its order."""
    starts = [(match.group(1), match.start()) for match in _SECTION.finditer(page)]
    ends = [*(start for _, start in starts[1:]), len(page)][: len(starts)]
    return {
        Case(fault, match["variant"], State(match["state"])): Measured(
            match["seen"].strip(), match["recovered"].strip()
        )
        for (fault, start), end in zip(starts, ends, strict=True)
        for match in _ROW.finditer(page, start, end)
        if match["state"] in set(State)
    }


def _write_section(fault: Fault, measured: Mapping[Case, Measured]) -> str:
    lines = [f"## {fault.id} {fault.title}", "", *_HEADER]
    lines += [_write_line(case, outcomes, measured[case]) for case, outcomes in cases_of(fault)]
    for reason in dict.fromkeys(variant.reason for variant in fault.variants if variant.reason):
        names = ", ".join(variant.name for variant in fault.variants if variant.reason == reason)
        lines += ["", f"{names}: {reason}."]
    return "\n".join([*lines, ""])


def _write_line(case: Case, outcomes: Sequence[Outcome], measured: Measured) -> str:
    says = " / ".join(outcome.says for outcome in outcomes)
    return f"| {case.state} | {case.variant} | {says} | {measured.seen} | {measured.recovered} |"


def _in_one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def main(files: Sequence[str]) -> int:
    """Write the page; return 1 if a case has failed."""
    records = [record for file in files for record in read_records(Path(file))]
    before = PAGE.read_text() if PAGE.exists() else ""
    page = write_page(all_faults(), records, before)
    PAGE.write_text(page)
    failed = [line for line in page.splitlines() if f"| {FAILED}" in line]
    sys.stdout.write(f"{len(parse_page(page))} cases, {len(failed)} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

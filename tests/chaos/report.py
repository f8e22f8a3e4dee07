"""`ops/FAULTS.md` out of the records of runs: fault by fault, what a user will see.

    python -m tests.chaos.report FILE...

The sections of the faults that the records are about are written anew; the others stay as they are. A cell without a
record is a failed one. The exit status is 1 when any has failed.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.chaos.cells import Cell, Record, State, read_records
from tests.chaos.matrix import Row, all_rows, cells_of
from tests.chaos.outcomes import Outcome
from tests.support.paths import ROOT

PAGE = ROOT / "ops" / "FAULTS.md"
FAILED = "FAILED"
MIB = 1024 * 1024
INTRO = """\
# What a user sees when something fails

Made by `python -m tests.chaos.report` from the records of the fault matrix; not written by hand.

Each line is a test: a fault, one of its variants, and what a client asks for meanwhile. The waits of these tests are
shortened (`connect_timeout` 1 s, `check_timeout` 2 s, `stall_timeout` 2 s where no other is named); with other settings
the times follow. Where a digest manifest has two outcomes, the first is for one that is cached and the second for one
that is not. "Seen" is from the run, on a shared machine of two cores; "well again" is how long after the end of the
fault the first right and fresh answer came. U is about the upstream, S about the bucket, P about processes, clients and
clocks, L about load.
"""
_SECTION = re.compile(r"^## (\w+) ", re.MULTILINE)
_ROW = re.compile(r"^\| (?P<state>[a-z ]+) \| (?P<variant>[^|]+) \| ", re.MULTILINE)


def write_section(row: Row, records: Mapping[Cell, Record]) -> str:
    """The section of one fault."""
    lines = [
        f"## {row.id} {row.title}",
        "",
        "| asked for | variant | a user sees | seen | well again |",
        "|---|---|---|---|---|",
    ]
    lines += [_line(cell, outcomes, records.get(cell)) for cell, outcomes in cells_of(row)]
    reasons = dict.fromkeys(variant.reason for variant in row.variants if variant.reason)
    for reason in reasons:
        names = ", ".join(variant.name for variant in row.variants if variant.reason == reason)
        lines += ["", f"{names}: {reason}."]
    return "\n".join([*lines, ""])


def _line(cell: Cell, outcomes: Sequence[Outcome], record: Record | None) -> str:
    says = " / ".join(outcome.says for outcome in outcomes)
    if record is None:
        seen, well = f"{FAILED}: no record", ""
    elif record.problems:
        seen, well = f"{FAILED}: {_in_one_line(record.problems[0])}", ""
    else:
        seen = record.seen
        well = "" if record.recovery_s is None else f"{record.recovery_s:.1f} s"
    return f"| {cell.state} | {cell.variant} | {says} | {seen} | {well} |"


def _in_one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


def split_page(page: str) -> dict[str, str]:
    """The sections of a page, by the fault."""
    starts = [(match.group(1), match.start()) for match in _SECTION.finditer(page)]
    ends = [*(start for _, start in starts[1:]), len(page)][: len(starts)]
    return {fault: page[start:end].rstrip() + "\n" for (fault, start), end in zip(starts, ends, strict=True)}


def cells_in(page: str) -> list[Cell]:
    """The cells that a page has a line for."""
    return [
        Cell(fault, match["variant"], State(match["state"]))
        for fault, section in split_page(page).items()
        for match in _ROW.finditer(section)
        if match["state"] != "asked for"
    ]


def write_page(rows: Iterable[Row], records: Sequence[Record], before: str = "") -> str:
    """The page: new sections for what there are records of, old ones for the rest."""
    last = {record.cell: record for record in records}
    told = {record.cell.fault for record in records}
    old = split_page(before)
    sections = [old[row.id] if row.id not in told and row.id in old else write_section(row, last) for row in rows]
    return "\n".join([INTRO, *sections])


def main(files: Sequence[str]) -> int:
    """Write the page; 1 when a cell has failed."""
    records = [record for file in files for record in read_records(Path(file))]
    before = PAGE.read_text() if PAGE.exists() else ""
    page = write_page(all_rows(), records, before)
    PAGE.write_text(page)
    failed = [line for line in page.splitlines() if f"| {FAILED}" in line]
    sys.stdout.write(f"{len(cells_in(page))} cells, {len(failed)} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

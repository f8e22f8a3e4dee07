"""The page `ops/ERRORS.md`: its rows are read by the tests, and written by `pytest tests/failures --write-errors`."""

import fcntl
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.failures.failure import Failure
from tests.support.paths import ROOT

PAGE = ROOT / "ops" / "ERRORS.md"
INTRO = """\
# Errors and their lines

What can be wrong, and the line that says so. Search this page for a part of the line that you see.

Each row is a test that makes the failure and compares the line. The page is written by `pytest tests/failures
--write-errors`; do not edit it.

Times at the start of lines are left out. Words in capitals stand for what varies: `PREFIX` is the prefix of an upstream
in the settings, `HOST:PORT` the address of a registry, a store or a server, `PROXY:PORT`, `TOKENS:PORT`, `STORAGE:PORT`
and `OTHER:PORT` those of a proxy, a token service and other hosts that a registry names, `/DIRECTORY` a directory.
`upstreams[N]` is the upstream number N in the settings, counted from 0. Lines of requests are logged when the response
has ended; clients get a shorter message, without addresses, paths and errors of the system. [RUNBOOK.md](RUNBOOK.md)
describes alerts and the other log messages.
"""
_ROW = re.compile(r"^\| (?P<cause>[^|]+) \| (?P<fence>`+) ?(?P<line>.*?) ?(?P=fence) \|$", re.MULTILINE)
_GROUP = re.compile(r"^## (.+)$", re.MULTILINE)


def parse_page(text: str) -> dict[str, str]:
    """The line of each cause, in the order of the page."""
    return {match["cause"]: match["line"].replace("\\|", "|") for match in _ROW.finditer(text)}


def parse_groups(text: str) -> list[str]:
    """The headings of the groups."""
    return _GROUP.findall(text)


def write_page(groups: Mapping[str, Sequence[Failure]], lines: Mapping[str, str]) -> str:
    """The page with these lines. A failure without a line has an empty one, which no test accepts."""
    parts = [INTRO]
    for title, failures in groups.items():
        rows = [f"| {failure.cause} | {_as_code(lines.get(failure.cause, ''))} |" for failure in failures]
        parts.append("\n".join([f"## {title}", "", "| what is wrong | line |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def read_page() -> str:
    """The text of the page; empty when there is none."""
    return PAGE.read_text() if PAGE.exists() else ""


def record(groups: Mapping[str, Sequence[Failure]], cause: str, line: str, page: Path = PAGE) -> None:
    """Write one line into the page. Several processes may do so at once."""
    with page.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = write_page(groups, parse_page(file.read()) | {cause: line})
        file.seek(0)
        file.truncate()
        file.write(text)


def _as_code(line: str) -> str:
    """A line as code in a table: between more backquotes than it has, with bars escaped."""
    longest = max(map(len, re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    escaped = line.replace("|", "\\|")
    space = " " if longest or not line else ""
    return f"{fence}{space}{escaped}{space}{fence}"

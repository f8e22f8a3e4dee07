"""The published page and the table of the README, made from the results: `python -m bench.peers.readme`."""

import re

from bench.peers import page, report, summary
from bench.peers.report import Report
from tests.support.paths import ROOT

PUBLISHED = ROOT / "bench" / "published"
PAGE = "peers.md"
README = ROOT / "README.md"
BLOCK = re.compile(
    r"(<!-- peers: made by `python -m bench.peers.readme` -->\n\n).*?(\n<!-- end of the table -->)", re.DOTALL
)


def replace_table(text: str, results: Report) -> str:
    """Return the README with the table of these results. Raises ValueError if it has not exactly one place for it."""
    found = BLOCK.findall(text)
    if len(found) != 1:
        raise ValueError(f"the README has {len(found)} places for the table, not one")
    return BLOCK.sub(lambda match: f"{match[1]}{as_markdown(results)}{match[2]}", text)


def as_markdown(results: Report) -> str:
    """The summary, after a sentence about the rounds and the machine."""
    least, most = results.rounds()
    rounds = f"{least} rounds" if least == most else f"{least} to {most} rounds"
    names = ("processor", "memory", "kernel", "date")
    where = ", ".join(results.machine[name] for name in names if name in results.machine)
    return f"Medians of {rounds} ({where}):\n\n{summary.as_markdown(results)}"


def write() -> None:
    """Write both."""
    results = report.load(PUBLISHED)
    (PUBLISHED / PAGE).write_text(page.as_markdown(results))
    README.write_text(replace_table(README.read_text(), results))


if __name__ == "__main__":
    write()

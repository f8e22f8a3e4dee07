"""Results: all samples in JSON, medians and ratios with their intervals in Markdown."""

import json
from pathlib import Path

import attrs
import cattrs

from bench.peers.intervals import CONFIDENCE, Estimate, estimate

REFERENCES = ("dockyard-baseline", "distribution")  # of ratios: the first that was measured
CUT = "cut"  # 1 in a run that was stopped before it was complete, whose times are lower bounds
ROUND = "round"  # of a sample: ratios are of the samples of one round
HIDDEN = frozenset({CUT, ROUND})
BOUNDS = frozenset({"last client s", "last client / direct"})
FILE = "peers.json"
NOTE = f"""\
Medians of all rounds. In brackets the ratio to {REFERENCES[-1]}: the median of the ratios of each round, and its \
{CONFIDENCE:.0%} interval. A ratio without interval is of fewer than 5 rounds, and is no result.
"""


@attrs.define
class Report:
    """All samples, by workload and cache: one dictionary of numbers for each round."""

    samples: dict[str, dict[str, list[dict[str, float]]]] = attrs.field(factory=dict)
    titles: dict[str, str] = attrs.field(factory=dict)
    machine: dict[str, str] = attrs.field(factory=dict)
    versions: dict[str, str] = attrs.field(factory=dict)
    missing: dict[str, str] = attrs.field(factory=dict)
    failures: dict[str, str] = attrs.field(factory=dict)

    def add(self, workload: str, cache: str, values: dict[str, float]) -> None:
        self.samples.setdefault(workload, {}).setdefault(cache, []).append(values)

    def begin(self, workload: str, title: str) -> None:
        """Delete the results of a workload, which is measured again."""
        self.titles[workload] = title
        self.samples.pop(workload, None)
        self.failures = {key: reason for key, reason in self.failures.items() if key.partition(" ")[0] != workload}

    def columns(self, workload: str) -> list[str]:
        """The names of the numbers of a workload, in the order in which they were measured."""
        names = dict.fromkeys(name for rows in self.samples[workload].values() for row in rows for name in row)
        return [name for name in names if name not in HIDDEN]

    def value(self, workload: str, cache: str, column: str, confidence: float = CONFIDENCE) -> Estimate | None:
        """One number; None if it was not measured."""
        found = list(self._by_round(workload, cache, column).values())
        return estimate(found, confidence) if found else None

    def median(self, workload: str, cache: str, column: str) -> float | None:
        """The median of one number; None if it was not measured."""
        value = self.value(workload, cache, column)
        return value.median if value else None

    def ratio(self, workload: str, column: str, cache: str, to: str, confidence: float = CONFIDENCE) -> Estimate | None:
        """The ratio of two caches in the same rounds; None if there is no such round."""
        ours, theirs = self._by_round(workload, cache, column), self._by_round(workload, to, column)
        ratios = [value / theirs[number] for number, value in ours.items() if theirs.get(number)]
        return estimate(ratios, confidence) if ratios else None

    def rounds(self) -> tuple[int, int]:
        """The smallest and the largest number of rounds of a workload."""
        counts = [max(len(rows) for rows in by_cache.values()) for by_cache in self.samples.values()]
        return min(counts, default=0), max(counts, default=0)

    def _by_round(self, workload: str, cache: str, column: str) -> dict[float, float]:
        rows = self.samples.get(workload, {}).get(cache, [])
        return {row.get(ROUND, number): row[column] for number, row in enumerate(rows) if column in row}


def load(out: Path) -> Report:
    """Read the results of an earlier run."""
    return cattrs.structure(json.loads((out / FILE).read_text()), Report)


def write(report: Report, out: Path) -> None:
    """Write the samples. If that fails, those that were written before stay."""
    out.mkdir(parents=True, exist_ok=True)
    new = out / f"{FILE}.new"
    new.write_text(json.dumps(attrs.asdict(report), indent=1) + "\n")
    new.replace(out / FILE)


def as_markdown(report: Report) -> str:
    """One table per workload, with ratios to the reference; then the machine, versions and failures."""
    parts = [_table(report, workload) for workload in report.titles if workload in report.samples]
    notes = [f"- {name}: {text}" for name, text in (*report.machine.items(), *report.versions.items())]
    notes += [f"- {name}: **not measured**: {text}" for name, text in report.missing.items()]
    notes += [f"- **failed**, {name}: {text}" for name, text in report.failures.items()]
    return "\n\n".join([NOTE.rstrip(), *parts, "\n".join(notes)]) + "\n"


def number(value: float) -> str:
    """Format a number with three significant digits."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def interval(estimated: Estimate) -> str:
    """Format an interval."""
    if estimated.interval is None:
        return "no interval"
    return " to ".join(f"{bound:,.2f}" for bound in estimated.interval)


def _table(report: Report, workload: str) -> str:
    columns = report.columns(workload)
    lines = [f"### {report.titles[workload]}", "", f"| | {' | '.join(columns)} | rounds |"]
    lines.append("|---" + "|--:" * (len(columns) + 1) + "|")
    for cache, rows in report.samples[workload].items():
        cells = [_cell(report, workload, cache, column) for column in columns]
        lines.append(f"| {cache} | {' | '.join(cells)} | {len(rows)} |")
    return "\n".join(lines)


def _cell(report: Report, workload: str, cache: str, column: str) -> str:
    value = report.median(workload, cache, column)
    if value is None:
        return ""
    bound = "> " if column in BOUNDS and report.median(workload, cache, CUT) else ""
    reference = next((name for name in REFERENCES if name in report.samples[workload]), "")
    ratio = report.ratio(workload, column, cache, reference)
    if ratio is None or cache == reference:
        return f"{bound}{number(value)}"
    text = f"{ratio.median:.2f}x" + (f", {interval(ratio)}" if ratio.interval else "")
    return f"{bound}{number(value)} ({text})"

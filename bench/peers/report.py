"""Results: all samples in JSON, medians and ratios in Markdown."""

import json
import statistics
from pathlib import Path

import attrs
import cattrs

REFERENCES = ("dockyard-baseline", "distribution")  # of ratios: the first that was measured
CUT = "cut"  # 1 in a run that was stopped before it was complete, whose times are lower bounds
BOUNDS = frozenset({"last client s", "last client / direct"})
FILE = "peers.json"


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

    def median(self, workload: str, cache: str, value: str) -> float | None:
        """The median of one number; None if it was not measured."""
        rows = self.samples.get(workload, {}).get(cache, [])
        found = [row[value] for row in rows if value in row]
        return statistics.median(found) if found else None

    def ratio(self, workload: str, value: str, cache: str, to: str) -> float | None:
        """The ratio of the medians of two caches."""
        ours, theirs = self.median(workload, cache, value), self.median(workload, to, value)
        return ours / theirs if ours is not None and theirs else None


def load(out: Path) -> Report:
    """Read the results of an earlier run."""
    return cattrs.structure(json.loads((out / FILE).read_text()), Report)


def write(report: Report, out: Path) -> None:
    """Write the samples."""
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps(attrs.asdict(report), indent=1) + "\n")


def as_markdown(report: Report) -> str:
    """One table per workload, with ratios to the reference; then the machine, versions and failures."""
    parts = [_table(report, workload) for workload in report.titles if workload in report.samples]
    notes = [f"- {name}: {text}" for name, text in (*report.machine.items(), *report.versions.items())]
    notes += [f"- {name}: **not measured**: {text}" for name, text in report.missing.items()]
    notes += [f"- **failed**, {name}: {text}" for name, text in report.failures.items()]
    return "\n\n".join([*parts, "\n".join(notes)]) + "\n"


def number(value: float) -> str:
    """Format a number with three significant digits."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _table(report: Report, workload: str) -> str:
    by_cache = report.samples[workload]
    names = dict.fromkeys(name for rows in by_cache.values() for row in rows for name in row)
    columns = [name for name in names if name != CUT]
    lines = [f"### {report.titles[workload]}", "", f"| | {' | '.join(columns)} | rounds |"]
    lines.append("|---" + "|--:" * (len(columns) + 1) + "|")
    for cache, rows in by_cache.items():
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
    compared = f" ({ratio:.2f}x)" if ratio is not None and cache != reference else ""
    return f"{bound}{number(value)}{compared}"

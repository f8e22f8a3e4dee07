"""What was measured: every sample in JSON, medians and ratios in Markdown."""

import json
import statistics
from pathlib import Path

import attrs
import cattrs

AGAINST = "distribution"
CUT = "cut"  # 1 in a run that was ended before it was done: its times are lower bounds
BOUNDS = frozenset({"last client s", "last client / direct"})
FILE = "peers.json"


@attrs.define
class Report:
    """All samples: by workload, then peer, one dictionary of numbers for each round."""

    samples: dict[str, dict[str, list[dict[str, float]]]] = attrs.field(factory=dict)
    titles: dict[str, str] = attrs.field(factory=dict)
    machine: dict[str, str] = attrs.field(factory=dict)
    versions: dict[str, str] = attrs.field(factory=dict)
    missing: dict[str, str] = attrs.field(factory=dict)
    failures: dict[str, str] = attrs.field(factory=dict)

    def add(self, workload: str, peer: str, values: dict[str, float]) -> None:
        self.samples.setdefault(workload, {}).setdefault(peer, []).append(values)

    def begin(self, workload: str, title: str) -> None:
        """Forget what is known of a workload: it is measured anew."""
        self.titles[workload] = title
        self.samples.pop(workload, None)
        self.failures = {key: said for key, said in self.failures.items() if key.partition(" ")[0] != workload}

    def median(self, workload: str, peer: str, value: str) -> float | None:
        """The median of one number; None when it was not measured."""
        rows = self.samples.get(workload, {}).get(peer, [])
        found = [row[value] for row in rows if value in row]
        return statistics.median(found) if found else None

    def ratio(self, workload: str, value: str, peer: str, to: str) -> float | None:
        """The ratio of two peers' medians."""
        ours, theirs = self.median(workload, peer, value), self.median(workload, to, value)
        return ours / theirs if ours is not None and theirs else None


def load(out: Path) -> Report:
    """What an earlier run wrote."""
    return cattrs.structure(json.loads((out / FILE).read_text()), Report)


def write(report: Report, out: Path) -> None:
    """Write the samples."""
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps(attrs.asdict(report), indent=1) + "\n")


def as_markdown(report: Report) -> str:
    """One table per workload; in brackets the ratio to distribution's median; then the machine and what is missing."""
    parts = [_table(report, workload) for workload in report.titles if workload in report.samples]
    notes = [f"- {name}: {said}" for name, said in (*report.machine.items(), *report.versions.items())]
    notes += [f"- {name}: **not measured**: {said}" for name, said in report.missing.items()]
    notes += [f"- **failed**, {name}: {said}" for name, said in report.failures.items()]
    return "\n\n".join([*parts, "\n".join(notes)]) + "\n"


def number(value: float) -> str:
    """A number with three figures."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _table(report: Report, workload: str) -> str:
    by_peer = report.samples[workload]
    names = dict.fromkeys(name for rows in by_peer.values() for row in rows for name in row)
    columns = [name for name in names if name != CUT]
    lines = [f"### {report.titles[workload]}", "", f"| | {' | '.join(columns)} | rounds |"]
    lines.append("|---" + "|--:" * (len(columns) + 1) + "|")
    for peer, rows in by_peer.items():
        cells = [_cell(report, workload, peer, column) for column in columns]
        lines.append(f"| {peer} | {' | '.join(cells)} | {len(rows)} |")
    return "\n".join(lines)


def _cell(report: Report, workload: str, peer: str, column: str) -> str:
    value = report.median(workload, peer, column)
    if value is None:
        return ""
    bound = "> " if column in BOUNDS and report.median(workload, peer, CUT) else ""
    ratio = report.ratio(workload, column, peer, AGAINST)
    compared = f" ({ratio:.2f}x)" if ratio is not None and peer != AGAINST else ""
    return f"{bound}{number(value)}{compared}"

"""What was measured: every sample in JSON, medians and ratios in Markdown."""

import json
import statistics
from pathlib import Path

import attrs

AGAINST = "distribution"


@attrs.define
class Report:
    """All samples of a run."""

    samples: dict[str, dict[str, list[dict[str, float]]]] = attrs.field(factory=dict)
    titles: dict[str, str] = attrs.field(factory=dict)
    versions: dict[str, str] = attrs.field(factory=dict)
    missing: dict[str, str] = attrs.field(factory=dict)
    failures: list[str] = attrs.field(factory=list)

    def add(self, workload: str, title: str, peer: str, values: dict[str, float]) -> None:
        self.titles[workload] = title
        self.samples.setdefault(workload, {}).setdefault(peer, []).append(values)

    def median(self, workload: str, peer: str, value: str) -> float | None:
        """The median of one number; None when it was not measured."""
        rows = self.samples.get(workload, {}).get(peer, [])
        found = [row[value] for row in rows if value in row]
        return statistics.median(found) if found else None


def write(report: Report, out: Path) -> None:
    """Write `peers.json` and `peers.md`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "peers.json").write_text(json.dumps(attrs.asdict(report), indent=1))
    (out / "peers.md").write_text(as_markdown(report))


def as_markdown(report: Report) -> str:
    """One table per workload; in brackets the ratio to distribution's median."""
    parts = []
    for workload, by_peer in report.samples.items():
        columns = list(dict.fromkeys(name for rows in by_peer.values() for row in rows for name in row))
        lines = [f"### {report.titles[workload]}", "", f"| | {' | '.join(columns)} | rounds |"]
        lines.append("|---" + "|--:" * (len(columns) + 1) + "|")
        for peer, rows in by_peer.items():
            cells = [_cell(report, workload, peer, column) for column in columns]
            lines.append(f"| {peer} | {' | '.join(cells)} | {len(rows)} |")
        parts.append("\n".join(lines))
    notes = [f"- {name}: {said}" for name, said in report.versions.items()]
    notes += [f"- {name}: **not measured**: {said}" for name, said in report.missing.items()]
    notes += [f"- **failed**: {said}" for said in report.failures]
    return "\n\n".join([*parts, "\n".join(notes)]) + "\n"


def _cell(report: Report, workload: str, peer: str, column: str) -> str:
    value = report.median(workload, peer, column)
    if value is None:
        return ""
    base = report.median(workload, AGAINST, column)
    ratio = f" ({value / base:.2f}x)" if base and peer != AGAINST else ""
    return f"{_number(value)}{ratio}"


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"

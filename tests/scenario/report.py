"""The tables that the scenario prints, and its JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from tests.scenario.acts import Act
from tests.scenario.layout import Shape
from tests.support.networks import Traffic

MIB = 2**20
MBIT = 1e6
MAX_LAYERS_SHOWN = 12  # there are more in acts with several images, which are in the JSON


def as_text(shape: Shape, acts: Sequence[Act]) -> str:
    """The tables, as Markdown."""
    return "\n\n".join([_clients(acts), _upstream(acts), _layers(acts), _links(shape, acts)]) + "\n"


def as_json(shape: Shape, layers: Sequence[int], acts: Sequence[Act]) -> dict[str, Any]:
    """Everything that was measured: sizes in bytes, times in seconds, rates in bits per second."""
    return {"shape": attrs.asdict(shape), "layers": list(layers), "acts": [attrs.asdict(act) for act in acts]}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all values does not exceed; 0 for no values."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else 0.0


def _clients(acts: Sequence[Act]) -> str:
    rows = []
    for act in acts:
        times = [pull.took_s for pull in act.pulls if pull.is_right]
        rows.append(
            [
                act.name,
                act.title,
                len(act.pulls),
                sum(pull.is_right for pull in act.pulls),
                sum(pull.is_right and pull.retries > 0 for pull in act.pulls),
                sum(not pull.is_right for pull in act.pulls),
                f"{sum(pull.verified_bytes for pull in act.pulls) / MIB:,.0f}",
                *(f"{percentile(times, share):.1f}" for share in (0.5, 0.95, 1.0)),
            ]
        )
    head = [
        "act",
        "what happens",
        "pulls",
        "right",
        "of these retried",
        "failed",
        "MiB verified",
        "p50 s",
        "p95 s",
        "max s",
    ]
    return _table("What clients saw", head, rows, texts=2)


def _upstream(acts: Sequence[Act]) -> str:
    rows = []
    for act in acts:
        gets = [act.upstream.blob_gets.get(digest, 0) for digest in act.sizes]
        rows.append(
            [
                act.name,
                len(gets),
                f"{sum(act.sizes.values()) / MIB:,.1f}",
                sum(act.upstream.blob_gets.values()),
                act.upstream.max_blob_gets,
                act.upstream.manifest_gets,
                act.upstream.heads,
                f"{act.upstream.sent / MIB:,.1f}",
                f"{act.traffic['registry'].sent / MIB:,.1f}",
            ]
        )
    head = [
        "act",
        "new blobs",
        "MiB",
        "GETs of blobs",
        "most for one",
        "GETs of manifests",
        "HEADs",
        "MiB sent",
        "MiB on its link",
    ]
    return _table("What the registry saw", head, rows)


def _layers(acts: Sequence[Act]) -> str:
    """Acts with one new image: each layer with its size, its GETs, and the bytes of the responses to these."""
    rows = []
    for act in acts:
        _, *layers = act.sizes.items() or [("", 0)]
        if 0 < len(layers) <= MAX_LAYERS_SHOWN:
            requests = act.upstream
            cells = [
                f"{size / MIB:.1f}: {requests.blob_gets.get(digest, 0)}, {requests.blob_bytes.get(digest, 0) / MIB:.1f}"
                for digest, size in layers
            ]
            rows.append([act.name, ", ".join(f"({cell})" for cell in cells)])
    return _table("Layers at the registry, as (MiB: GETs, MiB sent)", ["act", "layers"], rows, texts=2)


def _links(shape: Shape, acts: Sequence[Act]) -> str:
    """What each machine has sent and received; the nodes of a zone together."""
    names = dict.fromkeys(_group_of(name) for name in acts[0].traffic) if acts else {}
    rows = []
    for name in names:
        cells = [_amount(each for link, each in act.traffic.items() if _group_of(link) == name) for act in acts]
        rows.append([name, _rate(shape, name), *cells])
    head = ["link", "Mbit/s", *(act.name for act in acts)]
    return _table("MiB on each link, from / to the machine", head, rows)


def _group_of(link: str) -> str:
    place, found, _ = link.rpartition("-node-")
    return f"nodes of {place}" if found else link


def _amount(traffic: Iterable[Traffic]) -> str:
    total = sum(traffic, Traffic(0, 0))
    return f"{total.sent / MIB:,.0f} / {total.received / MIB:,.0f}"


def _rate(shape: Shape, link: str) -> str:
    rates = shape.rates
    by_part: Mapping[str, float] = {
        "registry": rates.registry,
        "bucket": rates.bucket,
        "nodes of ": rates.node,
        "region-replica": rates.replica,
        "region-balancer": rates.balancer,
        "-replica-": rates.zone_replica,
        "-balancer-": rates.zone_balancer,
        "zone-": rates.zone,
    }
    rate = next(rate for part, rate in by_part.items() if part in link)
    each = " each" if link.startswith("nodes of ") else ""
    return f"{rate / MBIT:,.0f}{each}" if rate else "no limit"


def _table(title: str, head: Sequence[object], rows: Sequence[Sequence[object]], *, texts: int = 1) -> str:
    """A table of Markdown with aligned columns; the first `texts` columns are texts, the others numbers."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ) + " |"
        for row in cells
    ]  # fmt: skip
    rule = "|" + "|".join("-" * (width + 2) if n < texts else "-" * (width + 1) + ":" for n, width in enumerate(widths))
    return "\n".join([f"{title}:", "", lines[0], f"{rule}|", *lines[1:]])

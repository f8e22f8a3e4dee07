"""Targets for Dockyard, most of them relative to another cache, and whether they are reached.

A target is reached if the whole interval of its number is on the right side of the limit, and not reached if the whole
interval is on the other side. Otherwise it is undecided; with fewer than 5 rounds it always is.
"""

import attrs

from bench.peers.caches import DOCKYARD
from bench.peers.intervals import Estimate
from bench.peers.report import Report, interval, number

DISTRIBUTION = "distribution"
NGINX = "nginx-static"
NGINX_CACHE = "nginx-cache"
TEXTS = {True: "reached", False: "**not reached**", None: "undecided"}


@attrs.frozen
class Target:
    """One target for a number of a workload, or with `over` for its ratio to that of another cache."""

    text: str
    limit: float
    at_least: bool
    workload: str
    column: str
    over: str = ""

    def estimate(self, report: Report) -> Estimate | None:
        """The number; None if it was not measured."""
        if self.over:
            return report.ratio(self.workload, self.column, DOCKYARD, self.over)
        return report.value(self.workload, DOCKYARD, self.column)

    def is_reached(self, report: Report) -> bool | None:
        """Whether it is reached; None if it is undecided or not measured."""
        found = self.estimate(report)
        if found is None or found.interval is None:
            return None
        low, high = found.interval
        if self.at_least:
            low, high, limit = -high, -low, -self.limit
        else:
            limit = self.limit
        return True if high <= limit else False if low > limit else None


def make_targets(many: int) -> list[Target]:
    """Return all targets; `many` is the number of clients of the larger load on a warm blob."""
    targets = []
    for key, how in (("warm-blob", "new connections"), ("warm-blob-reused", "reused connections")):
        for clients, limit in ((1, 0.9), (many, 0.4)):
            workload, text = f"{key}-{clients}", f"warm blob, {clients} client{'s' * (clients > 1)}, {how}"
            targets += [
                Target(f"{text}: CPU per GiB / distribution's", limit, False, workload, "CPU s/GiB", DISTRIBUTION),
                Target(f"{text}: CPU per GiB / nginx sendfile's", 1.15, False, workload, "CPU s/GiB", NGINX),
                Target(f"{text}: throughput / distribution's", 1.2, True, workload, "MiB/s", DISTRIBUTION),
            ]
    for clients in (1, many):
        text = f"warm blob, {clients} client{'s' * (clients > 1)}, TLS: CPU per GiB / nginx's with TLS"
        targets.append(Target(text, 1.2, False, f"warm-blob-tls-{clients}", "CPU s/GiB", NGINX))
    text, workload = f"warm blob, {many} clients, HAProxy in front", f"warm-blob-haproxy-{many}"
    return [
        *targets,
        Target(f"{text}: CPU per GiB / distribution's", 0.5, False, workload, "CPU s/GiB", DISTRIBUTION),
        *(
            Target(f"{text}: requests/s / distribution's", limit, True, workload, "requests/s", DISTRIBUTION)
            for text, limit, workload in (
                ("warm blobs of 64 KiB", 2.5, "warm-small-64k"),
                ("warm manifest by digest", 2.5, "warm-manifest-digest"),
                ("… with S3 behind both", 5.0, "s3/warm-manifest-digest"),
                ("warm manifest by tag, check_interval 10 s", 10.0, "warm-manifest-tag-interval"),
            )
        ),
        Target("cold layer, 1 client: CPU / distribution's", 1.0, False, "cold-layer-1", "CPU s/GiB", DISTRIBUTION),
        *(
            Target(f"cold layer, {text}", limit, False, workload, column)
            for text, limit, workload, column in (
                ("1 client: first byte, ms after the upstream's", 2, "cold-layer-1", "… median client"),
                ("many clients: upstream GETs", 1, "cold-layer-slow", "upstream GETs"),
                ("many clients: last client / one direct download", 1.1, "cold-layer-slow", "last client / direct"),
                ("many clients: first byte, median client, ms", 15, "cold-layer-slow", "… median client"),
            )
        ),
        Target("100 distinct layers: time / nginx's", 1.5, False, "cold-distinct", "last client s", NGINX_CACHE),
        Target("dead upstream: stale tag after the first, ms", 5, False, "dead-refuses", "median after ms"),
        Target("silent upstream: stale tag after the first, ms", 5, False, "dead-silent", "median after ms"),
        Target("at rest: private MiB of all processes", 90, False, "idle", "private MiB"),
        Target("loaded: MiB of a worker", 200, False, "loaded", "largest process MiB"),
        Target("start to first answer, s", 0.35, False, "idle", "first answer s"),
    ]


def are_precise(report: Report, workload: str, many: int, width: float) -> bool:
    """Return whether the ratios that a workload has in the targets have intervals of this relative width or less."""
    ratios = [each.estimate(report) for each in make_targets(many) if each.workload == workload and each.over]
    return all(ratio.relative_width <= width for ratio in ratios if ratio is not None)


def as_markdown(report: Report, many: int) -> str:
    """The table of targets."""
    lines = ["### Must reach", "", "| | demand | measured | interval | |", "|---|--:|--:|--:|---|"]
    for target in make_targets(many):
        found = target.estimate(report)
        sign = "≥" if target.at_least else "≤"
        measured = f"{number(found.median)} | {interval(found)}" if found else " | "
        result = TEXTS[target.is_reached(report)] if found else "not measured"
        lines.append(f"| {target.text} | {sign} {target.limit:g} | {measured} | {result} |")
    return "\n".join(lines) + "\n"

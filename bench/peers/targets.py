"""Targets for Dockyard, most of them relative to another cache, and whether they are reached."""

import operator
from collections.abc import Callable

import attrs

from bench.peers.report import Report, number

DOCKYARD = "dockyard"
DISTRIBUTION = "distribution"


@attrs.frozen
class Target:
    """One target: `read` returns the number, None if it was not measured; `limit` is its maximum or minimum."""

    text: str
    limit: float
    at_least: bool
    read: Callable[[Report], float | None]

    def is_reached(self, report: Report) -> bool | None:
        value = self.read(report)
        if value is None:
            return None
        return (operator.ge if self.at_least else operator.le)(value, self.limit)


def _at_most(text: str, limit: float, read: Callable[[Report], float | None]) -> Target:
    return Target(text, limit, at_least=False, read=read)


def _at_least(text: str, limit: float, read: Callable[[Report], float | None]) -> Target:
    return Target(text, limit, at_least=True, read=read)


def _number(workload: str, column: str) -> Callable[[Report], float | None]:
    return lambda report: report.median(workload, DOCKYARD, column)


def _ratio(workload: str, column: str, cache: str = DISTRIBUTION) -> Callable[[Report], float | None]:
    return lambda report: report.ratio(workload, column, DOCKYARD, cache)


def make_targets(many: int) -> list[Target]:
    """Return all targets; `many` is the number of clients of the larger load on a warm blob."""
    blobs = [(f"warm-blob-{clients}", f"warm blob, {clients} client{'s' * (clients > 1)}") for clients in (1, many)]
    return [
        *(_at_most(f"{text}: CPU per GiB / distribution's", 0.8, _ratio(key, "CPU s/GiB")) for key, text in blobs),
        *(
            _at_most(f"{text}: CPU per GiB / nginx sendfile's", 1.1, _ratio(key, "CPU s/GiB", "nginx-static"))
            for key, text in blobs
        ),
        *(_at_least(f"{text}: throughput / distribution's", 1.2, _ratio(key, "MiB/s")) for key, text in blobs),
        _at_least(
            "warm manifest by digest: requests/s / distribution's", 1.0, _ratio("warm-manifest-digest", "requests/s")
        ),
        _at_least("the same with S3 behind both", 5.0, _ratio("s3/warm-manifest-digest", "requests/s")),
        _at_most("cold layer, many clients: upstream GETs", 1, _number("cold-layer-slow", "upstream GETs")),
        _at_most(
            "cold layer, many clients: last client done / one direct download",
            1.1,
            _number("cold-layer-slow", "last client / direct"),
        ),
        _at_most(
            "cold layer, many clients: first byte of the median client, ms after the upstream's",
            20,
            _number("cold-layer-slow", "… median client"),
        ),
        _at_most("dead upstream: stale tag after the first, median ms", 5, _number("dead-refuses", "median after ms")),
        _at_most("silent upstream: stale tag after the first, median ms", 5, _number("dead-silent", "median after ms")),
        _at_most("at rest: MiB of a worker", 64, _number("idle", "largest process MiB")),
        _at_most("loaded: MiB of a worker", 200, _number("loaded", "largest process MiB")),
        _at_most("start to first answer, s", 1.5, _number("idle", "first answer s")),
    ]


def as_markdown(report: Report, many: int) -> str:
    """The table of targets."""
    lines = ["### Must reach", "", "| | demand | measured | |", "|---|--:|--:|---|"]
    texts = {True: "reached", False: "**not reached**", None: "not measured"}
    for target in make_targets(many):
        value = target.read(report)
        sign = "≥" if target.at_least else "≤"
        measured = "" if value is None else number(value)
        lines.append(f"| {target.text} | {sign} {target.limit:g} | {measured} | {texts[target.is_reached(report)]} |")
    return "\n".join(lines) + "\n"

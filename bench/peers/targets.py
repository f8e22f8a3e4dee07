"""What Dockyard must reach beside the peers, and whether it did."""

import operator
from collections.abc import Callable

import attrs

from bench.peers.report import Report, number

US = "dockyard"
REGISTRY = "distribution"


@attrs.frozen
class Target:
    """One demand. `read` finds the figure, None when it was not measured; at most `limit`, or at least."""

    text: str
    limit: float
    at_least: bool
    read: Callable[[Report], float | None]

    def is_reached(self, report: Report) -> bool | None:
        figure = self.read(report)
        if figure is None:
            return None
        return (operator.ge if self.at_least else operator.le)(figure, self.limit)


def _at_most(text: str, limit: float, read: Callable[[Report], float | None]) -> Target:
    return Target(text, limit, at_least=False, read=read)


def _at_least(text: str, limit: float, read: Callable[[Report], float | None]) -> Target:
    return Target(text, limit, at_least=True, read=read)


def _ours(workload: str, value: str) -> Callable[[Report], float | None]:
    return lambda report: report.median(workload, US, value)


def _beside(workload: str, value: str, peer: str = REGISTRY) -> Callable[[Report], float | None]:
    return lambda report: report.ratio(workload, value, US, peer)


def every(herd: int) -> list[Target]:
    """All demands; `herd` is the number of clients of the larger warm blob load."""
    blobs = [(f"warm-blob-{clients}", f"warm blob, {clients} client{'s' * (clients > 1)}") for clients in (1, herd)]
    return [
        *(_at_most(f"{text}: CPU per GiB / distribution's", 0.8, _beside(key, "CPU s/GiB")) for key, text in blobs),
        *(
            _at_most(f"{text}: CPU per GiB / nginx sendfile's", 1.1, _beside(key, "CPU s/GiB", "nginx-static"))
            for key, text in blobs
        ),
        *(_at_least(f"{text}: throughput / distribution's", 1.2, _beside(key, "MiB/s")) for key, text in blobs),
        _at_least(
            "warm manifest by digest: requests/s / distribution's", 1.0, _beside("warm-manifest-digest", "requests/s")
        ),
        _at_least("the same with S3 behind both", 5.0, _beside("s3/warm-manifest-digest", "requests/s")),
        _at_most("cold layer, many clients: upstream GETs", 1, _ours("cold-layer-slow", "upstream GETs")),
        _at_most(
            "cold layer, many clients: last client done / one direct download",
            1.1,
            _ours("cold-layer-slow", "last client / direct"),
        ),
        _at_most(
            "cold layer, many clients: first byte of the median client, ms after the upstream's",
            20,
            _ours("cold-layer-slow", "… median client"),
        ),
        _at_most("dead upstream: stale tag after the first, median ms", 5, _ours("dead-refuses", "median after ms")),
        _at_most("silent upstream: stale tag after the first, median ms", 5, _ours("dead-silent", "median after ms")),
        _at_most("at rest: MiB of a worker", 64, _ours("idle", "largest process MiB")),
        _at_most("loaded: MiB of a worker", 200, _ours("loaded", "largest process MiB")),
        _at_most("start to first answer, s", 1.5, _ours("idle", "first answer s")),
    ]


def as_markdown(report: Report, herd: int) -> str:
    """The table of demands."""
    lines = ["### Must reach", "", "| | demand | measured | |", "|---|--:|--:|---|"]
    words = {True: "reached", False: "**not reached**", None: "not measured"}
    for target in every(herd):
        figure = target.read(report)
        sign = "≥" if target.at_least else "≤"
        measured = "" if figure is None else number(figure)
        lines.append(f"| {target.text} | {sign} {target.limit:g} | {measured} | {words[target.is_reached(report)]} |")
    return "\n".join(lines) + "\n"

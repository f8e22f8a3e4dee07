"""The summary table: the most important numbers, with a column for each cache."""

from bench.peers.report import BOUNDS, CUT, Report, number

CACHES = ("dockyard", "distribution", "docker-registry", "zot", "nginx-cache", "nginx-static")
LINES = (
    ("warm blob, 1 client: MiB/s", "warm-blob-1", "MiB/s"),
    ("… CPU s/GiB", "warm-blob-1", "CPU s/GiB"),
    ("warm blob, 64 clients: MiB/s", "warm-blob-64", "MiB/s"),
    ("… CPU s/GiB", "warm-blob-64", "CPU s/GiB"),
    ("warm manifest by digest: requests/s", "warm-manifest-digest", "requests/s"),
    ("… by tag", "warm-manifest-tag", "requests/s"),
    ("… by digest, S3 behind", "s3/warm-manifest-digest", "requests/s"),
    ("cold layer, many clients, slow line: upstream GETs", "cold-layer-slow", "upstream GETs"),
    ("… last client done, in direct downloads", "cold-layer-slow", "last client / direct"),
    ("… the same on a fast line, s", "cold-layer-fast", "last client s"),
    ("many distinct cold layers: all done, s", "cold-distinct", "last client s"),
    ("image by crane, cold: s", "image", "cold s"),
    ("… warm: s", "image", "warm s"),
    ("upstream silent: tags served", "dead-silent", "served"),
    ("memory at rest: MiB", "idle", "resident MiB"),
    ("… many clients on a large cold layer: MiB", "loaded", "peak MiB"),
    ("start to first answer: s", "idle", "first answer s"),
)


def as_markdown(report: Report) -> str:
    """Medians, with a line for each number that was measured."""
    caches = [cache for cache in CACHES if any(cache in by_cache for by_cache in report.samples.values())]
    lines = [f"| | {' | '.join(caches)} |", "|---" + "|--:" * len(caches) + "|"]
    for text, workload, column in LINES:
        if workload in report.samples:
            cells = [_cell(report, workload, cache, column) for cache in caches]
            lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(report: Report, workload: str, cache: str, column: str) -> str:
    value = report.median(workload, cache, column)
    if value is None:
        return ""
    if column == "served":
        return "yes" if value else "no"
    bound = "> " if column in BOUNDS and report.median(workload, cache, CUT) else ""
    return bound + number(value)

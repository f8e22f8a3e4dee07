"""The summary table: the most important numbers, with a column for each cache, and the ratio to one of them."""

from bench.peers.caches import CACHE_NAMES, DOCKYARD
from bench.peers.intervals import CONFIDENCE
from bench.peers.report import BOUNDS, CUT, Report, interval, number

REFERENCE = "distribution"
LINES = (
    ("warm blob, 1 client, new connections: MiB/s", "warm-blob-1", "MiB/s"),
    ("… CPU s/GiB", "warm-blob-1", "CPU s/GiB"),
    ("… reused connection: CPU s/GiB", "warm-blob-reused-1", "CPU s/GiB"),
    ("… TLS: CPU s/GiB", "warm-blob-tls-1", "CPU s/GiB"),
    ("warm blob, 64 clients, new connections: MiB/s", "warm-blob-64", "MiB/s"),
    ("… CPU s/GiB", "warm-blob-64", "CPU s/GiB"),
    ("… reused connections: CPU s/GiB", "warm-blob-reused-64", "CPU s/GiB"),
    ("… TLS: CPU s/GiB", "warm-blob-tls-64", "CPU s/GiB"),
    ("… behind HAProxy: CPU s/GiB", "warm-blob-haproxy-64", "CPU s/GiB"),
    ("… behind nginx: CPU s/GiB", "warm-blob-nginx-64", "CPU s/GiB"),
    ("warm blobs of 1 KiB: requests/s", "warm-small-1k", "requests/s"),
    ("… of 64 KiB", "warm-small-64k", "requests/s"),
    ("… of 1 MiB", "warm-small-1m", "requests/s"),
    ("warm manifest by digest: requests/s", "warm-manifest-digest", "requests/s"),
    ("… by tag", "warm-manifest-tag", "requests/s"),
    ("… by tag, check_interval: 10s in Dockyard", "warm-manifest-tag-interval", "requests/s"),
    ("… by digest, S3 behind", "s3/warm-manifest-digest", "requests/s"),
    ("HEAD of manifests by digest: requests/s", "warm-head-manifest", "requests/s"),
    ("… of blobs", "warm-head-blob", "requests/s"),
    ("cold layer, 1 client: first byte, ms after the upstream's", "cold-layer-1", "… median client"),
    ("… CPU s/GiB", "cold-layer-1", "CPU s/GiB"),
    ("cold layer, many clients, slow line: upstream GETs", "cold-layer-slow", "upstream GETs"),
    ("… last client done, in direct downloads", "cold-layer-slow", "last client / direct"),
    ("… the same on a fast line, s", "cold-layer-fast", "last client s"),
    ("many distinct cold layers: all done, s", "cold-distinct", "last client s"),
    ("image by crane, cold: s", "image", "cold s"),
    ("… warm: s", "image", "warm s"),
    ("image by containerd, cold: s", "image-containerd", "cold s"),
    ("… warm: s", "image-containerd", "warm s"),
    ("image by skopeo, cold: s", "image-skopeo", "cold s"),
    ("… warm: s", "image-skopeo", "warm s"),
    ("upstream silent: tags served", "dead-silent", "served"),
    ("memory at rest: private MiB", "idle", "private MiB"),
    ("… resident MiB", "idle", "resident MiB"),
    ("… many clients on a large cold layer: MiB", "loaded", "peak MiB"),
    ("start to first answer: s", "idle", "first answer s"),
)


def as_markdown(report: Report) -> str:
    """Medians, with a line for each number that was measured."""
    caches = [cache for cache in CACHE_NAMES if any(cache in by_cache for by_cache in report.samples.values())]
    last = f"{DOCKYARD} / {REFERENCE}, {CONFIDENCE:.0%} interval"
    lines = [f"| | {' | '.join(caches)} | {last} |", "|---" + "|--:" * (len(caches) + 1) + "|"]
    for text, workload, column in LINES:
        if workload in report.samples:
            cells = [_cell(report, workload, cache, column) for cache in caches]
            lines.append(f"| {text} | {' | '.join(cells)} | {_ratio(report, workload, column)} |")
    return "\n".join(lines) + "\n"


def _cell(report: Report, workload: str, cache: str, column: str) -> str:
    value = report.median(workload, cache, column)
    if value is None:
        return ""
    if column == "served":
        return "yes" if value else "no"
    bound = "> " if column in BOUNDS and report.median(workload, cache, CUT) else ""
    return bound + number(value)


def _ratio(report: Report, workload: str, column: str) -> str:
    ratio = report.ratio(workload, column, DOCKYARD, REFERENCE)
    if ratio is None or column == "served":
        return ""
    return f"{interval(ratio)}" if ratio.interval else "undecided"

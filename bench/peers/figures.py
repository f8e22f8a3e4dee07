"""The figures, with intervals: throughput and CPU of warm content, cold layers, images, memory."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

from bench.peers.report import Report

COLOURS = {
    "dockyard": "#0b6e99",
    "distribution": "#d9730d",
    "docker-registry": "#dfab01",
    "zot": "#6940a5",
    "nginx-cache": "#8a8f98",
    "nginx-static": "#c3c7cd",
}
WARM = (
    ("warm-blob-1", "MiB/s", "warm blob, 1 client\nMiB/s (more is better)"),
    ("warm-blob-64", "MiB/s", "warm blob, 64 clients\nMiB/s (more is better)"),
    ("warm-manifest-digest", "requests/s", "warm manifest by digest\nrequests/s (more is better)"),
    ("warm-blob-1", "CPU s/GiB", "1 client, new connections\nCPU s/GiB (less is better)"),
    ("warm-blob-64", "CPU s/GiB", "64 clients, new connections\nCPU s/GiB (less is better)"),
    ("s3/warm-manifest-digest", "requests/s", "manifest by digest, S3 behind\nrequests/s (more is better)"),
    ("warm-blob-reused-1", "CPU s/GiB", "1 client, reused connection\nCPU s/GiB (less is better)"),
    ("warm-blob-reused-64", "CPU s/GiB", "64 clients, reused connections\nCPU s/GiB (less is better)"),
    ("warm-manifest-tag-interval", "requests/s", "manifest by tag, check_interval 10 s\nrequests/s (more is better)"),
    ("warm-blob-tls-1", "CPU s/GiB", "1 client, TLS\nCPU s/GiB (less is better)"),
    ("warm-blob-tls-64", "CPU s/GiB", "64 clients, TLS\nCPU s/GiB (less is better)"),
    ("warm-head-manifest", "requests/s", "HEAD of manifests\nrequests/s (more is better)"),
    ("warm-blob-haproxy-64", "CPU s/GiB", "64 clients, behind HAProxy\nCPU s/GiB (less is better)"),
    ("warm-blob-nginx-64", "CPU s/GiB", "64 clients, behind nginx\nCPU s/GiB (less is better)"),
    ("warm-small-64k", "requests/s", "blobs of 64 KiB\nrequests/s (more is better)"),
)
COLD = (
    ("cold-layer-slow", "upstream GETs", "cold layer, slow line, 200 clients\nupstream GETs (less is better)"),
    ("cold-layer-slow", "last client s", "the same: last client done\nseconds (less is better)"),
    ("cold-layer-fast", "last client s", "the same on a fast line\nseconds (less is better)"),
    ("cold-layer-1", "… median client", "cold layer, 1 client: first byte\nms after the upstream's (less is better)"),
    ("cold-layer-1", "CPU s/GiB", "cold layer, 1 client\nCPU s/GiB (less is better)"),
    ("cold-distinct", "last client s", "100 distinct cold layers\nseconds (less is better)"),
    ("image", "cold s", "image by crane, cold\nseconds (less is better)"),
    ("image-containerd", "cold s", "image by containerd, cold\nseconds (less is better)"),
    ("image-skopeo", "cold s", "image by skopeo, cold\nseconds (less is better)"),
    ("image", "warm s", "image by crane, warm\nseconds (less is better)"),
    ("idle", "private MiB", "at rest\nprivate MiB (less is better)"),
    ("loaded", "peak MiB", "200 clients, large cold layer\npeak MiB (less is better)"),
)


def draw(report: Report, out: Path) -> list[Path]:
    """Draw both figures; return their files."""
    mpl.use("Agg")
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    return [_draw(report, out / "warm.png", WARM), _draw(report, out / "cold.png", COLD)]


def _draw(report: Report, file: Path, wanted: tuple[tuple[str, str, str], ...]) -> Path:
    panels = [each for each in wanted if report.samples.get(each[0])]
    rows = max(1, -(-len(panels) // 3))
    figure, axes = plt.subplots(rows, 3, figsize=(11, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (workload, value, title) in zip(axes.flat, panels, strict=False):
        medians = {cache: report.median(workload, cache, value) for cache in COLOURS}
        shown = {cache: median for cache, median in medians.items() if median is not None}
        bars = axis.barh(
            list(shown),
            list(shown.values()),
            color=[COLOURS[cache] for cache in shown],
            xerr=_errors(report, workload, value, shown),
            error_kw={"ecolor": "#444444", "elinewidth": 0.8, "capsize": 2},
        )
        cut = {cache for cache in shown if value == "last client s" and report.median(workload, cache, "cut")}
        labels = [f"{'> ' if cache in cut else ''}{median:,.3g}" for cache, median in shown.items()]
        axis.bar_label(bars, [_plain(label) for label in labels], padding=3)
        axis.margins(x=0.2)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9, loc="left")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def _errors(report: Report, workload: str, value: str, shown: Mapping[str, float]) -> list[list[float]]:
    """The distances of the intervals from the medians; 0 where there is no interval."""
    low, high = [], []
    for cache, median in shown.items():
        found = report.value(workload, cache, value)
        interval = found.interval if found is not None and found.interval is not None else (median, median)
        low.append(median - interval[0])
        high.append(interval[1] - median)
    return [low, high]


def _plain(label: str) -> str:
    """`1.23e+03` as `1,230`."""
    if "e" not in label:
        return label
    bound, _, figure = label.rpartition(" ")
    return f"{bound} {float(figure):,.0f}".strip()

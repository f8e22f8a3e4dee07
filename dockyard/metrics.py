"""The metrics of all packages.

Each process writes its values to files in the directory PROMETHEUS_MULTIPROC_DIR; the process that renders `/metrics`
adds them up. The variable must be set before this module is imported; without it, a process has its own values only.
No label has a value that a client can choose.
"""

import functools
import os
from collections.abc import Iterable, Iterator, Mapping

import attrs
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

requests = Counter(
    "dockyard_requests",
    "Requests from clients, by kind, status and how the response was found.",
    ["kind", "status", "how"],
)
request_seconds = Histogram(
    "dockyard_request_seconds",
    "Time from the start of a request to the end of its response.",
    ["kind"],
    buckets=_SECONDS,
)
sent_bytes = Counter("dockyard_sent_bytes", "Bytes of response bodies sent to clients.", ["kind"])
cut_responses = Counter("dockyard_cut_responses", "Responses that were not sent completely, by reason.", ["reason"])
received_bytes = Counter("dockyard_received_bytes", "Bytes of blobs received, by source.", ["source"])

fills_running = Gauge("dockyard_fills_running", "Running downloads.", multiprocess_mode="livesum")
fills = Counter("dockyard_fills", "Downloads that ended, by outcome: done, or the error.", ["outcome"])
fills_joined = Counter("dockyard_fills_joined", "Requests that joined a running download.")
fills_resumed = Counter("dockyard_fills_resumed", "Downloads that were resumed at the byte reached.")
unverified_bytes = Counter(
    "dockyard_unverified_bytes",
    "Bytes of ranges that were sent before their blob was verified, by upstreams with `lazy`.",
)
wrong_ranges = Counter(
    "dockyard_wrong_ranges", "Blobs of which ranges were sent before they were verified, and which had a wrong digest."
)
overflows = Counter("dockyard_overflows", "Downloads that continued in memory because the disk was full.")

stale = Counter("dockyard_stale", "Tags and lists served stale, by upstream and reason.", ["upstream", "reason"])
upstream_seconds = Histogram(
    "dockyard_upstream_seconds",
    "Duration of requests to upstreams.",
    ["upstream", "operation"],
    buckets=_SECONDS,
)
upstream_failures = Counter("dockyard_upstream_failures", "Requests to upstreams that failed.", ["upstream", "reason"])
upstream_untrusted = Counter(
    "dockyard_upstream_untrusted",
    "Connections to upstreams that were refused for security, by reason: tls, place, secret.",
    ["upstream", "wrong"],
)
ratelimit_limit = Gauge(
    "dockyard_upstream_ratelimit_limit",
    "Rate limit of the upstream, in pulls.",
    ["upstream"],
    multiprocess_mode="mostrecent",
)
ratelimit_remaining = Gauge(
    "dockyard_upstream_ratelimit_remaining",
    "Pulls left under the rate limit of the upstream.",
    ["upstream"],
    multiprocess_mode="mostrecent",
)

verified_bytes = Counter(
    "dockyard_verified_bytes",
    "Bytes of blobs in the local store that were hashed to verify them, by reason: use, scrub.",
    ["reason"],
)
damaged_files = Counter(
    "dockyard_damaged_files", "Files of the local store that are damaged or cannot be read, by kind.", ["kind"]
)
evicted_bytes = Counter("dockyard_evicted_bytes", "Bytes evicted from the local store.")
evicted_unpublished = Counter(
    "dockyard_evicted_unpublished", "Objects evicted from the local store before the bucket had them."
)
published = Counter("dockyard_published", "Objects uploaded to the bucket, by outcome (done, failed).", ["outcome"])
touched = Counter("dockyard_touched", "Objects in the bucket whose LastModified was renewed.")
bucket_faults = Counter("dockyard_bucket_faults", "Requests to the bucket that failed.")
log_lines_dropped = Counter(
    "dockyard_log_lines_dropped", "Log lines that were dropped because the output did not take them."
)
audit_lines_dropped = Counter(
    "dockyard_audit_lines_dropped", "Lines of the audit log that were dropped because the output did not take them."
)
access_decisions = Counter(
    "dockyard_access_decisions",
    "Decisions about access, by verdict and by what has decided: rules[N], default, none, login, upstream or links.",
    ["verdict", "rule"],
)
worker_restarts = Counter("dockyard_worker_restarts", "Workers that were restarted after they died or froze.")


def count_request(kind: str, status: int, how: str, seconds: float, size: int) -> None:
    """Count a request that has ended: its duration, and the bytes of its body that were sent."""
    request_counter, seconds_histogram, bytes_counter = _request_counters(kind, status, how)
    request_counter.inc()
    seconds_histogram.observe(seconds)
    if size:
        bytes_counter.inc(size)


@functools.cache
def _request_counters(kind: str, status: int, how: str) -> tuple[Counter, Histogram, Counter]:
    return requests.labels(kind, str(status), how), request_seconds.labels(kind), sent_bytes.labels(kind)


def count_decision(verdict: str, rule: str) -> None:
    """Count a decision about access."""
    _decision_counter(verdict, rule).inc()


@functools.cache
def _decision_counter(verdict: str, rule: str) -> Counter:
    return access_decisions.labels(verdict, rule)


def forget_worker(pid: int) -> None:
    """Remove the gauges of running work of a dead worker."""
    if DIRECTORY_VARIABLE in os.environ:
        multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]


@attrs.frozen
class MeasuredGauge:
    """A gauge that is measured when the metrics are rendered: `values` by upstream, or a single one under ""."""

    name: str
    documentation: str
    values: Mapping[str, float]


def render(gauges: Iterable[MeasuredGauge]) -> bytes:
    """Return the metrics of all processes and these gauges in the Prometheus text format."""
    counts = CollectorRegistry()
    multiprocess.MultiProcessCollector(counts)  # type: ignore[no-untyped-call]
    counts.register(_GaugeCollector(gauges))
    return generate_latest(counts)


class _GaugeCollector(Collector):
    def __init__(self, gauges: Iterable[MeasuredGauge]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        for gauge in self._gauges:
            labels = [] if "" in gauge.values else ["upstream"]
            family = GaugeMetricFamily(gauge.name, gauge.documentation, labels=labels)
            for upstream, value in gauge.values.items():
                family.add_metric([upstream] if upstream else [], value)
            yield family

"""The page of the results: the summary, the targets, and a table for each workload."""

from bench.peers import report, summary, targets
from bench.peers.report import Report
from bench.peers.workload import Sizes


def as_markdown(results: Report, many: int = Sizes().concurrent_clients) -> str:
    """All tables; `many` is the number of clients of the larger load on a warm blob."""
    return "\n".join([summary.as_markdown(results), targets.as_markdown(results, many), report.as_markdown(results)])

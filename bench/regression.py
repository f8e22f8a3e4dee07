"""Compare the speed of two commits of Dockyard on this machine.

    python -m bench.regression COMMIT              the files of this checkout beside COMMIT
    python -m bench.regression COMMIT OTHER        OTHER beside COMMIT

The commits are checked out into a temporary directory. Both run in the same rounds, one after the other, so that what
else the machine does affects both. Each number is the median of the ratios of all rounds, with its interval. It has
become worse if the whole interval is, and by more than the tolerance; then the exit status is 1. The default takes
about ten minutes.
"""

import contextlib
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import click
from rich.console import Console

from bench.peers import setup
from bench.peers.caches import BASELINE, DOCKYARD
from bench.peers.intervals import Estimate
from bench.peers.measuring import Rounds, keep_runnable, measure
from bench.peers.programs import Programs
from bench.peers.report import Report, interval, number
from bench.peers.workload import QUICK, Sizes
from bench.peers.workloads.catalog import make_workloads
from tests.support.paths import ROOT

CONFIDENCE = 0.98  # of each number: higher than in the tables, because many are compared
DEFAULT_ROUNDS = 7  # the fewest that have such an interval
DEFAULT_TOLERANCE = 0.03
DEFAULT_WORKLOADS = (
    "warm-blob-1",
    "warm-blob-64",
    "warm-blob-reused-1",
    "warm-blob-reused-64",
    "warm-small-64k",
    "warm-manifest-digest",
    "warm-manifest-tag",
    "warm-head-blob",
    "cold-layer-1",
    "cold-distinct",
    "idle",
    "warm-blob-tls-64",
)
LOWER_IS_BETTER = frozenset(
    {
        "CPU s/GiB",
        "CPU us/request",
        "… median client",
        "last client s",
        "peak MiB",
        "private MiB",
        "first answer s",
        "upstream GETs",
        "upstream requests per 1000",
    }
)
HIGHER_IS_BETTER = frozenset({"MiB/s", "requests/s"})


@attrs.frozen
class Comparison:
    """One number of both commits; `ratio` is larger than 1 if it has become worse."""

    workload: str
    column: str
    before: float
    after: float
    ratio: Estimate

    def is_worse(self, tolerance: float) -> bool:
        return self.ratio.interval is not None and self.ratio.interval[0] > 1 + tolerance

    def is_better(self, tolerance: float) -> bool:
        return self.ratio.interval is not None and self.ratio.interval[1] < 1 - tolerance


def compare(results: Report) -> list[Comparison]:
    """Return the comparisons of all numbers of which it is known whether more or less is better."""
    found = []
    for workload in results.samples:
        for column in results.columns(workload):
            if column in LOWER_IS_BETTER:
                ratio = results.ratio(workload, column, DOCKYARD, BASELINE, CONFIDENCE)
            elif column in HIGHER_IS_BETTER:
                ratio = results.ratio(workload, column, BASELINE, DOCKYARD, CONFIDENCE)
            else:
                continue
            before, after = (results.median(workload, cache, column) for cache in (BASELINE, DOCKYARD))
            if ratio is not None and before is not None and after is not None:
                found.append(Comparison(workload, column, before, after, ratio))
    return found


def as_text(comparisons: list[Comparison], tolerance: float) -> str:
    """A line for each number: before, after, how many times as much or as little it is now, and the interval."""
    lines = []
    for each in comparisons:
        mark = "WORSE" if each.is_worse(tolerance) else "better" if each.is_better(tolerance) else ""
        numbers = f"{number(each.before):>10}{number(each.after):>10}"
        ratio = f"{each.ratio.median:.2f} ({interval(each.ratio)}) {mark}"
        lines.append(f"{each.workload:24}{each.column:28}{numbers}  {ratio}".rstrip())
    head = f"{'workload':24}{'number':28}{'before':>10}{'after':>10}  worse by the factor (interval)"
    return "\n".join([head, *lines])


@contextlib.contextmanager
def checkout(repository: Path, commit: str) -> Iterator[Path]:
    """Check out a commit into a temporary directory. Raises click.UsageError if there is no such commit."""
    with tempfile.TemporaryDirectory(prefix="dockyard-commit-") as parent:
        tree = Path(parent) / "tree"
        _git(repository, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            yield tree
        finally:
            _git(repository, "worktree", "remove", "--force", str(tree))


def _git(repository: Path, *words: str) -> None:
    done = subprocess.run(["git", "-C", repository, *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise click.UsageError(f"git {' '.join(words)}: {done.stderr.strip()}")


@click.command()
@click.argument("commit")
@click.argument("other", default="")
@click.option("--workloads", default=",".join(DEFAULT_WORKLOADS), show_default=True, help="Names of workloads.")
@click.option("--rounds", type=click.IntRange(min=1), default=DEFAULT_ROUNDS, show_default=True)
@click.option("--full", is_flag=True, help="Use the sizes of the published numbers; takes three times as long.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=DEFAULT_TOLERANCE,
    show_default=True,
    help="What is worse by less than this part is not reported.",
)
def main(commit: str, other: str, workloads: str, rounds: int, full: bool, tolerance: float) -> None:  # noqa: FBT001
    """Compare this checkout, or the commit OTHER, with COMMIT. Exit status: 1 if a number has become worse."""
    results = run(commit, other, workloads.split(","), Rounds(rounds), Sizes() if full else QUICK)
    comparisons = compare(results)
    click.echo(as_text(comparisons, tolerance))
    worse = [each for each in comparisons if each.is_worse(tolerance)]
    if any(each.ratio.interval is None for each in comparisons):
        click.echo(f"no intervals: fewer than {DEFAULT_ROUNDS} rounds", err=True)
    click.echo(f"{len(worse)} of {len(comparisons)} numbers are worse by more than {tolerance:.0%}")
    if worse or results.failures:
        raise SystemExit(1)


def run(commit: str, other: str, keys: list[str], rounds: Rounds, sizes: Sizes) -> Report:
    """Measure both commits; an empty `other` is this checkout."""
    console, programs, results = Console(stderr=True), Programs(), Report()
    workloads = [each for each in make_workloads(sizes) if each.key in keys]
    unknown = set(keys) - {each.key for each in workloads}
    if unknown:
        raise click.UsageError(f"unknown workloads: {', '.join(sorted(unknown))}")
    workloads = keep_runnable(workloads, programs, results, console)
    with contextlib.ExitStack() as stack:
        trees = {BASELINE: stack.enter_context(checkout(ROOT, commit))}
        if other:
            trees[DOCKYARD] = stack.enter_context(checkout(ROOT, other))
        out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dockyard-regression-")))
        started = stack.enter_context(setup.start((DOCKYARD, BASELINE), sizes, programs, None, "local", trees))
        measure(started, "local", workloads, rounds, results, console, out)
    return results


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that processes are stopped and checkouts removed
    main()

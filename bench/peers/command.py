"""The command `python -m bench.peers`: runs workloads against caches, and writes tables, figures and targets."""

import signal
from pathlib import Path

import attrs
import click
from rich.console import Console

from bench.peers import figures, machine, page, readme, report, setup
from bench.peers.caches import BASELINE, CACHE_NAMES
from bench.peers.measuring import Rounds, keep_runnable, measure
from bench.peers.programs import Programs
from bench.peers.report import Report
from bench.peers.workload import MIB, QUICK, Link, Sizes
from bench.peers.workloads.catalog import make_workloads

STORES = ("local", "s3")
DEFAULT_ROUNDS = 5  # the fewest that have an interval
MAX_ROUNDS = 15


@click.command()
@click.option(
    "--peers",
    "cache_names",
    default=",".join(CACHE_NAMES),
    show_default=True,
    help="Caches to measure, separated by commas.",
)
@click.option(
    "--workloads", default="", help="Workloads to run, or prefixes of their names, separated by commas. Default: all."
)
@click.option("--stores", default=",".join(STORES), show_default=True, help="Stores to measure the caches with.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=None,
    help=f"Number of rounds. Default: {DEFAULT_ROUNDS}, with --quick 1, which has no intervals.",
)
@click.option(
    "--precision",
    type=click.FloatRange(min=0),
    default=None,
    help="More rounds, until the intervals of a workload's ratios in the targets are not wider than this part of the "
    "ratios, such as 0.1.",
)
@click.option(
    "--max-rounds",
    type=click.IntRange(min=1),
    default=MAX_ROUNDS,
    show_default=True,
    help="Maximum number of rounds with --precision.",
)
@click.option("--quick", is_flag=True, help="Use small sizes.")
@click.option("--keep", is_flag=True, help="Keep the results in --out of workloads that are not run.")
@click.option("--clients", type=click.IntRange(min=2), default=None, help="Clients of one cold layer. Default: 200.")
@click.option("--layer", type=click.IntRange(min=2), default=None, help="MiB of the cold layer on the slow line.")
@click.option("--delay", type=float, default=None, help="Delay in milliseconds of each response of the upstream.")
@click.option("--bandwidth", type=float, default=None, help="Bandwidth of the slow line in MiB/s.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("bench/results"),
    show_default=True,
    help="Directory for the results.",
)
@click.option("--publish", is_flag=True, help="Write the results to bench/published and their summary to README.md.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
    help="Directory for the data of the caches.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="A checkout of another commit of Dockyard: measured too, and the reference of all ratios.",
)
@click.option("--list", "only_list", is_flag=True, help="List the workloads.")
def main(
    cache_names: str,
    workloads: str,
    stores: str,
    rounds: int | None,
    precision: float | None,
    max_rounds: int,
    quick: bool,  # noqa: FBT001 - click passes by name
    keep: bool,  # noqa: FBT001
    clients: int | None,
    layer: int | None,
    delay: float | None,
    bandwidth: float | None,
    out: Path,
    publish: bool,  # noqa: FBT001
    directory: Path | None,
    baseline: Path | None,
    only_list: bool,  # noqa: FBT001
) -> None:
    """Measure Dockyard and other caches on this machine, in alternating runs.

    Exit status: 1 if a response was wrong or incomplete.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that processes are stopped
    sizes = _with_options(QUICK if quick else Sizes(), clients, layer, delay, bandwidth)
    prefixes = [prefix for prefix in workloads.split(",") if prefix]
    chosen = [
        each
        for each in make_workloads(sizes)
        if not prefixes or any(each.key.startswith(prefix) for prefix in prefixes)
    ]
    if only_list or not chosen:
        for each in make_workloads(sizes):
            click.echo(f"{each.key:28}{each.title}")
        raise SystemExit(0 if only_list else 2)
    out = readme.PUBLISHED if publish else out
    results = report.load(out) if keep else Report()
    results.machine |= machine.describe()
    console = Console(stderr=True)
    programs = Programs()
    chosen = keep_runnable(chosen, programs, results, console)
    trees = {BASELINE: baseline} if baseline else {}
    plan = Rounds(rounds or (1 if quick else DEFAULT_ROUNDS), max_rounds, precision)
    for kind in stores.split(","):
        wanted = [*cache_names.split(","), *trees]
        names = [name for name in wanted if kind == "local" or name in setup.WITH_STORE]
        # New objects, because a workload records which caches are warm.
        keys = {each.key for each in chosen if kind == "local" or each.has_store}
        selected = [each for each in make_workloads(sizes) if each.key in keys]
        if not selected:
            continue
        with setup.start(names, sizes, programs, directory, kind, trees) as started:
            measure(started, kind, selected, plan, results, console, out)
    text = page.as_markdown(results, sizes.concurrent_clients)
    (out / readme.PAGE).write_text(text)
    files = figures.draw(results, out)
    if publish:
        readme.write()
    click.echo(text)
    console.print(f"written: {out / report.FILE}, {out / readme.PAGE}, {', '.join(str(file) for file in files)}")
    if results.failures:
        raise SystemExit(1)


def _with_options(
    sizes: Sizes, clients: int | None, layer: int | None, delay: float | None, bandwidth: float | None
) -> Sizes:
    delay_s = sizes.slow.delay_s if delay is None else delay / 1e3
    slow = Link(delay_s, sizes.slow.bytes_per_s if bandwidth is None else bandwidth * MIB)
    return attrs.evolve(
        sizes,
        cold_clients=clients or sizes.cold_clients,
        cold_slow_bytes=layer * MIB if layer else sizes.cold_slow_bytes,
        slow=slow,
        usual=attrs.evolve(sizes.usual, delay_s=delay_s),
        fast=attrs.evolve(sizes.fast, delay_s=delay_s),
    )

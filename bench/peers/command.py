"""The command `python -m bench.peers`: runs workloads against caches, and writes tables, figures and targets."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.peers import figures, machine, report, setup, summary, targets
from bench.peers.caches import BASELINE, CACHE_NAMES
from bench.peers.content import REPOSITORY
from bench.peers.load import LoadError, discard, wrk
from bench.peers.programs import Programs
from bench.peers.report import Report
from bench.peers.setup import Setup
from bench.peers.workload import GIB, MIB, QUICK, Environment, Link, Sizes, Workload
from bench.peers.workloads.catalog import make_workloads

STORES = ("local", "s3")
UPSTREAM_BYTES = 256 * MIB
UPSTREAM_TIMES = 4


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
    "--rounds", type=click.IntRange(min=1), default=None, help="Number of rounds. Default: 3, with --quick 1."
)
@click.option("--quick", is_flag=True, help="Use small sizes; takes about five minutes.")
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
@click.option("--directory", type=click.Path(path_type=Path), help="Directory for the data of the caches.")
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
    quick: bool,  # noqa: FBT001 - click passes by name
    keep: bool,  # noqa: FBT001
    clients: int | None,
    layer: int | None,
    delay: float | None,
    bandwidth: float | None,
    out: Path,
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
            click.echo(f"{each.key:22}{each.title}")
        raise SystemExit(0 if only_list else 2)
    results = report.load(out) if keep else Report()
    results.machine |= machine.describe()
    console = Console(stderr=True)
    programs = Programs()
    chosen = _with_programs(chosen, programs, results, console)
    trees = {BASELINE: baseline} if baseline else {}
    for kind in stores.split(","):
        wanted = [*cache_names.split(","), *([BASELINE] if baseline else [])]
        names = [name for name in wanted if kind == "local" or name in setup.WITH_STORE]
        # New objects, because a workload records which caches are warm.
        keys = {each.key for each in chosen if kind == "local" or each.has_store}
        selected = [each for each in make_workloads(sizes) if each.key in keys]
        if not selected:
            continue
        with setup.start(names, sizes, programs, directory, kind, trees) as started:
            _measure(started, kind, selected, rounds or (1 if quick else 3), results, console, out)
    text = "\n".join(
        [
            summary.as_markdown(results),
            targets.as_markdown(results, sizes.concurrent_clients),
            report.as_markdown(results),
        ]
    )
    (out / "peers.md").write_text(text)
    files = figures.draw(results, out)
    click.echo(text)
    console.print(f"written: {out / report.FILE}, {out / 'peers.md'}, {', '.join(str(file) for file in files)}")
    if results.failures:
        raise SystemExit(1)


def _with_programs(
    workloads: Sequence[Workload], programs: Programs, results: Report, console: Console
) -> list[Workload]:
    """Find or build all programs before anything is measured. A workload whose program is missing is left out."""
    found = []
    for workload in workloads:
        reasons = [programs.find(name).reason for name in workload.programs if programs.find(name).path is None]
        if reasons:
            results.missing[workload.key] = "; ".join(reasons)
            console.print(f"{workload.key} is not measured: {reasons[0]}", style="yellow")
        else:
            results.missing.pop(workload.key, None)
            found.append(workload)
    return found


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


def _measure(
    started: Setup, kind: str, workloads: Sequence[Workload], rounds: int, results: Report, console: Console, out: Path
) -> None:
    """Run each workload in rounds, and in each round against one cache after the other; in every second in reverse.

    What ran before has an effect on the next run, of about three percent of its CPU time.
    """
    results.missing |= started.missing
    for name, reason in started.missing.items():
        console.print(f"{name} is not measured: {reason}", style="yellow")
    for cache in started.caches:
        results.versions[cache.name] = cache.version
        results.machine["CPU seconds from"] = cache.group.source
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("upstream alone", total=len(workloads) * rounds)

        def show(text: str) -> None:
            progress.update(task, description=text)
            if not console.is_terminal:
                console.print(text)

        if kind == "local":
            results.machine["the upstream alone"] = _measure_upstream(started.environment)
        for workload in workloads:
            key = workload.key if kind == "local" else f"{kind}/{workload.key}"
            results.begin(key, workload.title + ("" if kind == "local" else ", S3 behind the cache"))
            caches = started.caches_for(workload.variant)
            measured = [cache for cache in caches if cache.name not in workload.without]
            for number in range(rounds):
                show(f"{key} · round {number + 1} · preparing")
                try:
                    workload.prepare(started.environment, measured)
                except LoadError as exc:
                    _fail(results, key, "preparation", exc, console)
                    break
                for cache in measured if number % 2 == 0 else reversed(measured):
                    show(f"{key} · round {number + 1} · {cache.name}")
                    _run(
                        results,
                        key,
                        cache.name,
                        lambda workload=workload, cache=cache: workload.run(started.environment, cache),
                        console,
                    )
                progress.advance(task)
            report.write(results, out)


def _run(results: Report, key: str, name: str, run: Callable[[], dict[str, float]], console: Console) -> None:
    before = machine.CpuTicks.now()
    try:
        values = run()
    except LoadError as exc:
        _fail(results, key, name, exc, console)
        return
    results.add(key, name, values | {"steal %": machine.CpuTicks.now().stolen_since(before)})


def _fail(results: Report, key: str, what: str, exc: LoadError, console: Console) -> None:
    results.failures[f"{key} {what}"] = str(exc)
    console.print(f"{key}, {what} failed: {exc}", style="red")


def _measure_upstream(environment: Environment) -> str:
    """The throughput of the upstream without a cache, and the CPU that it takes."""
    blob = environment.content.add_blob(UPSTREAM_BYTES)
    image = environment.content.add_image("ceiling", (1024,))
    path = f"/v2/{REPOSITORY}/blobs/{blob.digest}"
    environment.upstream.set_link()
    texts = []
    for clients in (1, 64):
        times = UPSTREAM_TIMES if clients == 1 else 1
        used_s = environment.upstream.group.cpu_s()
        result = discard(environment.upstream.port, [[(path, blob.size)] * times] * clients, limit_s=5.0)
        used_s = environment.upstream.group.cpu_s() - used_s
        gib = result["received"] / GIB
        text = f"{clients} client{'s' * (clients > 1)} {gib * 1024 / result['wall_s']:,.0f} MiB/s"
        texts.append(f"{text}, CPU {used_s / gib:.2f} s/GiB")
    used_s = environment.upstream.group.cpu_s()
    manifest = f"/v2/{REPOSITORY}/manifests/{image.tag}"
    rate = wrk(environment.programs.need("wrk"), environment.upstream.port, [manifest], 2, 32, environment.directory)
    used_s = environment.upstream.group.cpu_s() - used_s
    texts.append(
        f"manifests {rate.requests / rate.wall_s:,.0f} requests/s, CPU {used_s / rate.requests * 1e6:.0f} us/request"
    )
    return "; ".join(texts)

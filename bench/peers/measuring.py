"""Runs workloads in rounds against the caches, and keeps the numbers of each round."""

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.peers import machine, report, targets
from bench.peers.caches import CacheServer
from bench.peers.content import REPOSITORY
from bench.peers.load import LoadError, discard, wrk
from bench.peers.programs import Programs
from bench.peers.report import Report
from bench.peers.setup import Setup
from bench.peers.workload import GIB, Environment, Values, Workload

UPSTREAM_TIMES = 4


@attrs.frozen
class Rounds:
    """How often a workload is run.

    At least `least` times. With `precision`, until the interval of each of its ratios in the targets is not wider than
    that part of the ratio, and at most `most` times.
    """

    least: int
    most: int = 0
    precision: float | None = None

    def is_enough(self, results: Report, key: str, done: int, many: int) -> bool:
        """Return whether a workload has been run often enough."""
        if done < self.least:
            return False
        if self.precision is None or done >= self.most:
            return True
        return targets.are_precise(results, key, many, self.precision)


def keep_runnable(
    workloads: Sequence[Workload], programs: Programs, results: Report, console: Console
) -> list[Workload]:
    """Find or build all programs before anything is measured. A workload whose program is missing is left out."""
    found = []
    for workload in workloads:
        reasons = [programs.find(name).reason for name in workload.programs if programs.find(name).path is None]
        if workload.needs_root and os.geteuid() != 0:
            reasons.append(f"{workload.programs[0]} works only as root")
        if reasons:
            results.missing[workload.key] = "; ".join(reasons)
            console.print(f"{workload.key} is not measured: {reasons[0]}", style="yellow")
        else:
            results.missing.pop(workload.key, None)
            found.append(workload)
    return found


def measure(
    started: Setup,
    kind: str,
    workloads: Sequence[Workload],
    rounds: Rounds,
    results: Report,
    console: Console,
    out: Path,
) -> None:
    """Run each workload in rounds, and in each round against one cache after the other; in every second in reverse.

    What ran before has an effect on the next run, of about three percent of its CPU time. Raises click.ClickException
    when the disk is almost full: the caches keep what they were asked for.
    """
    results.missing |= started.missing
    for name, reason in started.missing.items():
        console.print(f"{name} is not measured: {reason}", style="yellow")
    for cache in started.caches:
        results.versions[cache.name] = cache.version
        results.machine["CPU seconds from"] = cache.group.source
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("upstream alone", total=len(workloads))

        def show(text: str) -> None:
            progress.update(task, description=text)
            if not console.is_terminal:
                console.print(text)

        if kind == "local":
            results.machine["the upstream alone"] = _measure_upstream(started.environment)
        sizes = started.environment.sizes
        for workload in workloads:
            key = workload.key if kind == "local" else f"{kind}/{workload.key}"
            results.begin(key, workload.title + ("" if kind == "local" else ", S3 behind the cache"))
            caches = [each for each in started.caches_for(workload.variant) if each.name not in workload.without]
            for done in _run_rounds(started.environment, workload, key, caches, results, show):
                report.write(results, out)
                check_free_bytes(started.environment.directory, out, len(caches) * sizes.most_stored_bytes)
                if rounds.is_enough(results, key, done, sizes.concurrent_clients):
                    break
            progress.advance(task)
    for name, reason in results.failures.items():
        console.print(f"{name} failed: {reason}", style="red")


def check_free_bytes(directory: Path, out: Path, needed: int) -> None:
    """Raise click.ClickException if fewer bytes are free than the next round may need."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise click.ClickException(
            f"{directory}: only {free / GIB:.1f} GiB are free, and a round may need {needed / GIB:.1f}. "
            f"Choose another disk with --directory. What was measured is in {out}: go on with --keep --workloads."
        )


def _run_rounds(
    environment: Environment,
    workload: Workload,
    key: str,
    caches: Sequence[CacheServer],
    results: Report,
    show: Callable[[str], None],
) -> Iterator[int]:
    """Run a workload against each cache, again and again; yield the number of rounds so far.

    It ends if the workload cannot be prepared.
    """
    for number in itertools.count():
        show(f"{key} · round {number + 1} · preparing")
        try:
            workload.prepare(environment, caches)
        except LoadError as exc:
            results.failures[f"{key} preparation"] = str(exc)
            return
        for cache in caches if number % 2 == 0 else reversed(caches):
            show(f"{key} · round {number + 1} · {cache.name}")
            before = machine.CpuTicks.now()
            try:
                values: Values = workload.run(environment, cache)
            except LoadError as exc:
                results.failures[f"{key} {cache.name}"] = str(exc)
                continue
            stolen = machine.CpuTicks.now().stolen_since(before)
            results.add(key, cache.name, values | {"steal %": stolen, report.ROUND: number})
        yield number + 1


def _measure_upstream(environment: Environment) -> str:
    """The throughput of the upstream without a cache, and the CPU that it takes."""
    blob = environment.content.add_blob(environment.sizes.warm_bytes)
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
    program = environment.programs.find("wrk").path
    if program is not None:
        path = f"/v2/{REPOSITORY}/manifests/{image.tag}"
        sizes = environment.sizes
        used_s = environment.upstream.group.cpu_s()
        rate = wrk(
            program, environment.upstream.port, [path], sizes.wrk_s, sizes.wrk_connections, environment.directory
        )
        used_s = environment.upstream.group.cpu_s() - used_s
        per_s, each_us = rate.requests / rate.wall_s, used_s / rate.requests * 1e6
        texts.append(f"manifests {per_s:,.0f} requests/s, CPU {each_us:.0f} us/request")
    return "; ".join(texts)

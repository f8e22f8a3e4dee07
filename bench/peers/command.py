"""The command: which peers, which workloads, how often; then the tables, the figures and the targets."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.peers import machine, plots, report, scene, summary, targets
from bench.peers.contestants import MAKERS
from bench.peers.load import LoadError, discard, wrk
from bench.peers.place import GIB, MIB, QUICK, Line, Place, Sizes, Workload
from bench.peers.programs import Programs
from bench.peers.report import Report
from bench.peers.scene import Scene
from bench.peers.truth import REPOSITORY
from bench.peers.workloads.choice import every

STORES = ("local", "s3")
CEILING_BYTES = 256 * MIB
CEILING_TIMES = 4


@click.command()
@click.option("--peers", default=",".join(MAKERS), show_default=True, help="Which, comma separated.")
@click.option(
    "--workloads", default="", help="Which, comma separated; the beginning of a name is enough. Default: all."
)
@click.option("--stores", default=",".join(STORES), show_default=True, help="What is behind the peers.")
@click.option("--rounds", type=click.IntRange(min=1), default=None, help="Default: 3, quick 1.")
@click.option("--quick", is_flag=True, help="Small sizes: a look, in about five minutes.")
@click.option("--keep", is_flag=True, help="Add to what is in --out: other workloads keep their numbers.")
@click.option("--clients", type=click.IntRange(min=2), default=None, help="On one cold layer. Default: 200.")
@click.option("--layer", type=click.IntRange(min=2), default=None, help="MiB of the cold layer on the slow line.")
@click.option("--delay", type=float, default=None, help="Milliseconds before every answer of the upstream.")
@click.option("--bandwidth", type=float, default=None, help="MiB/s of the slow line.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench/results"), show_default=True)
@click.option("--directory", type=click.Path(path_type=Path), help="Where the caches are, for the time of the run.")
@click.option("--list", "only_list", is_flag=True, help="Say which workloads there are.")
def main(
    peers: str,
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
    only_list: bool,  # noqa: FBT001
) -> None:
    """Measure Dockyard and its peers side by side, on this machine, in alternating runs.

    A wrong or short answer fails the run: exit status 1.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whatever ends it ends what it started
    sizes = _sized(QUICK if quick else Sizes(), clients, layer, delay, bandwidth)
    wanted = [word for word in workloads.split(",") if word]
    chosen = [each for each in every(sizes) if not wanted or any(each.key.startswith(word) for word in wanted)]
    if only_list or not chosen:
        for each in every(sizes):
            click.echo(f"{each.key:22}{each.title}")
        raise SystemExit(0 if only_list else 2)
    found = report.load(out) if keep else Report()
    found.machine |= machine.describe()
    console = Console(stderr=True)
    programs = Programs()
    for kind in stores.split(","):
        names = [name for name in peers.split(",") if kind == "local" or name in scene.WITH_STORE]
        # New objects: a workload remembers which peers are warm.
        keys = {each.key for each in chosen if kind == "local" or each.has_store}
        loads = [each for each in every(sizes) if each.key in keys]
        if not loads:
            continue
        with scene.opened(names, sizes, programs, directory, kind) as opened:
            _measure(opened, kind, loads, rounds or (1 if quick else 3), found, console, out)
    text = "\n".join(
        [summary.as_markdown(found), targets.as_markdown(found, sizes.herd_clients), report.as_markdown(found)]
    )
    (out / "peers.md").write_text(text)
    files = plots.draw(found, out)
    click.echo(text)
    console.print(f"written: {out / report.FILE}, {out / 'peers.md'}, {', '.join(str(file) for file in files)}")
    if found.failures:
        raise SystemExit(1)


def _sized(sizes: Sizes, clients: int | None, layer: int | None, delay: float | None, bandwidth: float | None) -> Sizes:
    delay_s = sizes.slow.delay_s if delay is None else delay / 1e3
    slow = Line(delay_s, sizes.slow.bytes_per_s if bandwidth is None else bandwidth * MIB)
    return attrs.evolve(
        sizes,
        cold_clients=clients or sizes.cold_clients,
        cold_slow_bytes=layer * MIB if layer else sizes.cold_slow_bytes,
        slow=slow,
        usual=attrs.evolve(sizes.usual, delay_s=delay_s),
        fast=attrs.evolve(sizes.fast, delay_s=delay_s),
    )


def _measure(
    opened: Scene, kind: str, loads: Sequence[Workload], rounds: int, found: Report, console: Console, out: Path
) -> None:
    """Round by round, in each the peers in turn."""
    found.missing |= opened.missing
    for name, reason in opened.missing.items():
        console.print(f"{name} is left out: {reason}", style="yellow")
    for peer in opened.peers:
        found.versions[peer.name] = peer.version
        found.machine["CPU seconds from"] = peer.group.source
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("upstream alone", total=len(loads) * rounds)

        def tell(text: str) -> None:
            progress.update(task, description=text)
            if not console.is_terminal:
                console.print(text)

        if kind == "local":
            found.machine["the upstream alone"] = _ceiling(opened.place)
        for load in loads:
            key = load.key if kind == "local" else f"{kind}/{load.key}"
            found.begin(key, load.title + ("" if kind == "local" else ", S3 behind the cache"))
            entrants = [peer for peer in opened.peers if peer.name not in load.without]
            for number in range(rounds):
                tell(f"{key} · round {number + 1} · preparing")
                try:
                    load.prepare(opened.place, entrants)
                except LoadError as exc:
                    _fail(found, key, "preparation", exc, console)
                    break
                for peer in entrants:
                    tell(f"{key} · round {number + 1} · {peer.name}")
                    _run(found, key, peer.name, lambda load=load, peer=peer: load.run(opened.place, peer), console)
                progress.advance(task)
            report.write(found, out)


def _run(found: Report, key: str, name: str, run: Callable[[], dict[str, float]], console: Console) -> None:
    before = machine.Clock.now()
    try:
        values = run()
    except LoadError as exc:
        _fail(found, key, name, exc, console)
        return
    found.add(key, name, values | {"steal %": machine.Clock.now().stolen_since(before)})


def _fail(found: Report, key: str, what: str, exc: LoadError, console: Console) -> None:
    found.failures[f"{key} {what}"] = str(exc)
    console.print(f"{key}, {what} failed: {exc}", style="red")


def _ceiling(place: Place) -> str:
    """What the upstream gives when nothing stands before it, and what that costs it."""
    blob = place.truth.add_blob(CEILING_BYTES)
    image = place.truth.add_image("ceiling", (1024,))
    path = f"/v2/{REPOSITORY}/blobs/{blob.digest}"
    place.upstream.set_line()
    said = []
    for clients in (1, 64):
        times = CEILING_TIMES if clients == 1 else 1
        used_s = place.upstream.group.cpu_s()
        result = discard(place.upstream.port, [[(path, blob.size)] * times] * clients, limit_s=5.0)
        used_s = place.upstream.group.cpu_s() - used_s
        gib = result["received"] / GIB
        text = f"{clients} client{'s' * (clients > 1)} {gib * 1024 / result['wall_s']:,.0f} MiB/s"
        said.append(f"{text}, CPU {used_s / gib:.2f} s/GiB")
    used_s = place.upstream.group.cpu_s()
    manifest = f"/v2/{REPOSITORY}/manifests/{image.tag}"
    rate = wrk(place.programs.need("wrk"), place.upstream.port, [manifest], 2, 32, place.directory)
    used_s = place.upstream.group.cpu_s() - used_s
    said.append(
        f"manifests {rate.requests / rate.wall_s:,.0f} requests/s, CPU {used_s / rate.requests * 1e6:.0f} us/request"
    )
    return "; ".join(said)

"""The command: which peers, which workloads, how often; then the table, the figures and the targets."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.peers import report
from bench.peers.contestants import MAKERS, Peer, make
from bench.peers.load import LoadError
from bench.peers.origin import Upstream
from bench.peers.programs import Had, Programs
from bench.peers.report import Report
from bench.peers.truth import Truth
from bench.peers.workloads import Place, Sizes, every


@click.command()
@click.option("--peers", default=",".join(MAKERS), show_default=True, help="Which, comma separated.")
@click.option("--workloads", default="", help="Which, comma separated; the beginning of a name is enough.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench/results"), show_default=True)
@click.option("--directory", type=click.Path(path_type=Path), default=None, help="Where peers keep their caches.")
def main(peers: str, workloads: str, rounds: int, out: Path, directory: Path | None) -> None:
    """Measure Dockyard and its peers side by side, on this machine, in alternating runs."""
    console = Console(stderr=True)
    sizes = Sizes()
    wanted = [word for word in workloads.split(",") if word]
    chosen = [each for each in every(sizes) if not wanted or any(each.key.startswith(word) for word in wanted)]
    found = Report()
    place_directory = Path(tempfile.mkdtemp(prefix="dockyard-bench-", dir=directory))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, place_directory, ignore_errors=True)
        truth = Truth(place_directory / "truth")
        upstream = Upstream(truth.directory)
        stack.callback(upstream.close)
        upstream.start()
        programs = Programs()
        running: list[Peer] = []
        for name in peers.split(","):
            peer = make(name, programs, place_directory, upstream.port, truth.directory)
            if isinstance(peer, Had):
                found.missing[name] = peer.said
                console.print(f"[yellow]{name} is left out:[/] {peer.said}")
                continue
            stack.callback(peer.close)
            peer.start()
            found.versions[name] = peer.version
            running.append(peer)
        with _progress(console) as progress:
            task = progress.add_task("", total=len(chosen) * rounds)
            place = Place(
                upstream, truth, programs, place_directory, sizes, lambda text: progress.update(task, description=text)
            )
            for workload in chosen:
                entrants = [peer for peer in running if peer.name not in workload.peers_without]
                for number in range(rounds):
                    workload.prepare(place, entrants)
                    for peer in entrants:
                        place.tell(f"{workload.key} · round {number + 1} · {peer.name}")
                        try:
                            values = workload.run(place, peer)
                        except LoadError as exc:
                            found.failures.append(f"{workload.title}, {peer.name}: {exc}")
                            console.print(f"[red]{found.failures[-1]}")
                            continue
                        found.add(workload.key, workload.title, peer.name, values)
                    progress.advance(task)
    report.write(found, out)
    Console().print((out / "peers.md").read_text(), markup=False, soft_wrap=True)
    if found.failures:
        raise SystemExit(1)


@contextlib.contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield progress

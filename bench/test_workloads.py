"""Every workload of the peer benchmarks runs, in a tiny size."""

import os
from pathlib import Path

import pytest
from rich.console import Console

from bench.peers import figures, machine, page, setup, workload
from bench.peers.caches import DOCKYARD
from bench.peers.measuring import Rounds, keep_runnable, measure
from bench.peers.programs import ProgramResult, Programs
from bench.peers.report import Report
from bench.peers.workload import MIB, Link, Sizes
from bench.peers.workloads.catalog import make_workloads

TINY = Sizes(
    warm_bytes=MIB,
    warm_times=2,
    concurrent_bytes=MIB // 4,
    concurrent_clients=3,
    reused_times=2,
    few_clients=2,
    head_requests=20,
    wrk_s=1.0,
    wrk_connections=2,
    images=2,
    cold_bytes=MIB,
    cold_clients=3,
    cold_slow_bytes=MIB,
    cold_fast_bytes=MIB,
    distinct=2,
    distinct_bytes=MIB,
    layers=(MIB, MIB // 2),
    loaded_bytes=MIB,
    stale_requests=2,
    slow=Link(0.0, 20 * MIB),
    pieces=Link(0.0, 8 * MIB, 1024),
    pieces_bytes=MIB,
)
PEERS = (DOCKYARD, "distribution", "nginx-static")
WITH_PEERS = ("warm-blob", "warm-small-64k", "warm-head-blob", "idle")  # the others save time
SLOW = frozenset({"dead-silent"})  # it waits for the time limit of a check; as dead-refuses otherwise


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured here: do not wait until the processes are idle."""
    monkeypatch.setattr(workload, "IDLE_TIMEOUT_S", 0.0)


def test_every_workload_runs(tmp_path: Path) -> None:
    """Against Dockyard and the peers that this machine has; a workload whose program is missing is reported."""
    console, programs, results = Console(quiet=True), Programs(), Report()
    results.machine |= machine.describe()
    chosen = [each for each in make_workloads(TINY) if each.key not in SLOW]
    runnable = keep_runnable(chosen, programs, results, console)
    for each in runnable:
        if not each.key.startswith(WITH_PEERS):
            each.without = frozenset(PEERS) - {DOCKYARD}
    with setup.start(PEERS, TINY, programs, None, "local") as started:
        measure(started, "local", runnable, Rounds(1), results, console, tmp_path)
    assert results.failures == {}
    for each in runnable:
        measured = results.samples[each.key]
        assert set(measured) == {name for name in (each.name for each in started.caches) if name not in each.without}
        assert measured[DOCKYARD][0]
    assert set(results.missing) >= {each.key for each in chosen} - {each.key for each in runnable}
    reused = results.samples["warm-blob-reused-3"]
    assert [rows[0]["connections"] for name, rows in reused.items() if name != DOCKYARD] == [3.0] * (len(reused) - 1)
    assert {rows[0]["connections"] for rows in results.samples["warm-blob-1"].values()} == {2.0}
    text = page.as_markdown(results, TINY.concurrent_clients)
    for each in runnable:
        assert each.title in text
    assert all(file.stat().st_size for file in figures.draw(results, tmp_path))


def test_a_workload_without_its_program_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out, with the reason, before anything is started; an ordinary user cannot use containerd."""

    def find(programs: Programs, name: str) -> ProgramResult:
        return ProgramResult(None, reason=f"no {name}") if name in {"skopeo", "haproxy"} else ProgramResult(Path("/"))

    monkeypatch.setattr(Programs, "find", find)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    results = Report(missing={"image": "from another run"})
    runnable = keep_runnable(make_workloads(TINY), Programs(), results, Console(quiet=True))
    assert results.missing == {
        "image-skopeo": "no skopeo",
        "image-containerd": "containerd-2 works only as root",
        "warm-blob-haproxy-1": "no haproxy",
        "warm-blob-haproxy-3": "no haproxy",
    }
    assert {each.key for each in make_workloads(TINY)} - {each.key for each in runnable} == set(results.missing)

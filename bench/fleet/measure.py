"""Compares the model with real fleets in network namespaces of this machine, with links of limited rate (as root).

Each case is a fleet with real programs: registry, MinIO, Dockyards, HAProxy, and nodes that pull as containerd does.
All cases are simulated with the same numbers, which are those of the layout and of `LATENCY_S`. The links are so slow
that processors are never the limit.
"""

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from bench.fleet.model import MIB, Bucket, Client, Costs, Failure, Fleet, Image, Tier, Upstream
from bench.fleet.result import Result
from bench.fleet.simulation import simulate
from tests.scenario.herd import Herd, measure_herd, run_herd
from tests.scenario.layout import PREFIX, Layout, Rates, Shape, open_layout, require_program
from tests.scenario.nodes import FIRST_DELAY_S
from tests.support.images import PushedImage
from tests.support.processes import SetupError

MAX_DEVIATION = 0.15
# Of the bytes to all nodes: on a link that carries less, only a difference of more than this counts.
SMALL_PART = 0.02
MBIT = 1e6
QUIET_S = 3.0
UNLIMITED = 40e9  # bits per second, for links without a limit
# tbf counts the Ethernet header, but neither preamble nor checksum: 1,448 bytes of data in 1,514.
GOODPUT = 1448 / 1514
MACHINE = re.compile(r"(region|zone)(?:-[a-z])?-(replica|balancer|node)-(\d+)")
ZONE = re.compile(r" \(zone \d+\)")  # in the names of links of a zone in which something fails
NUMBER = re.compile(r" \d+ ")
LATENCY_S = 0.005  # of each response, of a Dockyard or the registry, on this machine


@attrs.frozen
class Case:
    """One fleet, and the layers of the image in bytes that its nodes pull at once. `is_warm`: for the second time.

    After `kill_after_s` the first replica is killed, or in two tiers the first zone with its balancer.
    """

    name: str
    shape: Shape
    layers: Sequence[int]
    is_warm: bool = False
    kill_after_s: float | None = None


SEVERAL = [16 * MIB, 8 * MIB, 6 * MIB, 4 * MIB, 4 * MIB, 2 * MIB, 2 * MIB, MIB, MIB]
CASES = (
    Case("flat, warm, cards of replicas", Shape(rates=Rates(replica=100 * MBIT)), SEVERAL, is_warm=True),
    Case("flat, cold, cards of replicas", Shape(rates=Rates(replica=100 * MBIT)), SEVERAL),
    Case("flat, cold, one large layer", Shape(rates=Rates(replica=200 * MBIT, registry=100 * MBIT)), [48 * MIB]),
    Case("flat, warm, cards of nodes", Shape(rates=Rates(replica=200 * MBIT, node=20 * MBIT)), SEVERAL, is_warm=True),
    Case("flat, cold, card of the balancer", Shape(rates=Rates(balancer=150 * MBIT)), SEVERAL),
    Case(
        "two tiers, cold, links of zones",
        Shape(zones=2, zone_replicas=2, rates=Rates(zone=20 * MBIT, zone_replica=150 * MBIT)),
        SEVERAL,
    ),
    Case(
        "two tiers, warm, cards of replicas in zones",
        Shape(zones=2, zone_replicas=3, rates=Rates(zone=20 * MBIT, zone_replica=60 * MBIT)),
        SEVERAL,
        is_warm=True,
    ),
    Case(
        "two tiers, cold, one large layer",
        Shape(zones=2, zone_replicas=2, rates=Rates(registry=60 * MBIT, replica=100 * MBIT, zone_replica=100 * MBIT)),
        [32 * MIB],
    ),
    Case(
        "flat, warm, a replica is killed after 10 s",
        Shape(rates=Rates(replica=100 * MBIT)),
        SEVERAL,
        is_warm=True,
        kill_after_s=10.0,
    ),
    Case(
        "two tiers, warm, a zone is killed after 8 s",
        Shape(zones=2, zone_replicas=2, rates=Rates(replica=100 * MBIT, zone_replica=100 * MBIT)),
        SEVERAL,
        is_warm=True,
        kill_after_s=8.0,
    ),
)


@attrs.frozen
class Comparison:
    """One number of the model and of a measurement; `slack` is a difference that does not count."""

    case: str
    what: str
    unit: str
    simulated: float
    measured: float
    slack: float = 0.0

    @property
    def deviation(self) -> float:
        return (self.simulated - self.measured) / self.measured if self.measured else 0.0

    @property
    def is_right(self) -> bool:
        return abs(self.simulated - self.measured) <= max(self.slack, MAX_DEVIATION * self.measured)


def make_fleet(case: Case) -> Fleet:
    """The description of a case for the model."""
    shape, rates = case.shape, case.shape.rates
    region = Tier(
        "region",
        replicas=shape.replicas,
        card=rates.replica or UNLIMITED,
        balancers=shape.balancers,
        balancer_card=rates.balancer or UNLIMITED,
        has_bucket=True,
    )
    zone = Tier(
        "zone",
        zones=max(1, shape.zones),
        replicas=shape.zone_replicas,
        card=rates.zone_replica or UNLIMITED,
        balancers=shape.zone_balancers,
        balancer_card=rates.zone_balancer or UNLIMITED,
        uplink=rates.zone or UNLIMITED,
    )
    unlimited = float("inf")
    return Fleet(
        shape.nodes,
        [zone, region] if shape.zones else [region],
        node_card=rates.node or UNLIMITED,
        # A node asks its next host at once, which is the balancer of the region; the same host after a moment.
        client=Client(shape.parallel, LATENCY_S, retry_s=LATENCY_S if shape.zones else FIRST_DELAY_S),
        upstream=Upstream((rates.registry or UNLIMITED) / 8 * GOODPUT, unlimited, LATENCY_S),
        bucket=Bucket((rates.bucket or UNLIMITED) / 8 * GOODPUT, unlimited, LATENCY_S),
        failures=[Failure(case.kill_after_s, "zone" if shape.zones else "replica")] if case.kill_after_s else [],
        warm=2 if case.is_warm else 0,
        is_in_bucket=case.is_warm,
        goodput=GOODPUT,
        hop_s=LATENCY_S,
        costs=Costs(),
    )


def make_image(image: PushedImage) -> Image:
    """The image that the nodes have pulled, for the model."""
    single = image.this_platform
    digests = {f"{number}": blob.digest for number, blob in enumerate((single.config, *single.layers))}
    sizes = [blob.size for blob in single.layers]
    return Image(sizes, name=f"{PREFIX}/{image.repository}", digests={"manifest": single.digest, **digests})


def compare(case: Case, herd: Herd) -> list[Comparison]:
    """Simulate what was measured."""
    image = make_image(herd.image)
    result = simulate(make_fleet(case), image)
    times = sorted(herd.times_s)
    found = [
        Comparison(case.name, f"{name} node", "s", result.quantile(part), _quantile(times, part))
        for name, part in (("median", 0.5), ("95 %: last", 0.95), ("last", 1.0))
    ]
    slack = SMALL_PART * case.shape.nodes * image.size
    return found + [
        Comparison(case.name, name, "MiB", simulated / MIB, measured / MIB, slack / MIB)
        for name, simulated, measured in _pair_links(result, herd, has_deaths=case.kill_after_s is not None)
        if max(simulated, measured) > slack
    ]


def measure(
    cases: Sequence[Case], directory: Path | None = None, find: Callable[[str], Path] = require_program
) -> list[Comparison]:
    """Run cases, one after the other. Raises SetupError."""
    found = []
    for case in cases:
        herd = run(case, directory, find)
        found += compare(case, herd)
        print(f"{case.name}: nodes had the image after {', '.join(f'{time:.1f}' for time in sorted(herd.times_s))} s")
    return found


def run(case: Case, directory: Path | None, find: Callable[[str], Path]) -> Herd:
    """Measure one case. Raises SetupError."""
    if case.kill_after_s is None:
        return measure_herd(case.shape, case.layers, is_warm=case.is_warm, directory=directory, find=find)
    seconds = case.kill_after_s
    with (
        tempfile.TemporaryDirectory(prefix="dockyard-herd-", dir=directory, ignore_cleanup_errors=True) as temporary,
        open_layout(case.shape, Path(temporary), find) as layout,
    ):
        image = layout.push("herd", case.layers)

        def kill() -> None:
            time.sleep(seconds)  # the time is part of the case
            if layout.zones:
                layout.zones[0].kill()
            else:
                layout.region.replicas[0].dockyard.kill()

        if case.is_warm:
            run_herd(layout, image)
            _wait_for_uploads(layout)
        herd = run_herd(layout, image, kill)
    if problems := [pull.problem for pull in herd.pulls if pull.problem]:
        raise SetupError(f"{len(problems)} pulls failed: {problems[0]}")
    return herd


def _wait_for_uploads(layout: Layout) -> None:
    """Wait until the bucket receives nothing any more: replicas upload at their own pace."""
    before = -1
    while (now := layout.traffic()["bucket"].received) > before + MIB / 16:
        before = now
        time.sleep(QUIET_S)


def as_summary(comparisons: Sequence[Comparison]) -> list[str]:
    """The times of each case, simulated / measured."""
    lines = ["| simulated / measured, s | median node | 95 % | last node |", "|---|--:|--:|--:|"]
    for case in dict.fromkeys(each.case for each in comparisons):
        times = [each for each in comparisons if each.case == case and each.unit == "s"]
        cells = [f"{each.simulated:.1f} / {each.measured:.1f}" for each in times]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return lines


def as_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """All numbers as a table."""
    lines = ["| fleet | | model | measured | deviation |", "|---|---|--:|--:|--:|"]
    for each in comparisons:
        mark = f"{each.deviation:+.0%}" if each.is_right else f"**{each.deviation:+.0%}**"
        values = f"{each.simulated:,.1f} {each.unit} | {each.measured:,.1f} {each.unit}"
        lines.append(f"| {each.case} | {each.what} | {values} | {mark} |")
    return lines


def _quantile(times: Sequence[float], part: float) -> float:
    """The time within which this part of the nodes had the image."""
    needed = next(number for number in range(1, len(times) + 1) if number >= part * len(times) - 1e-9)
    return times[needed - 1]


def _pair_links(result: Result, herd: Herd, *, has_deaths: bool) -> list[tuple[str, float, float]]:
    """Name, simulated and measured bytes of each kind of link and direction; those of equal zones together.

    After a death what each replica has to send depends on how far each node was: then those of a tier are together.
    """
    simulated: dict[str, float] = {}
    for load in result.loads:
        name = ZONE.sub("", load.name)
        name = NUMBER.sub(" ", name) if has_deaths else name
        simulated[name] = simulated.get(name, 0.0) + load.carried * load.count
    measured: dict[str, float] = {}
    for name, traffic in herd.traffic.items():
        for direction, value in (("in", traffic.received), ("out", traffic.sent)):
            model_name = find_name(name, direction)
            if model_name and has_deaths:
                model_name = NUMBER.sub(" ", model_name)
            if model_name:
                measured[model_name] = measured.get(model_name, 0.0) + value
    return [(name, simulated[name], value) for name, value in measured.items() if name in simulated]


def find_name(name: str, direction: str) -> str | None:
    """The name in the model of a link of the layout, or None: `zone 0 replica in` for `zone-b-replica-1`."""
    if match := MACHINE.fullmatch(name):
        tier, kind, number = match.groups()
        name = {"node": "node", "balancer": f"{tier} balancer"}.get(kind, f"{tier} {int(number) - 1} {kind}")
        return f"{name} {direction}"
    names = {("registry", "out"): "upstream", ("bucket", "in"): "bucket in", ("bucket", "out"): "bucket out"}
    if direction == "in" and name.startswith("zone-"):
        return "zone uplink"
    return names.get((name, direction))

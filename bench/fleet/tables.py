"""The tables of `ops/FLEETS.md`, each between two comments that name it.

python -m bench.fleet --write ops/FLEETS.md
"""

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import attrs

from bench.fleet import figures
from bench.fleet.model import GBIT, GIB, GOODPUT, MIB, Arrival, Failure, Fleet, Image, Tier
from bench.fleet.prices import Bill, price
from bench.fleet.result import Result
from bench.fleet.ring import Ring
from bench.fleet.simulation import simulate

TWELVE = [each * MIB for each in (400, 200, 150, 120, 100, 80, 60, 40, 30, 24, 16, 8.8)]  # 1.2 GiB
ONE = [sum(TWELVE)]
SEEDS = range(5)
NODES = (100, 300, 1_000, 3_000, 10_000)
GOAL_S = 180.0
AVAILABILITY_ZONES = 3
CROSSING = 1 - 1 / AVAILABILITY_ZONES  # of bytes between two machines that are anywhere
BLOCK = re.compile(r"(<!-- model: ([a-z-]+) -->\n).*?(<!-- end of the table -->\n)", re.DOTALL)


def _find_replica(replicas: int) -> int:
    """The replica, of so many, that has the largest layer."""
    number = Ring(replicas).find_server(Image(TWELVE).blobs()[1].key)
    assert number is not None
    return number


def _seconds(time: float) -> str:
    return f"{time:,.0f} s"


def _most(result: Result, ending: str) -> float | None:
    return max((load.carried for load in result.loads if load.name.endswith(ending)), default=None)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _bytes(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number / GIB:,.1f} GiB" if number < 100 * GIB else f"{number / GIB:,.0f} GiB"


def _dollars(bill: Bill) -> str:
    return f"${bill.total:,.2f}"


@attrs.frozen
class Design:
    """A fleet for any number of nodes: its name in the tables, and the tiers for so many nodes."""

    name: str
    make_tiers: Callable[[int], Sequence[Tier]]

    def fleet(self, nodes: int) -> Fleet:
        return Fleet(nodes, self.make_tiers(nodes))


def region(replicas: int = 3, card: float = 25, balancers: int = 1, crosses_zones: float = CROSSING) -> Tier:
    """The tier that asks the registry. Cards are in Gbit/s; those of balancers have 100."""
    return Tier(
        "region",
        replicas=replicas,
        card=card * GBIT,
        balancers=balancers,
        has_bucket=True,
        crosses_zones=crosses_zones,
    )


def flat(replicas: int, card: float, balancers: int) -> Design:
    """One tier for all nodes."""
    name = f"flat: {replicas} x {card:g} Gbit/s, {_count(balancers, 'balancer')}"
    return Design(name, lambda nodes: [region(replicas, card, balancers)])


def tiered(nodes_of_zone: int, replicas: int, card: float, region_card: float = 25) -> Design:
    """A zone for so many nodes, with a balancer if it has several replicas, before a region of three replicas."""
    name = f"tiers: {replicas} x {card:g} Gbit/s per {nodes_of_zone} nodes"

    def make(nodes: int) -> list[Tier]:
        zones = -(-nodes // nodes_of_zone)
        balancers = 1 if replicas > 1 else 0
        zone = Tier("zone", zones=zones, replicas=replicas, card=card * GBIT, balancers=balancers)
        return [zone, region(card=region_card)]

    return Design(name if region_card == 25 else f"{name}, 3 x {region_card:g} in the region", make)


@attrs.frozen
class Times:
    """The seconds until the last node has the image: the median over images, and the longest."""

    median_s: float
    longest_s: float

    def __str__(self) -> str:
        if round(self.median_s) == round(self.longest_s):
            return f"{self.median_s:,.0f} s"
        return f"{self.median_s:,.0f} s ({self.longest_s:,.0f} s)"


@cache
def time_of(design: Design, nodes: int, layers: tuple[float, ...]) -> Times:
    """Simulate images with these layers and different digests, which balancers send to different replicas."""
    seeds = SEEDS if len(layers) > 1 else SEEDS[:1]
    times = [simulate(design.fleet(nodes), Image(layers, seed)).last_s for seed in seeds]
    return Times(statistics.median(times), max(times))


SIZING = (flat(3, 25, 1), flat(8, 25, 2), flat(8, 100, 8), tiered(250, 2, 25), tiered(40, 1, 10))


def sizing(layers: Sequence[float]) -> list[str]:
    """The time by nodes and design."""
    lines = [f"| nodes | {' | '.join(each.name for each in SIZING)} |", "|--:|" + "--:|" * len(SIZING)]
    for nodes in NODES:
        cells = [str(time_of(design, nodes, tuple(layers))) for design in SIZING]
        lines.append(f"| {nodes:,} | {' | '.join(cells)} |")
    return lines


LARGE = (
    flat(8, 100, 8),
    flat(24, 100, 24),
    tiered(1000, 2, 100),
    tiered(500, 2, 25),
    tiered(250, 2, 25),
    tiered(100, 1, 25),
    tiered(100, 1, 10),
    tiered(40, 1, 10),
    tiered(40, 1, 10, 100),
    tiered(40, 1, 25, 100),
)


def large() -> list[str]:
    """What brings the image to 10,000 nodes, and what the machines send."""
    nodes = NODES[-1]
    lines = [
        "| design | replicas | cards, Gbit/s | 12 layers | 1 layer | below 3 minutes |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for design in LARGE:
        tiers = design.make_tiers(nodes)
        replicas = sum(tier.zones * tier.replicas for tier in tiers)
        cards = sum(tier.zones * tier.replicas * tier.card for tier in tiers) / GBIT
        twelve, one = time_of(design, nodes, tuple(TWELVE)), time_of(design, nodes, tuple(ONE))
        slowest = max(twelve.longest_s, one.longest_s)
        verdict = "yes" if slowest <= GOAL_S else "12 layers only" if twelve.longest_s <= GOAL_S else "no"
        lines.append(f"| {design.name} | {replicas} | {cards:,.0f} | {twelve} | {one} | {verdict} |")
    return lines


def links() -> list[str]:
    """What each kind of link carries, and what a new image costs."""
    nodes = NODES[-1]
    lines = [
        "| 10,000 nodes, 12 layers | registry | replica | balancer | into a zone | between AZs | S3 requests | cost |",
        "|---|" + "--:|" * 7,
    ]
    designs = [Design("no Dockyard", lambda nodes: []), LARGE[1], tiered(250, 2, 25), tiered(40, 1, 10)]
    for design in designs:
        result = simulate(design.fleet(nodes), Image(TWELVE))
        zones = design.make_tiers(nodes)[0].zones if len(design.make_tiers(nodes)) > 1 else 0
        received = result.carried("zone", "replica in") / zones if zones else None
        requests = result.requests["bucket GET"] + result.requests["bucket PUT"]
        cells = [
            _bytes(result.carried("upstream")),
            _bytes(_most(result, "replica out")),
            _bytes(_most(result, "balancer out")),
            _bytes(received),
            _bytes(result.crossing_bytes),
            f"{requests:,}",
            _dollars(price(result)),
        ]
        lines.append(f"| {design.name} | {' | '.join(cells)} |")
    return lines


def arrivals() -> list[str]:
    """What arrival and failures change."""
    lines = [
        "| 1,000 nodes, 12 layers | | median node | 95 % | slowest | all nodes |",
        "|---|---|--:|--:|--:|--:|",
    ]
    flat_design, tiered_design = SIZING[2], SIZING[3]
    at_once, busiest = Arrival(), Failure(10.0, "replica", number=_find_replica(8))
    dead = Failure(2.0, "replica", tier=1, number=_find_replica(3), detection_s=10.0)
    cases: list[tuple[Design, str, Arrival, list[Failure]]] = [
        (flat_design, "all at once", at_once, []),
        (flat_design, "evenly over 5 minutes", Arrival(300.0), []),
        (flat_design, "4 waves, 60 s apart", Arrival(60.0, waves=4), []),
        (flat_design, "at once; the busiest replica is killed after 10 s", at_once, [busiest]),
        (flat_design, "at once; a balancer is killed after 10 s", at_once, [Failure(10.0, "balancer")]),
        (tiered_design, "all at once", at_once, []),
        (tiered_design, "evenly over 5 minutes", Arrival(300.0), []),
        (tiered_design, "4 waves, 60 s apart", Arrival(60.0, waves=4), []),
        (tiered_design, "at once; a zone is killed after 10 s", at_once, [Failure(10.0, "zone")]),
        (tiered_design, "at once; a machine of the region dies after 2 s, noticed 10 s later", at_once, [dead]),
    ]
    for design, name, arrival, failures in cases:
        fleet = attrs.evolve(design.fleet(1000), arrival=arrival, failures=failures)
        result = simulate(fleet, Image(TWELVE))
        times = [*(result.quantile(part) for part in (0.5, 0.95, 1.0)), result.last_s]
        lines.append(f"| {design.name} | {name} | {' | '.join(_seconds(time) for time in times)} |")
    return lines


def peer_to_peer() -> list[str]:
    """The test that Kraken has published; the same image, nodes and limit in the model, with caches that have it."""
    image = Image([1.5e9, 1.5e9])
    lines = [
        "| 3 GB in 2 layers to 2,600 nodes with 300 MB/s | median node | 99 % | last |",
        "|---|--:|--:|--:|",
        "| Kraken, by its authors: 5 origins, 5 trackers, an agent on each node | 10 s | 18 s | 22 s (99.9 %) |",
    ]
    for design in (flat(8, 100, 8), tiered(40, 1, 25), tiered(40, 1, 100, 100)):
        fleet = attrs.evolve(design.fleet(2600), node_card=300e6 * 8 / GOODPUT, warm=1)
        result = simulate(fleet, image)
        times = [_seconds(result.quantile(part)) for part in (0.5, 0.99, 1.0)]
        lines.append(f"| Dockyard, simulated: {design.name} | {' | '.join(times)} |")
    return lines


def draw(file: Path) -> None:
    """Draw 10,000 nodes that begin within two minutes."""
    designs = (LARGE[0], tiered(250, 2, 25), tiered(40, 1, 10))
    fleets = {each.name: attrs.evolve(each.fleet(NODES[-1]), arrival=Arrival(120.0)) for each in designs}
    figures.draw({name: simulate(fleet, Image(TWELVE)) for name, fleet in fleets.items()}, file)


TABLES: Mapping[str, Callable[[], list[str]]] = {
    "twelve-layers": lambda: sizing(TWELVE),
    "one-layer": lambda: sizing(ONE),
    "ten-thousand": large,
    "links": links,
    "arrivals": arrivals,
    "peer-to-peer": peer_to_peer,
}


def update(page: str) -> str:
    """The page with its tables made again. Raises KeyError for a table that does not exist."""
    return BLOCK.sub(lambda block: f"{block[1]}\n" + "\n".join(TABLES[block[2]]()) + f"\n\n{block[3]}", page)


def names_of(page: str) -> list[str]:
    """The names of the tables in a page."""
    return [block[2] for block in BLOCK.finditer(page)]

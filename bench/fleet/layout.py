"""The machines of a fleet with their links, and the ways of responses to nodes and to inner tiers.

Zones that are equal are one `Site`. A zone in which something fails is a site of its own.
"""

import math
from collections.abc import Iterator, Sequence

import attrs

from bench.fleet.flows import Flow, Link, Use
from bench.fleet.model import Blob, Failure, Fleet, Tier
from bench.fleet.ring import Ring


@attrs.define(eq=False)
class Machine:
    """A replica or a balancer. It is not asked any more from `detected_at` on."""

    received: Link
    sent: Link
    cpu: Link | None
    died_at: float = math.inf
    detected_at: float = math.inf


@attrs.define(eq=False)
class Replica:
    """A machine with Dockyard, and what it has or is fetching."""

    machine: Machine
    site: "Site"
    copies: dict[str, "Copy"] = attrs.Factory(dict)


@attrs.define(eq=False)
class Copy:
    """A blob at a replica. `fetch` is the download, which is running, waiting or (None) complete."""

    blob: Blob
    fetch: Flow | None
    readers: list[Flow] = attrs.Factory(list)


@attrs.define(eq=False)
class Site:
    """`count` equal zones of a tier, and the site that they ask; None is the upstream."""

    tier: Tier
    count: int
    outer: "Site | None"
    balancers: Sequence[Machine]
    ring: Ring
    uplink: Link | None
    replicas: list[Replica] = attrs.Factory(list)

    def machines(self) -> list[Machine]:
        return [*(each.machine for each in self.replicas), *self.balancers]


@attrs.frozen
class Route:
    """The way of a response: its replica, the machines that it passes, and what each byte needs of their cards."""

    replica: Replica
    machines: Sequence[Machine]
    uses: Sequence[Use]

    def find_dead(self, now: float) -> list[Machine]:
        """The machines that have died."""
        return [machine for machine in self.machines if machine.died_at <= now]


class Layout:
    """All sites and links of a fleet. Raises ValueError for one that cannot be laid out."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.links: list[Link] = []
        self.upstream = self.add_link("upstream", fleet.upstream.rate)
        self.bucket_in = self.add_link("bucket in", fleet.bucket.rate)
        self.bucket_out = self.add_link("bucket out", fleet.bucket.rate)
        self._zones: dict[tuple[int, int], Site] = {}
        self.tiers = self._make_tiers()

    @property
    def nodes_sites(self) -> list[Site]:
        """The sites that nodes ask; empty without tiers."""
        return self.tiers[0] if self.tiers else []

    def sites(self) -> Iterator[Site]:
        return (site for sites in self.tiers for site in sites)

    def add_link(self, name: str, rate: float, number: float = 1) -> Link:
        link = Link(name, rate, number)
        self.links.append(link)
        return link

    def find_route(self, site: Site | None, key: str, number: int, now: float) -> Route | None:
        """The way from the first site, beginning with this one, that has a replica and a balancer left, or None."""
        uplinks: list[Use] = []
        while site is not None:
            down = {index for index, each in enumerate(site.replicas) if each.machine.detected_at <= now}
            balancers = [each for each in site.balancers if each.detected_at > now]
            chosen = site.ring.find_server(key, down)
            if chosen is not None and (balancers or not site.balancers):
                balancer = balancers[number % len(balancers)] if balancers else None
                return self._make_route(site.replicas[chosen], balancer, uplinks)
            uplinks += _uses_of(site)
            site = site.outer
        return None

    def find_outer_route(self, site: Site, key: str, now: float) -> Route | None:
        """The way to a site from the next one that has a replica and a balancer left, or None."""
        route = self.find_route(site.outer, key, 0, now)
        return attrs.evolve(route, uses=[*route.uses, *_uses_of(site)]) if route else None

    def uses_of_upstream(self, site: Site | None) -> list[Use]:
        """What a response of the upstream needs until it is in a site."""
        uses = [Use(self.upstream)]
        while site is not None:
            uses += _uses_of(site)
            site = site.outer
        return uses

    def find_victims(self, failure: Failure) -> list[Machine]:
        """The machines that a failure kills."""
        site = self._zones[failure.tier, failure.zone]
        if failure.kind == "zone":
            return site.machines()
        if failure.kind == "balancer":
            return [site.balancers[failure.number]]
        return [site.replicas[failure.number].machine]

    def _make_route(self, replica: Replica, balancer: Machine | None, uplinks: Sequence[Use]) -> Route:
        uses = [Use(replica.machine.sent), *uplinks]
        if balancer is None:
            return Route(replica, [replica.machine], uses)
        uses += [Use(balancer.received), Use(balancer.sent)]
        if balancer.cpu is not None and self._fleet.balancer_cpu is not None:
            uses.append(Use(balancer.cpu, self._fleet.balancer_cpu[1]))
        return Route(replica, [replica.machine, balancer], uses)

    def _make_tiers(self) -> list[list[Site]]:
        tiers: list[list[Site]] = []
        outer: list[Site | None] = [None]
        for index, tier in reversed(list(enumerate(self._fleet.tiers))):
            failing = sorted({each.zone for each in self._fleet.failures if each.tier == index})
            zones_of_outer = sum(site.count if site else 1 for site in outer)
            if tier.zones % zones_of_outer:
                raise ValueError(f"{tier.name}: {tier.zones} zones cannot be divided evenly over {zones_of_outer}")
            if failing and zones_of_outer > 1:
                raise ValueError(f"{tier.name}: a zone that fails needs one zone in the next tier")
            sites = []
            for zone in failing:
                is_balancer_failing = any(
                    (each.tier, each.zone, each.kind) == (index, zone, "balancer") for each in self._fleet.failures
                )
                site = self._make_site(
                    tier, f"{tier.name} (zone {zone})", 1, outer[0], has_equal_balancers=not is_balancer_failing
                )
                self._zones[index, zone] = site
                sites.append(site)
            for each in outer:
                number = tier.zones // zones_of_outer * (each.count if each else 1) - len(failing)
                if number:
                    sites.append(self._make_site(tier, tier.name, number, each, has_equal_balancers=True))
            tiers.insert(0, sites)
            outer = list(sites)
        return tiers

    def _make_site(self, tier: Tier, name: str, number: int, outer: Site | None, *, has_equal_balancers: bool) -> Site:
        """Equal balancers are one machine here, whose links count for all of them."""
        if not tier.balancers and tier.replicas > 1:
            raise ValueError(f"{tier.name}: several replicas need a balancer")
        cores = self._fleet.balancer_cpu[0] if self._fleet.balancer_cpu else None
        if has_equal_balancers and tier.balancers:
            balancers = [self._make_machine(f"{name} balancer", tier.balancer_card, cores, number * tier.balancers)]
        else:
            balancers = [
                self._make_machine(f"{name} {each} balancer", tier.balancer_card, cores, number)
                for each in range(tier.balancers)
            ]
        uplink = self.add_link(f"{name} uplink", tier.uplink / 8 * self._fleet.goodput, number) if tier.uplink else None
        site = Site(tier, number, outer, balancers, Ring(tier.replicas, tier.weight), uplink)
        for each in range(tier.replicas):
            machine = self._make_machine(f"{name} {each} replica", tier.card, tier.cores, number)
            site.replicas.append(Replica(machine, site))
        return site

    def _make_machine(self, name: str, card: float, cores: int | None, number: int) -> Machine:
        rate = card / 8 * self._fleet.goodput
        return Machine(
            self.add_link(f"{name} in", rate, number),
            self.add_link(f"{name} out", rate, number),
            self.add_link(f"{name} cpu", cores, number) if cores else None,
        )


def _uses_of(site: Site) -> list[Use]:
    return [Use(site.uplink)] if site.uplink else []

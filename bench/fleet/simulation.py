"""Simulates a fleet that pulls an image: when each node has it, and what each link carries.

    result = simulate(Fleet(nodes=1000, tiers=[Tier("region")]), Image([400 * MIB]))

It has: the hash ring of the balancers, one download per blob and replica that all clients read while it runs, blobs up
to 1 MiB that are verified before their first byte, parallel downloads of a node, cards that send and receive at once,
CPU seconds of replicas, machines that die and downloads that are continued by Range elsewhere, uploads to the bucket.

It does not have: the differences between TCP connections that share a link (here all get the same), lost packets,
disks, caches that are full, other traffic. Manifests need processors and latencies; their bytes are on no link.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count

import attrs

from bench.fleet.flows import Flow, Link, Network, Use
from bench.fleet.layout import Copy, Layout, Replica, Route, Site
from bench.fleet.model import MIB, Blob, Failure, Fleet, Image
from bench.fleet.result import Completion, Load, Result

MAX_VERIFIED_BYTES = MIB  # of blobs that are sent when their digest was checked
MAX_EVENTS = 5_000_000
AT_ONCE = 1e15  # bytes per second, of what has no bytes on links

Call = Callable[[], None]


@attrs.define(eq=False)
class Group:
    """`count` nodes in the same state: they began at the same time, and have the same balancer."""

    site: Site | None
    balancer: int
    count: float
    began_at: float
    card: Link
    waiting: list[Blob] = attrs.Factory(list)
    ended_at: dict[str, float] = attrs.Factory(dict)


@attrs.frozen
class Request:
    """A group requests a blob, from a position on."""

    group: Group
    blob: Blob
    on_end: Call
    position: float = 0.0


@attrs.frozen
class Transfer:
    """A flow on its way through machines; `on_cut` is called when one of them has died."""

    route: Route
    on_cut: Call


def simulate(fleet: Fleet, image: Image) -> Result:
    """Let all nodes of a fleet pull an image. Raises ValueError for a fleet that cannot be simulated."""
    return _Simulation(fleet, image).run()


class _Simulation:
    def __init__(self, fleet: Fleet, image: Image) -> None:
        self._fleet = fleet
        self._costs = fleet.costs
        self._tag, self._manifest, self._blobs = image.tag(fleet.costs), image.manifest(fleet.costs), image.blobs()
        self._layout = Layout(fleet)
        self._groups = self._make_groups()
        self._network = Network(self._layout.links)
        self._now = 0.0
        self._events: list[tuple[float, int, Call]] = []
        self._numbers = count()
        self._transfers: dict[Flow, Transfer] = {}
        self._waiting: dict[Copy, list[Call]] = {}  # for the end of its download
        self._in_bucket: set[str] = set()
        self._requests: Counter[str] = Counter()
        self._crossing_bytes = 0.0
        self._window_began_at, self._pulls_in_window = 0.0, 0.0

    def run(self) -> Result:
        self._fill_caches()
        for group in self._groups:
            self._call_at(group.began_at, partial(self._begin, group))
        for failure in self._fleet.failures:
            self._call_at(failure.at_s, partial(self._fail, failure))
        for _ in range(MAX_EVENTS):
            seconds = self._network.find_next()
            if self._events and self._events[0][0] <= self._now + seconds:
                seconds, self._now = self._events[0][0] - self._now, self._events[0][0]
            elif math.isinf(seconds):
                return self._result()
            else:
                self._now += seconds
            for flow in self._network.advance(seconds):
                self._transfers.pop(flow, None)
                flow.on_end()
            while self._events and self._events[0][0] <= self._now:
                heapq.heappop(self._events)[2]()
        raise ValueError(f"no end after {MAX_EVENTS} events")

    def _call_at(self, time: float, call: Call) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), call))

    def _call_after(self, seconds: float, call: Call) -> None:
        self._call_at(self._now + seconds, call)

    # Before the pull

    def _make_groups(self) -> list[Group]:
        starts = self._fleet.arrival.starts()
        sites: Sequence[Site | None] = self._layout.nodes_sites or [None]
        groups = []
        for site in sites:
            nodes = self._fleet.nodes * (site.count / site.tier.zones if site else 1.0)
            balancers = max(1, len(site.balancers)) if site else 1
            number = nodes / balancers / len(starts)
            for balancer in range(balancers):
                for start in starts:
                    card = self._layout.add_link("node in", self._fleet.node_card / 8 * self._fleet.goodput, number)
                    groups.append(Group(site, balancer, number, start, card))
        return groups

    def _fill_caches(self) -> None:
        """Give the replicas and the bucket what they have before the pull."""
        everything = [self._tag, self._manifest, *self._blobs]
        if self._fleet.is_in_bucket:
            self._in_bucket |= {blob.key for blob in everything}
        for sites in self._layout.tiers[max(0, len(self._layout.tiers) - self._fleet.warm) :]:
            for site in sites:
                for blob in everything:
                    number = site.ring.find_server(blob.key)
                    if number is not None:
                        site.replicas[number].copies[blob.key] = Copy(blob, None)

    # Nodes

    def _begin(self, group: Group) -> None:
        group.waiting = list(self._blobs)
        self._send(Request(group, self._tag, partial(self._pull_manifest, group)))

    def _pull_manifest(self, group: Group) -> None:
        self._send(Request(group, self._manifest, partial(self._pull_blobs, group)))

    def _pull_blobs(self, group: Group) -> None:
        for _ in range(self._fleet.client.parallel):
            self._pull_next(group)

    def _pull_next(self, group: Group) -> None:
        if group.waiting:
            blob = group.waiting.pop(0)
            self._send(Request(group, blob, partial(self._end_blob, group, blob)))

    def _end_blob(self, group: Group, blob: Blob) -> None:
        group.ended_at[blob.key] = self._now
        self._pull_next(group)

    def _send(self, request: Request) -> None:
        group, client = request.group, self._fleet.client
        self._requests["nodes"] += round(group.count)
        route = self._layout.find_route(group.site, request.blob.key, group.balancer, self._now)
        if route is None:
            self._send_upstream(request)
        elif dead := route.find_dead(self._now):
            self._call_at(max(each.detected_at for each in dead) + client.retry_s, partial(self._send, request))
        else:
            copy = self._open(route.replica, request.blob)
            check_s = self._check_tag() if request.blob is self._tag and copy.fetch is None else 0.0
            self._call_after(client.request_s + check_s, partial(self._respond, request, route, copy))

    def _send_upstream(self, request: Request) -> None:
        """There is no tier, or none is left: each node asks the registry."""
        upstream, group = self._fleet.upstream, request.group
        self._requests["upstream GET"] += round(group.count)
        flow = self._make_flow(request.blob, [*self._layout.uses_of_upstream(group.site), Use(group.card)])
        flow.on_end, flow.count, flow.position = request.on_end, group.count, request.position
        flow.limit = min(flow.limit, upstream.connection_rate, self._fleet.client.connection_rate)
        wait_s = self._wait_for_window(request.blob, group.count)
        self._call_after(upstream.latency_s + wait_s, partial(self._network.start, flow))

    def _check_tag(self) -> float:
        """The tag is cached: one HEAD upstream, for all that ask at the same time. Returns its seconds."""
        self._requests["upstream HEAD"] += 1
        return self._fleet.upstream.latency_s + self._fleet.hop_s * (len(self._layout.tiers) - 1)

    def _respond(self, request: Request, route: Route, copy: Copy) -> None:
        group, blob = request.group, request.blob
        if route.find_dead(self._now):
            self._retry(request, request.position)
        elif copy.fetch is not None and blob.size <= MAX_VERIFIED_BYTES:
            self._waiting.setdefault(copy, []).append(partial(self._respond, request, route, copy))
        else:
            flow = self._make_flow(blob, [*route.uses, Use(group.card)], route.replica.machine.cpu)
            flow.on_end, flow.count, flow.position = request.on_end, group.count, request.position
            flow.limit = min(flow.limit, self._fleet.client.connection_rate)
            self._read(flow, copy, Transfer(route, lambda: self._retry(request, flow.position)))

    def _retry(self, request: Request, position: float) -> None:
        """Repeat a request, with a Range from the position reached."""
        self._call_after(self._fleet.client.retry_s, partial(self._send, attrs.evolve(request, position=position)))

    # Replicas

    def _open(self, replica: Replica, blob: Blob) -> Copy:
        """The copy of a blob at a replica. If it has none, its download is started."""
        copy = replica.copies.get(blob.key)
        if copy is None:
            copy = replica.copies[blob.key] = Copy(blob, Flow(blob.size, [], lambda: None, limit=0.0))
            self._fetch(replica, copy)
        return copy

    def _fetch(self, replica: Replica, copy: Copy) -> None:
        """Begin or continue the download of a replica: from the bucket, the next tier, or the upstream."""
        site, key, flow = replica.site, copy.blob.key, copy.fetch
        if flow is None or replica.machine.died_at <= self._now:
            return
        if flow.slot is None:
            flow.uses, flow.limit, flow.source = [], 0.0, None
            self._network.start(flow)  # its readers wait
        bucket, upstream, wait_s = self._fleet.bucket, self._fleet.upstream, 0.0
        if site.tier.has_bucket:
            self._requests["bucket GET"] += site.count
            wait_s = bucket.latency_s
            if key in self._in_bucket:
                uses = [Use(self._layout.bucket_out)]
                self._call_after(wait_s, partial(self._receive, replica, copy, uses, None, bucket.connection_rate))
                return
        route = self._layout.find_outer_route(site, key, self._now)
        if route is None:
            self._requests["upstream GET"] += site.count
            wait_s += upstream.latency_s + self._wait_for_window(copy.blob, site.count)
            uses = self._layout.uses_of_upstream(site)
            self._call_after(wait_s, partial(self._receive, replica, copy, uses, None, upstream.connection_rate))
        elif dead := route.find_dead(self._now):
            self._call_at(max(each.detected_at for each in dead), partial(self._fetch, replica, copy))
        else:
            self._requests[f"{site.tier.name} GET"] += site.count
            outer = self._open(route.replica, copy.blob)
            self._call_after(wait_s + self._fleet.hop_s, partial(self._receive_from, replica, copy, route, outer))

    def _receive_from(self, replica: Replica, copy: Copy, route: Route, outer: Copy) -> None:
        """Let the bytes of a download flow from a replica of the next tier."""
        if route.find_dead(self._now):
            self._fetch(replica, copy)
        elif outer.fetch is not None and copy.blob.size <= MAX_VERIFIED_BYTES:
            again = partial(self._receive_from, replica, copy, route, outer)
            self._waiting.setdefault(outer, []).append(again)
        else:
            transfer = Transfer(route, partial(self._fetch, replica, copy))
            self._receive(replica, copy, route.uses, route.replica.machine.cpu, math.inf, transfer, outer)

    def _receive(
        self,
        replica: Replica,
        copy: Copy,
        uses: Sequence[Use],
        cpu: Link | None,
        limit: float,
        transfer: Transfer | None = None,
        outer: Copy | None = None,
    ) -> None:
        """Let the bytes of a download flow; `cpu` is that of the replica that sends them."""
        flow, machine, site = copy.fetch, replica.machine, replica.site
        if flow is None or flow.slot is None or machine.died_at <= self._now:
            return
        self._network.stop(flow)
        made = self._make_flow(copy.blob, [*uses, Use(machine.received)], cpu)
        flow.uses, flow.weight, flow.limit = made.uses, made.weight, min(made.limit, limit)
        if machine.cpu and self._costs.fetch_s:
            flow.uses = [*flow.uses, Use(machine.cpu, self._costs.fetch_s)]
        flow.count = site.count
        flow.on_end = partial(self._end_fetch, copy)
        if transfer is not None and outer is not None:
            self._read(flow, outer, transfer)
        else:
            self._network.start(flow)
        if site.tier.has_bucket and copy.blob.key not in self._in_bucket and not flow.position:
            self._publish(replica, copy)

    def _end_fetch(self, copy: Copy) -> None:
        for reader in copy.readers:
            if reader.source is copy.fetch:
                self._network.change_source(reader, None)
        copy.fetch = None
        copy.readers.clear()
        for call in self._waiting.pop(copy, []):
            call()

    def _publish(self, replica: Replica, copy: Copy) -> None:
        """Upload a blob to the bucket while it is fetched."""
        self._requests["bucket PUT"] += replica.site.count
        flow = self._make_flow(copy.blob, [Use(replica.machine.sent), Use(self._layout.bucket_in)])
        flow.on_end, flow.count = partial(self._in_bucket.add, copy.blob.key), replica.site.count
        flow.limit = min(flow.limit, self._fleet.bucket.connection_rate)
        route = Route(replica, [replica.machine], flow.uses)
        self._read(flow, copy, Transfer(route, lambda: None))

    def _make_flow(self, blob: Blob, uses: Sequence[Use], cpu: Link | None = None) -> Flow:
        """A flow of a blob over links, and the processors of the replica that sends it.

        A manifest needs these only: the same share of them as a layer.
        """
        hit_s = self._costs.hit_s
        if not blob.is_manifest:
            return Flow(blob.size, [*uses, Use(cpu, hit_s)] if cpu and hit_s else list(uses), lambda: None)
        per_byte = (blob.request_cpu_s or 0.0) / blob.size
        if not cpu or not per_byte:
            return Flow(blob.size, [], lambda: None, limit=AT_ONCE)
        return Flow(blob.size, [Use(cpu, per_byte)], lambda: None, weight=hit_s / per_byte if hit_s else 1.0)

    def _read(self, flow: Flow, copy: Copy, transfer: Transfer) -> None:
        """Start a flow from a copy."""
        flow.source = copy.fetch
        if copy.fetch is not None:
            copy.readers.append(flow)
        crossing = transfer.route.replica.site.tier.crosses_zones
        self._crossing_bytes += crossing * flow.count * (flow.size - flow.position)
        self._transfers[flow] = transfer
        self._network.start(flow)

    def _wait_for_window(self, blob: Blob, pulls: float) -> float:
        """Seconds until the registry admits these pulls; of a group of nodes, the last one counts."""
        upstream = self._fleet.upstream
        if blob is not self._tag or upstream.pulls is None:
            return 0.0
        if self._now >= self._window_began_at + upstream.window_s:
            self._window_began_at, self._pulls_in_window = self._now, 0.0
        self._pulls_in_window += pulls
        windows = math.ceil(self._pulls_in_window / upstream.pulls) - 1
        return max(0.0, self._window_began_at + windows * upstream.window_s - self._now)

    # Failures

    def _fail(self, failure: Failure) -> None:
        victims = self._layout.find_victims(failure)
        for machine in victims:
            machine.died_at, machine.detected_at = self._now, self._now + failure.detection_s
        cut = [flow for flow, each in self._transfers.items() if any(one in victims for one in each.route.machines)]
        transfers = [self._transfers.pop(flow) for flow in cut]
        for flow, transfer in zip(cut, transfers, strict=True):
            self._network.stop(flow)
            crossing = transfer.route.replica.site.tier.crosses_zones
            self._crossing_bytes -= crossing * flow.count * (flow.size - flow.position)
        waiting = []
        for replica in (each for site in self._layout.sites() for each in site.replicas):
            if replica.machine in victims:
                for copy in replica.copies.values():
                    if copy.fetch is not None and copy.fetch.slot is not None:
                        self._network.stop(copy.fetch)
                        self._transfers.pop(copy.fetch, None)
                    waiting += self._waiting.pop(copy, [])
        for call in (*waiting, *(transfer.on_cut for transfer in transfers)):
            self._call_after(failure.detection_s, call)

    # After the pull

    def _result(self) -> Result:
        if any(len(group.ended_at) < len(self._blobs) for group in self._groups):
            raise ValueError("some nodes wait for something that does not come")
        measured = zip(self._network.links, self._network.carried, self._network.peak, strict=True)
        return Result(
            [Completion(group.count, group.began_at, self._find_end(group)) for group in self._groups],
            [Load(link.name, link.count, link.rate, carried, peak / link.rate) for link, carried, peak in measured],
            self._requests,
            self._crossing_bytes,
        )

    def _find_end(self, group: Group) -> float:
        """When the nodes have the image, unpacked in the order of the layers if that is part of the times."""
        rate, end = self._fleet.client.unpack_rate, 0.0
        for blob in self._blobs:
            end = max(end, group.ended_at[blob.key]) + (blob.size / rate if rate else 0.0)
        return end

"""The acts of the scenario: what is done to a running fleet, and what must hold.

Each act returns what its nodes saw. Its `broken` promises are those that did not hold: every pull is right, if need be
after a retry; no complete response has wrong bytes; the registry is asked once for a layer, and again only where it, or
a replica, stops during the download.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import attrs

from tests.scenario.herd import Herd, run_herd
from tests.scenario.layout import PREFIX, Layout, UpstreamRequests, sizes_of
from tests.scenario.nodes import Node, Pull
from tests.scenario.real_clients import ContainerdNode, open_containerd, pull_with_crane
from tests.support.images import PushedImage
from tests.support.networks import Traffic
from tests.support.processes import POLL_S, SetupError

STARTED_SHARE = 0.25  # of the bytes of a herd, when something is killed
KIB = 1024
WAVE_LAYERS = [2048 * KIB, 1024 * KIB, 256 * KIB]
WAVE_IMAGES = 16
NEW_IMAGE_S = 3.0  # between two images that become known to the nodes
PAUSE_S = 0.5  # of a node between two pulls
WAIT_LIMIT_S = 300.0


@attrs.frozen
class Act:
    """What was seen in an act. `sizes` are those of the layers and configurations that are new in it."""

    name: str
    title: str
    pulls: Sequence[Pull]
    traffic: Mapping[str, Traffic]
    upstream: UpstreamRequests
    took_s: float
    sizes: Mapping[str, int]
    broken: Sequence[str]


class Stage:
    """A running fleet with its images; its methods are the acts. `clients` are the real ones, as far as available."""

    def __init__(self, layout: Layout, layers: Sequence[int], down_s: float, clients: Mapping[str, Path]) -> None:
        self._layout = layout
        self._down_s = down_s  # how long the region, and the registry, are down
        self._layers = layers
        self._clients = clients
        self._cached = self._push("herd")
        self._is_cached = False

    def herd(self) -> list[Act]:
        """All nodes pull a new image at once."""
        herd = run_herd(self._layout, self._cached)
        self._is_cached = True
        return [self._make_act("herd", "a new image, all nodes at once", herd, new=[self._cached])]

    def again(self) -> list[Act]:
        """All nodes pull the same image again."""
        self._need_cached()
        herd = run_herd(self._layout, self._cached)
        return [self._make_act("again", "the same image again", herd, max_gets=0, max_retries=0)]

    def crane(self) -> list[Act]:
        """crane, a real client, pulls the image in one node of each zone."""
        if "crane" not in self._clients:
            return []
        self._need_cached()
        nodes = [self._layout.nodes_of(group)[0] for group in self._layout.zones or self._layout.groups]
        crane, image = self._clients["crane"], self._cached
        measured = self._measure(lambda: [pull_with_crane(crane, node, image) for node in nodes])
        return [self._make_act("crane", "crane pulls it in one node of each zone", measured, max_gets=0)]

    def restart(self) -> list[Act]:
        """All replicas are restarted, one after the other, while nodes pull new and cached images."""
        images = [self._push(f"wave-{number}", WAVE_LAYERS) for number in range(WAVE_IMAGES)]

        def restart_all() -> list[Pull]:
            wave = Wave(self._layout.nodes, images)
            try:
                for group in self._layout.groups:
                    for replica in group.replicas:
                        group.restart(replica)
            finally:
                pulls = wave.stop()
            return pulls

        title = f"each of {sum(len(group.replicas) for group in self._layout.groups)} replicas restarted, during pulls"
        return [self._make_act("restart", title, self._measure(restart_all), new=images, max_gets=2)]

    def zone(self) -> list[Act]:
        """All replicas and the balancer of a zone are killed in the middle of a herd; its nodes ask the region."""
        zone, image = self._layout.zones[0], self._push("zone")
        nodes = self._layout.nodes_of(zone)
        real: list[Pull] = []
        with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as pool:
            client = self._open_containerd(nodes[-1], stack)

            def kill() -> None:
                pull = pool.submit(client.pull, image) if client else None
                self._when_received(image, nodes, zone.kill)
                if pull is not None:
                    real.append(pull.result())

            herd = run_herd(self._layout, image, kill)
        zone.start()
        title = f"{zone.name} killed in the middle of a herd" + (", in which containerd takes part" if real else "")
        return [self._make_act("zone", title, attrs.evolve(herd, pulls=[*herd.pulls, *real]), new=[image])]

    def _open_containerd(self, node: Node, stack: contextlib.ExitStack) -> ContainerdNode | None:
        """Start containerd on a node if it is available, until the stack is closed."""
        if not {"containerd", "ctr"} <= self._clients.keys():
            return None
        return stack.enter_context(open_containerd(self._clients["containerd"], self._clients["ctr"], node))

    def region(self) -> list[Act]:
        """All replicas of the region are killed while they fetch the image of a herd, and started again."""
        region, image = self._layout.region, self._push("region")

        def kill() -> None:
            region.kill_replicas()
            time.sleep(self._down_s)  # what it takes to start them again
            region.start_replicas()

        herd = run_herd(self._layout, image, lambda: self._when_sent(image, kill))
        region.wait_until_used()
        title = f"all replicas of the region killed while they fetch, for {self._down_s:g} s"
        # A layer goes to the replica that is up first, then back to its own: each may fetch it, and one was killed.
        max_gets = 1 + len(region.replicas)
        return [self._make_act("region", title, herd, new=[image], max_gets=max_gets)]

    def outage(self) -> list[Act]:
        """The registry is down: while a herd is running, while nodes pull what is cached, and when a herd begins."""
        running, late = self._push("running"), self._push("late")

        def cut() -> None:
            with self._layout.stopped_registry():
                time.sleep(self._down_s)

        herd = run_herd(self._layout, running, lambda: self._when_sent(running, cut))
        title = f"the registry killed in the middle of a herd, for {self._down_s:g} s"
        acts = [self._make_act("outage", title, herd, new=[running], max_gets=2)]
        self._need_cached()
        self._layout.registry.stop()
        cached = run_herd(self._layout, self._cached)
        title = "a cached image, while the registry is down"
        acts.append(self._make_act("outage, cached", title, cached, max_gets=0, max_retries=0))

        def start_again() -> None:
            time.sleep(self._down_s)
            self._layout.start_registry()

        herd = run_herd(self._layout, late, start_again)
        title = f"a new image, {self._down_s:g} s before the registry is started again"
        acts.append(self._make_act("outage, new", title, herd, new=[late]))
        return acts

    def _push(self, name: str, layers: Sequence[int] | None = None) -> PushedImage:
        return self._layout.push("v1", self._layers if layers is None else layers, repository=f"team/{name}")

    def _need_cached(self) -> None:
        """Let the nodes pull the image that is to be cached, unless they have."""
        if not self._is_cached:
            self.herd()

    def _when_received(self, image: PushedImage, nodes: Sequence[Node], act: Callable[[], None]) -> None:
        """Act when these nodes have received a share of the image."""
        before = sum(node.received for node in nodes)
        self._wait_for_share(image, lambda: (sum(node.received for node in nodes) - before) / len(nodes))
        act()

    def _when_sent(self, image: PushedImage, act: Callable[[], None]) -> None:
        """Act when the registry has sent a share of the image."""
        before = self._layout.traffic()["registry"].sent
        self._wait_for_share(image, lambda: self._layout.traffic()["registry"].sent - before)
        act()

    def _wait_for_share(self, image: PushedImage, count: Callable[[], float]) -> None:
        wanted = STARTED_SHARE * sum(sizes_of(image).values())
        deadline = time.monotonic() + WAIT_LIMIT_S
        while count() < wanted:
            if time.monotonic() > deadline:
                raise SetupError(f"less than a quarter of {image.repository} was sent in {WAIT_LIMIT_S:.0f} s")
            time.sleep(POLL_S)

    def _measure(self, run: Callable[[], list[Pull]]) -> Herd:
        """Run something that returns pulls, with what the links and the registry see meanwhile."""
        self._layout.clear_requests()
        before, began_at = self._layout.traffic(), time.monotonic()
        pulls = run()
        took_s = time.monotonic() - began_at
        after = self._layout.traffic()
        traffic = {name: after[name] - before[name] for name in after}
        return Herd(self._cached, pulls, traffic, self._layout.requests(), took_s)

    def _make_act(
        self,
        name: str,
        title: str,
        seen: Herd,
        *,
        new: Sequence[PushedImage] = (),
        max_gets: int = 1,
        max_retries: int | None = None,
    ) -> Act:
        """Check the promises (`find_broken`); `new` are the images that nobody has pulled before."""
        broken = find_broken(seen.pulls, seen.upstream, max_gets, max_retries)
        return Act(name, title, seen.pulls, seen.traffic, seen.upstream, seen.took_s, sizes_of(*new), broken)


def find_broken(
    pulls: Sequence[Pull], upstream: UpstreamRequests, max_gets: int, max_retries: int | None = None
) -> list[str]:
    """Return a line for each broken promise: failed pulls, and requests that are too many.

    `max_gets` is of the registry for each blob, `max_retries` of all pulls together, None is any number.
    """
    broken = [f"{pull.node}: {pull.image}: {pull.problem}" for pull in pulls if pull.problem]
    broken += [
        f"the registry was asked {count} times for {digest}; promised: at most {max_gets}"
        for digest, count in upstream.blob_gets.items()
        if count > max_gets
    ]
    retries = sum(pull.retries for pull in pulls)
    if max_retries is not None and retries > max_retries:
        broken.append(f"{retries} requests of clients failed; promised: at most {max_retries}")
    return broken


class Wave:
    """Nodes that pull one image after the other: in turn the newest, and an older one. More become known over time."""

    def __init__(self, nodes: Sequence[Node], images: Sequence[PushedImage]) -> None:
        self._images = images
        self._began_at = time.monotonic()
        self._is_enough = threading.Event()
        self._pulls: list[Pull] = []
        self._threads = [threading.Thread(target=self._pull_on, args=(node,), daemon=True) for node in nodes]
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[Pull]:
        """Wait for the pulls that have begun; return all."""
        self._is_enough.set()
        for thread in self._threads:
            thread.join()
        return self._pulls

    def _pull_on(self, node: Node) -> None:
        random = Random(node.name)
        is_newest = True
        while not self._is_enough.is_set():
            known = self._images[: 1 + int((time.monotonic() - self._began_at) / NEW_IMAGE_S)]
            self._pulls.append(node.pull(PREFIX, known[-1] if is_newest else random.choice(known)))
            is_newest = not is_newest
            self._is_enough.wait(PAUSE_S * 2 * random.random())


ACTS: Mapping[str, Callable[[Stage], list[Act]]] = {
    "herd": Stage.herd,
    "again": Stage.again,
    "crane": Stage.crane,
    "restart": Stage.restart,
    "zone": Stage.zone,
    "region": Stage.region,
    "outage": Stage.outage,
}

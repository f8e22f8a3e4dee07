"""The workloads: what is done to each peer in a round, and the numbers that come of it.

A workload prepares once per round what all peers are asked, so that each peer gets the same bytes; what must be warm is
read before, every byte checked, with the clock off.
"""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from bench.peers.contestants import Peer
from bench.peers.load import check, discard, wrk
from bench.peers.origin import Upstream
from bench.peers.programs import Programs
from bench.peers.truth import REPOSITORY, Blob, Image, Truth

MIB = 2**20
GIB = 2**30
QUIET_SHARE = 0.02  # of one core
QUIET_LOOK_S = 0.25
QUIET_LIMIT_S = 20.0

Values = dict[str, float]


@attrs.frozen
class Sizes:
    """How much is moved, and for how long."""

    warm_bytes: int = 256 * MIB
    warm_times: int = 8
    herd_bytes: int = 64 * MIB
    herd_clients: int = 64
    wrk_s: float = 5.0
    wrk_connections: int = 32
    images: int = 20
    cold_bytes: int = 64 * MIB
    cold_clients: int = 200
    distinct: int = 100
    distinct_bytes: int = 8 * MIB
    delay_s: float = 0.02
    bytes_per_s: float = 200 * MIB


@attrs.define(eq=False)
class Place:
    """What the workloads work with."""

    upstream: Upstream
    truth: Truth
    programs: Programs
    directory: Path
    sizes: Sizes
    tell: Callable[[str], None]
    numbers: "itertools.count[int]" = attrs.field(factory=itertools.count)

    def quieten(self, peer: Peer) -> None:
        """Wait until a peer has nothing more to do, or long enough."""
        deadline = time.monotonic() + QUIET_LIMIT_S
        used_s = peer.group.cpu_s()
        while time.monotonic() < deadline:
            time.sleep(QUIET_LOOK_S)
            used_before_s, used_s = used_s, peer.group.cpu_s()
            if used_s - used_before_s < QUIET_SHARE * QUIET_LOOK_S:
                return


class Workload(ABC):
    """One way to load a peer. `key` is its name on the command line; `fresh` has peers of their own."""

    key = ""
    title = ""
    peers_without: frozenset[str] = frozenset()

    @abstractmethod
    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        """Make what this round's peers are asked; warm and check what must be warm."""

    @abstractmethod
    def run(self, place: Place, peer: Peer) -> Values:
        """Load one peer and return its numbers."""


class WarmBlob(Workload):
    """A blob that every peer has."""

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.key = f"warm-blob-{clients}"
        self.title = f"Warm blob, {clients} client{'s' * (clients > 1)}"
        self._blob: Blob | None = None
        self._warm: set[int] = set()

    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        if self._blob is None:
            size = place.sizes.warm_bytes if self.clients == 1 else place.sizes.herd_bytes
            self._blob = place.truth.add_blob(size)
        for peer in peers:
            if id(peer) not in self._warm:
                for _ in range(2):
                    check(peer.port, peer.path("blobs", REPOSITORY, self._blob.digest), self._blob)
                self._warm.add(id(peer))

    def run(self, place: Place, peer: Peer) -> Values:
        assert self._blob is not None
        times = place.sizes.warm_times if self.clients == 1 else 1
        ask = [(peer.path("blobs", REPOSITORY, self._blob.digest), self._blob.size)] * times
        place.quieten(peer)
        peer.group.restart_peaks()
        used_s = peer.group.cpu_s()
        result = discard(peer.port, [ask] * self.clients)
        used_s = peer.group.cpu_s() - used_s
        gib = result["received"] / GIB
        memory = peer.group.memory()
        return {
            "MiB/s": result["received"] / MIB / result["wall_s"],
            "CPU s/GiB": used_s / gib,
            "client CPU s/GiB": result["client_cpu_s"] / gib,
            "peak MiB": memory.peak_sum / MIB,
            "largest process MiB": memory.peak_largest / MIB,
        }


class WarmManifest(Workload):
    """Manifests that every peer has, by digest or by tag."""

    peers_without = frozenset({"nginx-static"})

    def __init__(self, by: str) -> None:
        self.by = by
        self.key = f"warm-manifest-{by}"
        self.title = f"Warm manifests by {by}"
        self._images: list[Image] = []
        self._warm: set[int] = set()

    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        if not self._images:
            self._images = [
                place.truth.add_image(f"{self.key}-{number}", (1024,)) for number in range(place.sizes.images)
            ]
        for peer in peers:
            if id(peer) not in self._warm:
                for image, _ in itertools.product(self._images, range(2)):
                    check(peer.port, peer.path("manifests", REPOSITORY, self._reference(image)), image.index)
                self._warm.add(id(peer))

    def _reference(self, image: Image) -> str:
        return image.index.digest if self.by == "digest" else image.tag

    def run(self, place: Place, peer: Peer) -> Values:
        paths = [peer.path("manifests", REPOSITORY, self._reference(image)) for image in self._images]
        place.quieten(peer)
        place.upstream.forget()
        used_s = peer.group.cpu_s()
        rate = wrk(
            place.programs.need("wrk"),
            peer.port,
            paths,
            place.sizes.wrk_s,
            place.sizes.wrk_connections,
            place.directory,
        )
        used_s = peer.group.cpu_s() - used_s
        asked = place.upstream.asked(containing="/manifests/")
        return {
            "requests/s": rate.requests / rate.wall_s,
            "CPU us/request": used_s / rate.requests * 1e6,
            "median ms": rate.median_s * 1e3,
            "p99 ms": rate.p99_s * 1e3,
            "upstream requests per 1000": (asked.gets + asked.heads) / rate.requests * 1e3,
            "client CPU us/request": rate.client_cpu_s / rate.requests * 1e6,
        }


def every(sizes: Sizes) -> list[Workload]:
    """All workloads, in the order of the tables."""
    return [
        WarmBlob(1),
        WarmBlob(sizes.herd_clients),
        WarmManifest("digest"),
        WarmManifest("tag"),
    ]

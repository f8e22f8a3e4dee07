"""What every peer has already: a blob, manifests."""

from collections.abc import Sequence

from bench.peers.contestants import Peer
from bench.peers.load import discard, wrk
from bench.peers.place import GIB, MIB, Place, Values, Workload
from bench.peers.truth import REPOSITORY, Blob, Image


class WarmBlob(Workload):
    """A blob, by one client again and again, or by many at once."""

    without = frozenset()
    has_store = True

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
                place.warm(peer, "blobs", self._blob.digest, self._blob)
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
    """Manifests, by digest or by tag."""

    has_store = True

    def __init__(self, by: str) -> None:
        self.by = by
        self.key = f"warm-manifest-{by}"
        self.title = f"Warm manifests by {by}"
        self._images: list[Image] = []
        self._warm: set[int] = set()

    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        if not self._images:
            number = place.number()
            tags = [f"warm-{number}-{image}" for image in range(place.sizes.images)]
            self._images = [place.truth.add_image(tag, (1024,)) for tag in tags]
        for peer in peers:
            if id(peer) not in self._warm:
                for image in self._images:
                    place.warm(peer, "manifests", self._reference(image), image.index)
                self._warm.add(id(peer))

    def _reference(self, image: Image) -> str:
        return image.index.digest if self.by == "digest" else image.tag

    def run(self, place: Place, peer: Peer) -> Values:
        sizes = place.sizes
        paths = [peer.path("manifests", REPOSITORY, self._reference(image)) for image in self._images]
        program = place.programs.need("wrk")
        place.quieten(peer)
        place.upstream.forget()
        used_s = peer.group.cpu_s()
        rate = wrk(program, peer.port, paths, sizes.wrk_s, sizes.wrk_connections, place.directory)
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

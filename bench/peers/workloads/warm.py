"""Workloads with content that is cached: a blob, manifests."""

from collections.abc import Sequence

from bench.peers.caches import CacheServer
from bench.peers.content import REPOSITORY, Blob, Image
from bench.peers.load import discard, wrk
from bench.peers.workload import GIB, MIB, Environment, Values, Workload


class WarmBlob(Workload):
    """A blob, read repeatedly by one client, or by many at once."""

    without = frozenset()
    has_store = True

    def __init__(self, clients: int) -> None:
        self.clients = clients
        self.key = f"warm-blob-{clients}"
        self.title = f"Warm blob, {clients} client{'s' * (clients > 1)}"
        self._blob: Blob | None = None
        self._warm: set[int] = set()

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        if self._blob is None:
            size = environment.sizes.warm_bytes if self.clients == 1 else environment.sizes.concurrent_bytes
            self._blob = environment.content.add_blob(size)
        for cache in caches:
            if id(cache) not in self._warm:
                environment.warm(cache, "blobs", self._blob.digest, self._blob)
                self._warm.add(id(cache))

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        assert self._blob is not None
        times = environment.sizes.warm_times if self.clients == 1 else 1
        downloads = [(cache.path("blobs", REPOSITORY, self._blob.digest), self._blob.size)] * times
        environment.wait_until_idle(cache)
        cache.group.reset_peaks()
        used_s = cache.group.cpu_s()
        result = discard(cache.port, [downloads] * self.clients)
        used_s = cache.group.cpu_s() - used_s
        gib = result["received"] / GIB
        memory = cache.group.memory()
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

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        if not self._images:
            number = environment.number()
            tags = [f"warm-{number}-{image}" for image in range(environment.sizes.images)]
            self._images = [environment.content.add_image(tag, (1024,)) for tag in tags]
        for cache in caches:
            if id(cache) not in self._warm:
                for image in self._images:
                    environment.warm(cache, "manifests", self._reference(image), image.index)
                self._warm.add(id(cache))

    def _reference(self, image: Image) -> str:
        return image.index.digest if self.by == "digest" else image.tag

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        sizes = environment.sizes
        paths = [cache.path("manifests", REPOSITORY, self._reference(image)) for image in self._images]
        program = environment.programs.need("wrk")
        environment.wait_until_idle(cache)
        environment.upstream.reset_counts()
        used_s = cache.group.cpu_s()
        rate = wrk(program, cache.port, paths, sizes.wrk_s, sizes.wrk_connections, environment.directory)
        used_s = cache.group.cpu_s() - used_s
        counts = environment.upstream.count_requests(containing="/manifests/")
        return {
            "requests/s": rate.requests / rate.wall_s,
            "CPU us/request": used_s / rate.requests * 1e6,
            "median ms": rate.median_s * 1e3,
            "p99 ms": rate.p99_s * 1e3,
            "upstream requests per 1000": (counts.gets + counts.heads) / rate.requests * 1e3,
            "client CPU us/request": rate.client_cpu_s / rate.requests * 1e6,
        }

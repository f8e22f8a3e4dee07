"""Workloads with content that is cached: blobs over new and over reused connections, small blobs, manifests, HEAD."""

from collections.abc import Sequence
from typing import Literal

from bench.peers.caches import DEFAULT, CacheServer, Variant
from bench.peers.content import REPOSITORY, Blob, Image
from bench.peers.load import discard, wrk
from bench.peers.workload import GIB, MIB, Environment, Values, Workload

CACHES_WITHOUT_MANIFESTS = frozenset({"nginx-static"})


class WarmWorkload(Workload):
    """A workload whose content every cache has before it is measured."""

    def __init__(self) -> None:
        self._warm: set[int] = set()

    def _warm_up(
        self, environment: Environment, caches: Sequence[CacheServer], contents: Sequence[tuple[str, str, Blob]]
    ) -> None:
        """Read contents (kind, reference, bytes) through each cache that has not done it yet, and verify them."""
        for cache in caches:
            if id(cache) not in self._warm:
                for kind, reference, blob in contents:
                    environment.warm(cache, kind, reference, blob)
                self._warm.add(id(cache))


class WarmBlob(WarmWorkload):
    """A blob, read repeatedly by one client, or by several at once.

    Over a reused connection, as clients of registries do it, each client first gets a manifest and then the blob
    `times` times, with one connection for as long as the server keeps it. Otherwise each download has a new connection.
    """

    without = frozenset()

    def __init__(
        self, key: str, clients: int, size: int, times: int, *, is_reused: bool, variant: Variant = DEFAULT
    ) -> None:
        super().__init__()
        self.key, self.variant = key, variant
        self.has_store = not is_reused
        self._clients, self._size, self._times, self._is_reused = clients, size, times, is_reused
        self._image: Image | None = None
        how = "reused connections" if is_reused else "a new connection for each"
        if variant.tls:
            how += ", TLS"
        if variant.front:
            how += f", {'HAProxy' if variant.front == 'haproxy' else variant.front} in front"
            self.programs = (variant.front,)
            self.without = CACHES_WITHOUT_MANIFESTS
        self.title = f"Warm blob, {clients} client{'s' * (clients > 1)}, {how}"

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        if self._image is None:
            self._image = environment.content.add_image(f"{self.key}-{environment.number()}", (self._size,))
        (layer,), index = self._image.layers, self._image.index
        contents = [("blobs", layer.digest, layer)]
        if self._is_reused:
            contents.append(("manifests", index.digest, index))
        self._warm_up(environment, caches, contents)

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        assert self._image is not None
        (layer,) = self._image.layers
        downloads = [(cache.path("blobs", REPOSITORY, layer.digest), layer.size)] * self._times
        if self._is_reused:
            index = self._image.index
            downloads.insert(0, (cache.path("manifests", REPOSITORY, index.digest), index.size))
        environment.wait_until_idle(cache)
        cache.group.reset_peaks()
        used_s = cache.group.cpu_s()
        is_fresh = not self._is_reused
        result = discard(cache.port, [downloads] * self._clients, is_fresh=is_fresh, is_tls=cache.is_tls)
        used_s = cache.group.cpu_s() - used_s
        gib = result["received"] / GIB
        memory = cache.group.memory()
        return {
            "MiB/s": result["received"] / MIB / result["wall_s"],
            "CPU s/GiB": used_s / gib,
            "client CPU s/GiB": result["client_cpu_s"] / gib,
            "connections": result["connections"],
            "peak MiB": memory.peak_sum / MIB,
            "largest process MiB": memory.peak_largest / MIB,
        }


class SmallBlobs(WarmWorkload):
    """Blobs of one size, over connections that wrk keeps as long as the server does."""

    without = frozenset()
    programs = ("wrk",)

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.key = f"warm-small-{name}"
        self.title = f"Warm blobs of {_size(size)}, keep-alive connections"
        self._size = size
        self._blobs: list[Blob] = []

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        if not self._blobs:
            self._blobs = [environment.content.add_blob(self._size) for _ in range(environment.sizes.images)]
        self._warm_up(environment, caches, [("blobs", blob.digest, blob) for blob in self._blobs])

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        return _request(environment, cache, [cache.path("blobs", REPOSITORY, blob.digest) for blob in self._blobs])


class WarmManifest(WarmWorkload):
    """Manifests, by digest or by tag."""

    programs = ("wrk",)

    def __init__(self, key: str, by: Literal["digest", "tag"], variant: Variant = DEFAULT) -> None:
        super().__init__()
        self.by, self.key, self.variant = by, key, variant
        self.has_store = variant == DEFAULT
        setting = f", check_interval {variant.check_interval} in Dockyard" if variant.check_interval else ""
        self.title = f"Warm manifests by {by}{setting}"
        self._images: list[Image] = []

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        environment.upstream.set_link()
        if not self._images:
            number = environment.number()
            tags = [f"warm-{number}-{image}" for image in range(environment.sizes.images)]
            self._images = [environment.content.add_image(tag, (1024,)) for tag in tags]
        contents = [("manifests", self._reference(image), image.index) for image in self._images]
        self._warm_up(environment, caches, contents)

    def _reference(self, image: Image) -> str:
        return image.index.digest if self.by == "digest" else image.tag

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        paths = [cache.path("manifests", REPOSITORY, self._reference(image)) for image in self._images]
        return _request(environment, cache, paths)


class Head(WarmWorkload):
    """HEAD of manifests and of blobs by digest. The client is not wrk, which waits for a body."""

    def __init__(self, kind: Literal["manifests", "blobs"]) -> None:
        super().__init__()
        self.key = f"warm-head-{kind.removesuffix('s')}"
        self.title = f"HEAD of {kind} by digest, reused connections"
        self._kind = kind
        if kind == "blobs":
            self.without = frozenset()
        self._images: list[Image] = []

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        if not self._images:
            number = environment.number()
            tags = [f"head-{number}-{image}" for image in range(environment.sizes.images)]
            self._images = [environment.content.add_image(tag, (MIB,)) for tag in tags]
        self._warm_up(environment, caches, [(self._kind, blob.digest, blob) for blob in self._blobs()])

    def _blobs(self) -> list[Blob]:
        return [image.index if self._kind == "manifests" else image.layers[0] for image in self._images]

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        sizes = environment.sizes
        requests = [(cache.path(self._kind, REPOSITORY, blob.digest), blob.size) for blob in self._blobs()]
        count = max(1, sizes.head_requests // sizes.wrk_connections)
        repeated = (requests * -(-count // len(requests)))[:count]
        environment.wait_until_idle(cache)
        environment.upstream.reset_counts()
        used_s = cache.group.cpu_s()
        result = discard(cache.port, [repeated] * sizes.wrk_connections, method="HEAD")
        used_s = cache.group.cpu_s() - used_s
        counts = environment.upstream.count_requests()
        total = count * sizes.wrk_connections
        times_s = sorted(result["first_byte_s"])
        return {
            "requests/s": total / result["wall_s"],
            "CPU us/request": used_s / total * 1e6,
            "median ms": times_s[total // 2] * 1e3,
            "p99 ms": times_s[total * 99 // 100] * 1e3,
            "upstream requests per 1000": (counts.gets + counts.heads) / total * 1e3,
            "client CPU us/request": result["client_cpu_s"] / total * 1e6,
            "connections": result["connections"],
        }


def _request(environment: Environment, cache: CacheServer, paths: Sequence[str]) -> Values:
    """Request the paths in turn with wrk."""
    sizes = environment.sizes
    program = environment.programs.need("wrk")
    environment.wait_until_idle(cache)
    environment.upstream.reset_counts()
    used_s = cache.group.cpu_s()
    rate = wrk(program, cache.port, paths, sizes.wrk_s, sizes.wrk_connections, environment.directory)
    used_s = cache.group.cpu_s() - used_s
    counts = environment.upstream.count_requests()
    return {
        "requests/s": rate.requests / rate.wall_s,
        "CPU us/request": used_s / rate.requests * 1e6,
        "median ms": rate.median_s * 1e3,
        "p99 ms": rate.p99_s * 1e3,
        "upstream requests per 1000": (counts.gets + counts.heads) / rate.requests * 1e3,
        "client CPU us/request": rate.client_cpu_s / rate.requests * 1e6,
    }


def _size(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // 1024} KiB"

"""Workloads with content that is not cached: one layer and many clients, many layers, an image with a real client."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.peers.caches import CacheServer
from bench.peers.content import REPOSITORY, Blob, Image
from bench.peers.load import LoadError, check, discard
from bench.peers.workload import GIB, MIB, Environment, Link, Values, Workload
from bench.peers.workloads.image_clients import ImageClient
from tests.support.image_clients import ClientError

DIRECT = f"/v2/{REPOSITORY}/blobs/"


class ColdLayer(Workload):
    """One new layer and many clients at once, compared with one client of the upstream itself."""

    has_store = True

    def __init__(self, name: str, clients: int, size: int, link: Link, limit_s: float) -> None:
        self.key = name
        self.title = f"Cold layer of {size // MIB} MiB, {clients} client{'s' * (clients > 1)}, line {link}"
        self._clients, self._size, self._link, self._limit_s = clients, size, link, limit_s
        self._blob: Blob | None = None
        self._direct_s = 0.0

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        if self._blob is not None:
            environment.content.remove(self._blob)
        self._blob = environment.content.add_blob(self._size)
        self._link.apply(environment.upstream)
        direct = discard(environment.upstream.port, [[(DIRECT + self._blob.digest, self._size)]])
        self._direct_s = direct["wall_s"]

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        assert self._blob is not None
        path = cache.path("blobs", REPOSITORY, self._blob.digest)
        environment.wait_until_idle(cache)
        self._link.apply(environment.upstream)
        environment.upstream.reset_counts()
        used_s, store_s = cache.group.cpu_s(), environment.store_cpu_s() if environment.store_cpu_s else 0.0
        result = discard(cache.port, [[(path, self._size)]] * self._clients, self._limit_s)
        counts = environment.upstream.count_requests(containing=self._blob.digest)
        environment.wait_until_idle(cache)
        used_s = cache.group.cpu_s() - used_s
        first_byte_times = sorted(at for at in result["first_byte_at"] if at is not None)
        done = [at for at in result["done_at"] if at is not None]
        values = {
            "upstream GETs": counts.gets,
            "upstream bytes / layer": counts.body_bytes / self._size,
            "clients done": len(done),
            "last client s": result["wall_s"],
            "last client / direct": result["wall_s"] / self._direct_s,
            "CPU s/GiB": used_s / (result["received"] / GIB) if result["received"] else 0.0,
            "client CPU s/GiB": result["client_cpu_s"] / (result["received"] / GIB) if result["received"] else 0.0,
            "cut": float(result["was_cut"]),
        }
        if first_byte_times and counts.first_byte_at is not None:
            values["first byte, ms after the upstream's"] = (first_byte_times[0] - counts.first_byte_at) * 1e3
            values["… median client"] = (statistics.median(first_byte_times) - counts.first_byte_at) * 1e3
            values["… last client"] = (first_byte_times[-1] - counts.first_byte_at) * 1e3
        if environment.store_cpu_s is not None:
            values["store CPU s"] = environment.store_cpu_s() - store_s
        if not result["was_cut"]:
            check(cache.port, path, self._blob)
        return values


class DistinctLayers(Workload):
    """Many new layers at once, each with one client."""

    key = "cold-distinct"

    def __init__(self, layers: int, size: int, link: Link) -> None:
        self.title = f"{layers} distinct cold layers of {size // MIB} MiB at once, line {link}"
        self._layers, self._size, self._link = layers, size, link
        self._blobs: list[Blob] = []

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        for blob in self._blobs:
            environment.content.remove(blob)
        self._blobs = [environment.content.add_blob(self._size) for _ in range(self._layers)]

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        paths = [cache.path("blobs", REPOSITORY, blob.digest) for blob in self._blobs]
        environment.wait_until_idle(cache)
        self._link.apply(environment.upstream)
        environment.upstream.reset_counts()
        cache.group.reset_peaks()
        used_s = cache.group.cpu_s()
        result = discard(cache.port, [[(path, self._size)] for path in paths])
        counts = environment.upstream.count_requests(containing="/blobs/")
        environment.wait_until_idle(cache)
        used_s = cache.group.cpu_s() - used_s
        for path, blob in zip(paths, self._blobs, strict=True):
            check(cache.port, path, blob)
        return {
            "upstream GETs": counts.gets,
            "MiB/s": result["received"] / MIB / result["wall_s"],
            "last client s": result["wall_s"],
            "median first byte s": statistics.median(result["first_byte_s"]),
            "CPU s/GiB": used_s / (result["received"] / GIB),
            "peak MiB": cache.group.memory().peak_sum / MIB,
        }


class WholeImage(Workload):
    """An image with an index, pulled by a real client, which verifies every digest: cold, then warm."""

    def __init__(self, key: str, client: type[ImageClient], layers: tuple[int, ...], link: Link) -> None:
        self.key = key
        self.title = f"Image of {len(layers)} layers, {sum(layers) // MIB} MiB, by {client.text}, line {link}"
        self.programs, self.needs_root = client.programs, client.needs_root
        self._client, self._layers, self._link = client, layers, link
        self._image: Image | None = None

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        self._image = environment.content.add_image(f"image-{environment.number()}", self._layers)

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        home = Path(tempfile.mkdtemp(prefix="client-"))  # a short path, for the socket of containerd
        client = self._client([environment.programs.need(name) for name in self.programs], home)
        try:
            return self._run(environment, cache, client)
        finally:
            client.close()
            shutil.rmtree(home, ignore_errors=True)

    def _run(self, environment: Environment, cache: CacheServer, client: ImageClient) -> Values:
        values: Values = {}
        for state in ("cold", "warm"):
            environment.wait_until_idle(cache)
            self._link.apply(environment.upstream)
            environment.upstream.reset_counts()
            values |= {f"{state} {name}": value for name, value in self._pull(cache, client).items()}
            counts = environment.upstream.count_requests()
            values[f"{state} upstream requests"] = counts.gets + counts.heads
            client.wipe()
        return values

    def _pull(self, cache: CacheServer, client: ImageClient) -> Values:
        assert self._image is not None
        reference = f"127.0.0.1:{cache.port}/{cache.prefix}{REPOSITORY}:{self._image.tag}"
        used_s, client_s, began_at = cache.group.cpu_s(), client.cpu_s(), time.monotonic()
        try:
            client.pull(reference)
        except ClientError as exc:
            raise LoadError(str(exc)) from exc
        took_s, client_s = time.monotonic() - began_at, client.cpu_s() - client_s
        used_s = cache.group.cpu_s() - used_s
        layers = {layer.digest for layer in self._image.layers}
        if not layers <= client.digests():
            raise LoadError(f"{client.text}: not all layers of {reference} were pulled")
        return {"s": took_s, "CPU s": used_s, "client CPU s": client_s}

"""Workloads with content that is not cached: one layer and many clients, many layers, an image with a real client."""

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence

from bench.peers.caches import CacheServer
from bench.peers.content import REPOSITORY, Blob, Image
from bench.peers.load import LoadError, check, discard
from bench.peers.workload import GIB, MIB, Environment, Link, Values, Workload
from tests.support.image_clients import environment as client_environment

CRANE_LIMIT_S = 120.0
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
        environment.upstream.set_link(delay_s=self._link.delay_s, bytes_per_s=self._link.bytes_per_s)
        direct = discard(environment.upstream.port, [[(DIRECT + self._blob.digest, self._size)]])
        self._direct_s = direct["wall_s"]

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        assert self._blob is not None
        path = cache.path("blobs", REPOSITORY, self._blob.digest)
        environment.wait_until_idle(cache)
        environment.upstream.set_link(delay_s=self._link.delay_s, bytes_per_s=self._link.bytes_per_s)
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
        environment.upstream.set_link(delay_s=self._link.delay_s, bytes_per_s=self._link.bytes_per_s)
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
    """An image with an index, pulled by crane, which verifies every digest: cold, then warm."""

    key = "image"
    programs = ("crane",)

    def __init__(self, layers: tuple[int, ...], link: Link) -> None:
        self.title = f"Image of {len(layers)} layers, {sum(layers) // MIB} MiB, by crane, line {link}"
        self._layers, self._link = layers, link
        self._image: Image | None = None

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        self._image = environment.content.add_image(f"image-{environment.number()}", self._layers)

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        assert self._image is not None
        environment.wait_until_idle(cache)
        environment.upstream.set_link(delay_s=self._link.delay_s, bytes_per_s=self._link.bytes_per_s)
        environment.upstream.reset_counts()
        values = {f"cold {name}": value for name, value in self._pull(environment, cache).items()}
        counts = environment.upstream.count_requests()
        values["cold upstream requests"] = counts.gets + counts.heads
        environment.wait_until_idle(cache)
        environment.upstream.reset_counts()
        values |= {f"warm {name}": value for name, value in self._pull(environment, cache).items()}
        counts = environment.upstream.count_requests()
        values["warm upstream requests"] = counts.gets + counts.heads
        return values

    def _pull(self, environment: Environment, cache: CacheServer) -> Values:
        assert self._image is not None
        home = environment.directory / "crane"
        home.mkdir()
        target = home / "image"
        reference = f"127.0.0.1:{cache.port}/{cache.prefix}{REPOSITORY}:{self._image.tag}"
        used_s, before, began_at = cache.group.cpu_s(), os.times(), time.monotonic()
        pulled = subprocess.run(
            [environment.programs.need("crane"), "pull", "--format=oci", reference, target],
            env=client_environment(home),
            capture_output=True,
            text=True,
            timeout=CRANE_LIMIT_S,
            check=False,
        )
        took_s, after = time.monotonic() - began_at, os.times()
        used_s = cache.group.cpu_s() - used_s
        size = sum(file.stat().st_size for file in target.glob("blobs/sha256/*"))
        shutil.rmtree(home)
        if pulled.returncode != 0 or size != self._image.size:
            raise LoadError(f"crane: {size} of {self._image.size} bytes: {pulled.stderr.strip()}")
        client_s = after.children_user + after.children_system - before.children_user - before.children_system
        return {"s": took_s, "CPU s": used_s, "client CPU s": client_s}

"""Workloads for the state of a cache: with an unavailable upstream, at the start, idle, and under load."""

import http.client
import statistics
import time
from collections.abc import Sequence
from typing import Literal

from bench.peers.caches import CacheServer
from bench.peers.content import ACCEPT, REPOSITORY, Blob, Image
from bench.peers.load import LoadError, discard
from bench.peers.workload import GIB, MIB, Environment, Values, Workload

RECOVERY_LIMIT_S = 60.0
RECOVERY_POLL_S = 0.02


class DeadUpstream(Workload):
    """A cached tag while the upstream refuses connections, or accepts them and sends nothing."""

    def __init__(self, how: Literal["refuses", "silent"]) -> None:
        self.key = f"dead-{how}"
        what = "connections refused" if how == "refuses" else "connections taken, nothing said"
        self.title = f"Tag while the upstream is dead: {what}"
        self._how = how
        self._images: dict[int, Image] = {}

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        environment.upstream.set_link()
        for cache in caches:
            image = environment.content.add_image(f"dead-{environment.number()}", (1024,))
            environment.warm(cache, "manifests", image.tag, image.index)
            self._images[id(cache)] = image

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        image = self._images[id(cache)]
        path = cache.path("manifests", REPOSITORY, image.tag)
        environment.wait_until_idle(cache)
        if self._how == "refuses":
            environment.upstream.stop()
        else:
            environment.upstream.pause()
        durations_s: list[float] = []
        try:
            while (
                len(durations_s) < environment.sizes.stale_requests
                and sum(durations_s) < environment.sizes.stale_limit_s
            ):
                began_at = time.monotonic()
                is_served = _is_served(cache.port, path, image.index, environment.sizes.stale_limit_s)
                durations_s.append(time.monotonic() - began_at)
                if not is_served:
                    break
        finally:
            if self._how == "refuses":
                environment.upstream.start()
            else:
                environment.upstream.resume()
        back_at = time.monotonic()
        new = environment.content.add_image(f"dead-{environment.number()}", (1024,))
        _wait_for(cache, new)
        values = {
            "served": float(is_served),
            "first ms": durations_s[0] * 1e3,
            "new tag after its return, s": time.monotonic() - back_at,
        }
        if is_served and len(durations_s) > 1:
            values |= {
                "median after ms": statistics.median(durations_s[1:]) * 1e3,
                "slowest after ms": max(durations_s[1:]) * 1e3,
            }
        return values


def _wait_for(cache: CacheServer, image: Image) -> None:
    """Wait until a cache serves a tag that is not cached."""
    path = cache.path("manifests", REPOSITORY, image.tag)
    deadline = time.monotonic() + RECOVERY_LIMIT_S
    while not _is_served(cache.port, path, image.index, RECOVERY_LIMIT_S):
        if time.monotonic() > deadline:
            raise LoadError(f"{path}: not served {RECOVERY_LIMIT_S:.0f} s after the upstream came back")
        time.sleep(RECOVERY_POLL_S)


def _is_served(port: int, path: str, manifest: Blob, limit_s: float) -> bool:
    """Send one request on a new connection; return False for an error or timeout. Raises LoadError for another body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
    try:
        connection.request("GET", path, headers={"Accept": ACCEPT})
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        return False
    if len(body) != manifest.size:
        raise LoadError(f"{path}: {len(body)} bytes, not {manifest.size}")
    return True


class Idle(Workload):
    """A new cache: the time to its first response, and its memory when it is idle."""

    key = "idle"
    title = "Start, and memory at rest"

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        """Do nothing: the caches are new."""

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        fresh = environment.fresh(cache.name)
        try:
            fresh.start()
            environment.wait_until_idle(fresh)
            memory = fresh.group.memory()
            return {
                "first answer s": fresh.started_in_s,
                "processes": memory.processes,
                "resident MiB": memory.resident_sum / MIB,
                "largest process MiB": memory.resident_largest / MIB,
                "private MiB": memory.private_sum / MIB,
                "anonymous, per process, MiB": memory.anonymous_sum / MIB,
            }
        finally:
            fresh.close()


class Loaded(Workload):
    """Many clients of one large new layer: the peak of memory, until the run ends or is stopped."""

    key = "loaded"

    def __init__(self, clients: int, size: int, limit_s: float) -> None:
        text = f"{size / GIB:.0f} GiB" if size >= GIB else f"{size // MIB} MiB"
        self.title = f"Memory under {clients} clients on a cold layer of {text}, cut after {limit_s:.0f} s"
        self._clients, self._size, self._limit_s = clients, size, limit_s
        self._blob: Blob | None = None

    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        if self._blob is None:
            self._blob = environment.content.add_blob(self._size)

    def run(self, environment: Environment, cache: CacheServer) -> Values:
        assert self._blob is not None
        environment.upstream.set_link()
        fresh = environment.fresh(cache.name)
        try:
            fresh.start()
            path = fresh.path("blobs", REPOSITORY, self._blob.digest)
            environment.upstream.reset_counts()
            result = discard(fresh.port, [[(path, self._size)]] * self._clients, self._limit_s)
            memory = fresh.group.memory()
            counts = environment.upstream.count_requests(containing=self._blob.digest)
            return {
                "peak MiB": memory.peak_sum / MIB,
                "largest process MiB": memory.peak_largest / MIB,
                "upstream GETs": counts.gets,
                "delivered GiB": result["received"] / GIB,
                "last client s": result["wall_s"],
                "cut": float(result["was_cut"]),
            }
        finally:
            fresh.close()

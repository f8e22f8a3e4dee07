"""What no peer has: one layer and many clients, many layers, a whole image by a real client."""

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence

from bench.peers.contestants import Peer
from bench.peers.load import LoadError, check, discard
from bench.peers.place import GIB, MIB, Line, Place, Values, Workload
from bench.peers.truth import REPOSITORY, Blob, Image
from tests.support.image_clients import environment

CRANE_LIMIT_S = 120.0
DIRECT = f"/v2/{REPOSITORY}/blobs/"


class ColdLayer(Workload):
    """One new layer, and all clients at once. One client straight at the upstream is the measure."""

    has_store = True

    def __init__(self, name: str, clients: int, size: int, line: Line, limit_s: float) -> None:
        self.key = name
        self.title = f"Cold layer of {size // MIB} MiB, {clients} client{'s' * (clients > 1)}, line {line}"
        self._clients, self._size, self._line, self._limit_s = clients, size, line, limit_s
        self._blob: Blob | None = None
        self._direct_s = 0.0

    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        if self._blob is not None:
            place.truth.remove(self._blob)
        self._blob = place.truth.add_blob(self._size)
        place.upstream.set_line(delay_s=self._line.delay_s, bytes_per_s=self._line.bytes_per_s)
        direct = discard(place.upstream.port, [[(DIRECT + self._blob.digest, self._size)]])
        self._direct_s = direct["wall_s"]

    def run(self, place: Place, peer: Peer) -> Values:
        assert self._blob is not None
        path = peer.path("blobs", REPOSITORY, self._blob.digest)
        place.quieten(peer)
        place.upstream.set_line(delay_s=self._line.delay_s, bytes_per_s=self._line.bytes_per_s)
        place.upstream.forget()
        used_s, store_s = peer.group.cpu_s(), place.store_cpu_s() if place.store_cpu_s else 0.0
        result = discard(peer.port, [[(path, self._size)]] * self._clients, self._limit_s)
        asked = place.upstream.asked(containing=self._blob.digest)
        place.quieten(peer)
        used_s = peer.group.cpu_s() - used_s
        firsts = sorted(at for at in result["first_byte_at"] if at is not None)
        done = [at for at in result["done_at"] if at is not None]
        values = {
            "upstream GETs": asked.gets,
            "upstream bytes / layer": asked.body_bytes / self._size,
            "clients done": len(done),
            "last client s": result["wall_s"],
            "last client / direct": result["wall_s"] / self._direct_s,
            "CPU s/GiB": used_s / (result["received"] / GIB) if result["received"] else 0.0,
            "client CPU s/GiB": result["client_cpu_s"] / (result["received"] / GIB) if result["received"] else 0.0,
            "cut": float(result["was_cut"]),
        }
        if firsts and asked.first_byte_at is not None:
            values["first byte, ms after the upstream's"] = (firsts[0] - asked.first_byte_at) * 1e3
            values["… median client"] = (statistics.median(firsts) - asked.first_byte_at) * 1e3
            values["… last client"] = (firsts[-1] - asked.first_byte_at) * 1e3
        if place.store_cpu_s is not None:
            values["store CPU s"] = place.store_cpu_s() - store_s
        if not result["was_cut"]:
            check(peer.port, path, self._blob)
        return values


class DistinctLayers(Workload):
    """As many new layers as clients, one each."""

    key = "cold-distinct"

    def __init__(self, layers: int, size: int, line: Line) -> None:
        self.title = f"{layers} distinct cold layers of {size // MIB} MiB at once, line {line}"
        self._layers, self._size, self._line = layers, size, line
        self._blobs: list[Blob] = []

    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        for blob in self._blobs:
            place.truth.remove(blob)
        self._blobs = [place.truth.add_blob(self._size) for _ in range(self._layers)]

    def run(self, place: Place, peer: Peer) -> Values:
        paths = [peer.path("blobs", REPOSITORY, blob.digest) for blob in self._blobs]
        place.quieten(peer)
        place.upstream.set_line(delay_s=self._line.delay_s, bytes_per_s=self._line.bytes_per_s)
        place.upstream.forget()
        peer.group.restart_peaks()
        used_s = peer.group.cpu_s()
        result = discard(peer.port, [[(path, self._size)] for path in paths])
        asked = place.upstream.asked(containing="/blobs/")
        place.quieten(peer)
        used_s = peer.group.cpu_s() - used_s
        for path, blob in zip(paths, self._blobs, strict=True):
            check(peer.port, path, blob)
        return {
            "upstream GETs": asked.gets,
            "MiB/s": result["received"] / MIB / result["wall_s"],
            "last client s": result["wall_s"],
            "median first byte s": statistics.median(result["first_byte_s"]),
            "CPU s/GiB": used_s / (result["received"] / GIB),
            "peak MiB": peer.group.memory().peak_sum / MIB,
        }


class WholeImage(Workload):
    """An index, its manifest, config and layers, pulled by crane, which checks every digest: cold, then warm."""

    key = "image"

    def __init__(self, layers: tuple[int, ...], line: Line) -> None:
        self.title = f"Image of {len(layers)} layers, {sum(layers) // MIB} MiB, by crane, line {line}"
        self._layers, self._line = layers, line
        self._image: Image | None = None

    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        self._image = place.truth.add_image(f"image-{place.number()}", self._layers)

    def run(self, place: Place, peer: Peer) -> Values:
        assert self._image is not None
        place.quieten(peer)
        place.upstream.set_line(delay_s=self._line.delay_s, bytes_per_s=self._line.bytes_per_s)
        place.upstream.forget()
        values = {f"cold {name}": value for name, value in self._pull(place, peer).items()}
        asked = place.upstream.asked()
        values["cold upstream requests"] = asked.gets + asked.heads
        place.quieten(peer)
        place.upstream.forget()
        values |= {f"warm {name}": value for name, value in self._pull(place, peer).items()}
        asked = place.upstream.asked()
        values["warm upstream requests"] = asked.gets + asked.heads
        return values

    def _pull(self, place: Place, peer: Peer) -> Values:
        assert self._image is not None
        home = place.directory / "crane"
        home.mkdir()
        target = home / "image"
        reference = f"127.0.0.1:{peer.port}/{peer.prefix}{REPOSITORY}:{self._image.tag}"
        used_s, before, began_at = peer.group.cpu_s(), os.times(), time.monotonic()
        pulled = subprocess.run(
            [place.programs.need("crane"), "pull", "--format=oci", reference, target],
            env=environment(home),
            capture_output=True,
            text=True,
            timeout=CRANE_LIMIT_S,
            check=False,
        )
        took_s, after = time.monotonic() - began_at, os.times()
        used_s = peer.group.cpu_s() - used_s
        size = sum(file.stat().st_size for file in target.glob("blobs/sha256/*"))
        shutil.rmtree(home)
        if pulled.returncode != 0 or size != self._image.size:
            raise LoadError(f"crane: {size} of {self._image.size} bytes: {pulled.stderr.strip()}")
        client_s = after.children_user + after.children_system - before.children_user - before.children_system
        return {"s": took_s, "CPU s": used_s, "client CPU s": client_s}

"""What a peer is like: with a dead upstream, idle, loaded, and when it starts."""

import http.client
import statistics
import time
from collections.abc import Sequence
from typing import Literal

from bench.peers.contestants import Peer
from bench.peers.load import ACCEPT, LoadError, discard
from bench.peers.place import GIB, MIB, Place, Values, Workload
from bench.peers.truth import REPOSITORY, Blob, Image

RECOVERY_LIMIT_S = 60.0
RECOVERY_POLL_S = 0.02


class DeadUpstream(Workload):
    """A tag that the peer has, while the upstream refuses connections, or takes them and says nothing."""

    def __init__(self, how: Literal["refuses", "silent"]) -> None:
        self.key = f"dead-{how}"
        what = "connections refused" if how == "refuses" else "connections taken, nothing said"
        self.title = f"Tag while the upstream is dead: {what}"
        self._how = how
        self._images: dict[int, Image] = {}

    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        place.upstream.set_line()
        for peer in peers:
            image = place.truth.add_image(f"dead-{place.number()}", (1024,))
            place.warm(peer, "manifests", image.tag, image.index)
            self._images[id(peer)] = image

    def run(self, place: Place, peer: Peer) -> Values:
        image = self._images[id(peer)]
        path = peer.path("manifests", REPOSITORY, image.tag)
        place.quieten(peer)
        if self._how == "refuses":
            place.upstream.stop()
        else:
            place.upstream.freeze()
        took: list[float] = []
        try:
            while len(took) < place.sizes.stale_requests and sum(took) < place.sizes.stale_limit_s:
                began_at = time.monotonic()
                is_there = _is_served(peer.port, path, image.index, place.sizes.stale_limit_s)
                took.append(time.monotonic() - began_at)
                if not is_there:
                    break
        finally:
            if self._how == "refuses":
                place.upstream.start()
            else:
                place.upstream.thaw()
        back_at = time.monotonic()
        new = place.truth.add_image(f"dead-{place.number()}", (1024,))
        _wait_for(peer, new)
        values = {
            "served": float(is_there),
            "first ms": took[0] * 1e3,
            "new tag after its return, s": time.monotonic() - back_at,
        }
        if is_there and len(took) > 1:
            values |= {
                "median after ms": statistics.median(took[1:]) * 1e3,
                "slowest after ms": max(took[1:]) * 1e3,
            }
        return values


def _wait_for(peer: Peer, image: Image) -> None:
    """Wait until a peer gives a tag that it has never seen."""
    path = peer.path("manifests", REPOSITORY, image.tag)
    deadline = time.monotonic() + RECOVERY_LIMIT_S
    while not _is_served(peer.port, path, image.index, RECOVERY_LIMIT_S):
        if time.monotonic() > deadline:
            raise LoadError(f"{path}: not served {RECOVERY_LIMIT_S:.0f} s after the upstream came back")
        time.sleep(RECOVERY_POLL_S)


def _is_served(port: int, path: str, manifest: Blob, limit_s: float) -> bool:
    """Ask once, on a connection of its own; False for an error or no answer in time. Another body fails."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=limit_s)
    try:
        connection.request("GET", path, headers={"Accept": ACCEPT})
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        return False
    if len(body) != manifest.size:
        raise LoadError(f"{path}: {len(body)} bytes, not {manifest.size}")
    return True


class Idle(Workload):
    """A peer just started: the time to its first answer, and its memory when it has nothing to do."""

    key = "idle"
    title = "Start, and memory at rest"

    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        """Nothing: the peers are new."""

    def run(self, place: Place, peer: Peer) -> Values:
        fresh = place.fresh(peer.name)
        try:
            fresh.start()
            place.quieten(fresh)
            memory = fresh.group.memory()
            return {
                "first answer s": fresh.started_in_s,
                "processes": memory.processes,
                "resident MiB": memory.resident_sum / MIB,
                "largest process MiB": memory.resident_largest / MIB,
                "private MiB": memory.private_sum / MIB,
            }
        finally:
            fresh.close()


class Loaded(Workload):
    """Many clients on one large new layer: memory at its peak, since the start or until the run is cut."""

    key = "loaded"

    def __init__(self, clients: int, size: int, limit_s: float) -> None:
        text = f"{size / GIB:.0f} GiB" if size >= GIB else f"{size // MIB} MiB"
        self.title = f"Memory under {clients} clients on a cold layer of {text}, cut after {limit_s:.0f} s"
        self._clients, self._size, self._limit_s = clients, size, limit_s
        self._blob: Blob | None = None

    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        if self._blob is None:
            self._blob = place.truth.add_blob(self._size)

    def run(self, place: Place, peer: Peer) -> Values:
        assert self._blob is not None
        place.upstream.set_line()
        fresh = place.fresh(peer.name)
        try:
            fresh.start()
            path = fresh.path("blobs", REPOSITORY, self._blob.digest)
            place.upstream.forget()
            result = discard(fresh.port, [[(path, self._size)]] * self._clients, self._limit_s)
            memory = fresh.group.memory()
            asked = place.upstream.asked(containing=self._blob.digest)
            return {
                "peak MiB": memory.peak_sum / MIB,
                "largest process MiB": memory.peak_largest / MIB,
                "upstream GETs": asked.gets,
                "delivered GiB": result["received"] / GIB,
                "last client s": result["wall_s"],
                "cut": float(result["was_cut"]),
            }
        finally:
            fresh.close()

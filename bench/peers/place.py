"""What the workloads work with, and the rule for a workload."""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from bench.peers.contestants import Peer
from bench.peers.load import check
from bench.peers.origin import Upstream
from bench.peers.programs import Programs
from bench.peers.truth import REPOSITORY, Blob, Truth

MIB = 2**20
GIB = 2**30
QUIET_SHARE = 0.02  # of one core
QUIET_LOOK_S = 0.25
QUIET_LIMIT_S = 20.0

Values = dict[str, float]


@attrs.frozen
class Line:
    """The way to the upstream: the delay of every answer, and the bandwidth of all bodies together (0: no limit)."""

    delay_s: float = 0.0
    bytes_per_s: float = 0.0

    def __str__(self) -> str:
        bandwidth = f"{self.bytes_per_s / MIB:.0f} MiB/s" if self.bytes_per_s else "no limit"
        return f"{self.delay_s * 1e3:.0f} ms, {bandwidth}"


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
    cold_slow_bytes: int = 32 * MIB
    cold_fast_bytes: int = 16 * MIB
    cold_limit_s: float = 20.0
    distinct: int = 100
    distinct_bytes: int = 8 * MIB
    layers: tuple[int, ...] = (32 * MIB, 16 * MIB, 8 * MIB, 4 * MIB, 1 * MIB)
    loaded_bytes: int = GIB
    loaded_limit_s: float = 20.0
    stale_requests: int = 50
    stale_limit_s: float = 10.0
    usual: Line = Line(0.02, 200 * MIB)
    slow: Line = Line(0.02, 5 * MIB)
    fast: Line = Line(0.02, 0.0)


QUICK = Sizes(
    warm_bytes=64 * MIB,
    herd_bytes=16 * MIB,
    wrk_s=2.0,
    cold_bytes=32 * MIB,
    cold_slow_bytes=8 * MIB,
    cold_fast_bytes=8 * MIB,
    cold_limit_s=5.0,
    distinct_bytes=2 * MIB,
    layers=(8 * MIB, 4 * MIB, 2 * MIB, MIB, MIB),
    loaded_bytes=128 * MIB,
    loaded_limit_s=5.0,
    stale_requests=20,
    stale_limit_s=6.0,
)


@attrs.define(eq=False)
class Place:
    """What the workloads work with. `fresh` makes a peer of a name that has its own empty cache."""

    upstream: Upstream
    truth: Truth
    programs: Programs
    directory: Path
    sizes: Sizes
    fresh: Callable[[str], Peer]
    store_cpu_s: Callable[[], float] | None = None
    _numbers: Iterator[int] = attrs.field(factory=itertools.count)

    def number(self) -> int:
        """A number that no other call was given."""
        return next(self._numbers)

    def quieten(self, peer: Peer) -> None:
        """Wait until a peer has nothing more to do, or long enough."""
        deadline = time.monotonic() + QUIET_LIMIT_S
        used_s = peer.group.cpu_s()
        while time.monotonic() < deadline:
            time.sleep(QUIET_LOOK_S)
            used_before_s, used_s = used_s, peer.group.cpu_s()
            if used_s - used_before_s < QUIET_SHARE * QUIET_LOOK_S:
                return

    def warm(self, peer: Peer, kind: str, reference: str, blob: Blob) -> None:
        """Have a peer hold a thing, and see that it gives the right bytes the second time too."""
        for _ in range(2):
            check(peer.port, peer.path(kind, REPOSITORY, reference), blob)


class Workload(ABC):
    """One way to load a peer. `key` is its name on the command line."""

    key = ""
    title = ""
    without: frozenset[str] = frozenset({"nginx-static"})
    has_store = False  # is it run with S3 behind the peers too?

    @abstractmethod
    def prepare(self, place: Place, peers: Sequence[Peer]) -> None:
        """Make what this round's peers are asked; warm and check what must be warm."""

    @abstractmethod
    def run(self, place: Place, peer: Peer) -> Values:
        """Load one peer and return its numbers."""

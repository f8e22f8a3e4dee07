"""The interface of a workload, and the environment that it runs in."""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from bench.peers.caches import DEFAULT, CacheServer, Variant
from bench.peers.content import REPOSITORY, Blob, UpstreamContent
from bench.peers.load import check
from bench.peers.programs import Programs
from bench.peers.upstream_process import UpstreamProcess

MIB = 2**20
GIB = 2**30
IDLE_SHARE = 0.02  # of one core
IDLE_POLL_S = 0.25
IDLE_TIMEOUT_S = 20.0

Values = dict[str, float]


@attrs.frozen
class Link:
    """The link to the upstream: the delay of each response, and the bandwidth of all bodies together (0: no limit).

    `piece_bytes` is how much of a body is sent at once with a limit; 0 is the default of the upstream.
    """

    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    piece_bytes: int = 0

    def __str__(self) -> str:
        bandwidth = f"{self.bytes_per_s / MIB:.0f} MiB/s" if self.bytes_per_s else "no limit"
        pieces = f" in pieces of {self.piece_bytes} bytes" if self.piece_bytes else ""
        return f"{self.delay_s * 1e3:.0f} ms, {bandwidth}{pieces}"

    def apply(self, upstream: UpstreamProcess) -> None:
        upstream.set_link(delay_s=self.delay_s, bytes_per_s=self.bytes_per_s, piece_bytes=self.piece_bytes)


@attrs.frozen
class Sizes:
    """Sizes, numbers of clients and time limits of the workloads."""

    warm_bytes: int = 256 * MIB
    warm_times: int = 8
    concurrent_bytes: int = 64 * MIB
    concurrent_clients: int = 64
    reused_times: int = 4
    few_clients: int = 4
    head_requests: int = 20_000
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
    usual: Link = Link(0.02, 200 * MIB)
    slow: Link = Link(0.02, 5 * MIB)
    fast: Link = Link(0.02, 0.0)
    pieces: Link = Link(0.02, 4 * MIB, 1024)
    pieces_bytes: int = 8 * MIB

    @property
    def most_stored_bytes(self) -> int:
        """What one cache stores in one round, at most."""
        return max(self.distinct * self.distinct_bytes, self.loaded_bytes)


QUICK = Sizes(
    warm_bytes=64 * MIB,
    concurrent_bytes=16 * MIB,
    reused_times=2,
    head_requests=5_000,
    wrk_s=2.0,
    cold_bytes=32 * MIB,
    cold_slow_bytes=8 * MIB,
    cold_fast_bytes=8 * MIB,
    cold_limit_s=5.0,
    distinct_bytes=2 * MIB,
    pieces_bytes=2 * MIB,
    layers=(8 * MIB, 4 * MIB, 2 * MIB, MIB, MIB),
    loaded_bytes=128 * MIB,
    loaded_limit_s=5.0,
    stale_requests=20,
    stale_limit_s=6.0,
)


@attrs.define(eq=False)
class Environment:
    """The environment of the workloads. `fresh` returns a new, empty cache by name."""

    upstream: UpstreamProcess
    content: UpstreamContent
    programs: Programs
    directory: Path
    sizes: Sizes
    fresh: Callable[[str], CacheServer]
    store_cpu_s: Callable[[], float] | None = None
    _numbers: Iterator[int] = attrs.field(factory=itertools.count)

    def number(self) -> int:
        """Return a different number for each call."""
        return next(self._numbers)

    def wait_until_idle(self, cache: CacheServer) -> None:
        """Wait until a cache uses almost no CPU, or until the timeout."""
        deadline = time.monotonic() + IDLE_TIMEOUT_S
        used_s = cache.group.cpu_s()
        while time.monotonic() < deadline:
            time.sleep(IDLE_POLL_S)
            used_before_s, used_s = used_s, cache.group.cpu_s()
            if used_s - used_before_s < IDLE_SHARE * IDLE_POLL_S:
                return

    def warm(self, cache: CacheServer, kind: str, reference: str, blob: Blob) -> None:
        """Read a blob or manifest through a cache twice, and verify both responses."""
        for _ in range(2):
            check(cache.port, cache.path(kind, REPOSITORY, reference), blob, is_tls=cache.is_tls)


class Workload(ABC):
    """One kind of load. `key` is its name on the command line; without its `programs` it is not run."""

    key = ""
    title = ""
    variant: Variant = DEFAULT
    programs: tuple[str, ...] = ()
    needs_root = False
    without: frozenset[str] = frozenset({"nginx-static"})
    has_store = False  # whether it is also run with S3

    @abstractmethod
    def prepare(self, environment: Environment, caches: Sequence[CacheServer]) -> None:
        """Generate the content for a round; warm the caches and verify their responses where needed."""

    @abstractmethod
    def run(self, environment: Environment, cache: CacheServer) -> Values:
        """Run the load against one cache; return the numbers."""

"""Flows of bytes over shared links: max-min fair rates, and what changes them next.

A `Flow` stands for `count` equal downloads (of all nodes that are in the same state), and a `Link` for `count` equal
links (the network cards of these nodes, or of the replicas of all zones). So the work does not grow with the number of
nodes. Rates are those of progressive filling: all rates grow together until a link is full, whose flows then keep their
rate while the others go on growing.

A flow may read from another one, as clients read the download of a replica while it runs. It is then never ahead of
it, and where it has caught up it is as fast as the other one at most.

Libraries for discrete events (SimPy) have no flows that share links: each change of a rate would interrupt every
process. Here the next event is the first of all flows that ends, or reaches the position of the flow it reads from.
"""

import math
from collections.abc import Callable, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

SLACK_BYTES = 1.0
SLACK = 1e-9  # relative, for rounding
MAX_USES = 10  # links of one flow


@attrs.define(eq=False)
class Link:
    """What has a rate: a network card in one direction, processors, a registry.

    `rate` is that of each of `count` equal links, per second: bytes, for processors CPU seconds.
    """

    name: str
    rate: float
    count: float = 1


@attrs.frozen
class Use:
    """What a flow needs of a link for each of its bytes: 1 for network cards."""

    link: Link
    per_byte: float = 1.0


@attrs.define(eq=False)
class Flow:
    """`count` equal downloads of `size` bytes.

    `source` is the flow that it reads from, or None. `weight` is its share of links beside other flows, `limit` its
    largest rate in bytes per second, `position` where it has got to whenever it does not run.
    """

    size: float
    uses: Sequence[Use]
    on_end: Callable[[], None]
    count: float = 1
    source: "Flow | None" = None
    weight: float = 1.0
    limit: float = math.inf
    position: float = 0.0
    slot: int | None = None  # while it runs


class Network:
    """The links, and the flows that are running.

    `carried` has what one of each link has carried, and `peak` its largest rate, in the order of `links`.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self.links = list(links)
        self._numbers = {id(link): number for number, link in enumerate(links)}
        self._capacity = np.array([link.rate for link in links] + [math.inf])  # the last one is for unused columns
        self._carried = np.zeros(len(links) + 1)
        self._peak = np.zeros(len(links) + 1)
        self._flows: list[Flow] = []
        self._table = _Table.of_size(64, len(links))
        self._is_changed = True

    @property
    def carried(self) -> list[float]:
        return [float(each) for each in self._carried[:-1]]

    @property
    def peak(self) -> list[float]:
        return [float(each) for each in self._peak[:-1]]

    def start(self, flow: Flow) -> None:
        """Add a flow at its position."""
        slot = flow.slot = len(self._flows)
        self._flows.append(flow)
        if slot == len(self._table.size):
            self._table = self._table.doubled()
        table = self._table
        table.link[slot] = len(self.links)
        table.need[slot] = 0.0
        for column, use in enumerate(flow.uses):
            table.link[slot, column] = self._numbers[id(use.link)]
            table.need[slot, column] = use.per_byte * flow.count / use.link.count
        table.size[slot], table.position[slot] = flow.size, flow.position
        table.weight[slot], table.limit[slot] = flow.weight, flow.limit
        self._is_changed = True

    def stop(self, flow: Flow) -> None:
        """Remove a running flow; it keeps its position."""
        slot = flow.slot
        assert slot is not None
        flow.position = float(self._table.position[slot])
        last = self._flows.pop()
        if last is not flow:
            assert last.slot is not None
            self._flows[slot] = last
            self._table.move(last.slot, slot)
            last.slot = slot
        flow.slot = None
        self._is_changed = True

    def change_source(self, flow: Flow, source: Flow | None) -> None:
        """Let a flow read from another one, or from a complete copy."""
        flow.source = source
        self._is_changed = True

    def rate_of(self, flow: Flow) -> float:
        """The rate of a running flow now, in bytes per second."""
        self._allocate()
        return float(self._rate[flow.slot])

    def find_next(self) -> float:
        """Seconds until a flow ends or reaches the position of the flow it reads from; infinite if none does."""
        if not self._flows:
            return math.inf
        self._allocate()
        rate, source, has_source = self._rate, self._source, self._source >= 0
        size, position = self._table.size[: len(rate)], self._table.position[: len(rate)]
        with np.errstate(divide="ignore", invalid="ignore"):
            end = np.where(rate > 0, (size - position) / rate, np.inf)
            gap = position[source] - position
            reach = np.where(has_source & (np.abs(gap) > SLACK_BYTES), gap / (rate - rate[source]), np.inf)
        reach[~(reach > 0)] = np.inf  # the gap grows
        return float(max(0.0, min(end.min(), reach.min())))

    def advance(self, seconds: float) -> list[Flow]:
        """Let time pass, at most `find_next()` seconds. Removes and returns the flows that end."""
        if not self._flows:
            return []
        self._allocate()
        number = len(self._flows)
        position, source = self._table.position[:number], self._source
        position += self._rate * seconds
        self._carried += self._load * seconds
        self._peak = np.maximum(self._peak, self._load)
        is_near = (source >= 0) & (np.abs(position[source] - position) <= SLACK_BYTES)
        position[is_near] = position[source[is_near]]
        self._is_changed |= bool(is_near.any())
        ended = [self._flows[slot] for slot in np.flatnonzero(position >= self._table.size[:number] - SLACK_BYTES)]
        for flow in ended:
            self.stop(flow)
            flow.position = flow.size
        return ended

    def _allocate(self) -> None:
        """Find the rate of each flow and the load of each link, by progressive filling."""
        if not self._is_changed:
            return
        number, table = len(self._flows), self._table
        link, position, weight = table.link[:number], table.position[:number], table.weight[:number]
        need = table.need[:number] * weight[:, None]
        limit = table.limit[:number].copy()
        slots = [-1 if flow.source is None or flow.source.slot is None else flow.source.slot for flow in self._flows]
        source = np.array(slots, dtype=np.int64)
        gap = np.where(source >= 0, position[source] - position, np.inf)
        has_caught_up = np.abs(gap) <= SLACK_BYTES
        limit[gap < -SLACK_BYTES] = 0.0  # a download that is continued elsewhere waits for its position
        rate, is_open = np.zeros(number), np.full(number, True)
        left, level = self._capacity.copy(), 0.0
        while is_open.any():
            follows = is_open & has_caught_up & ~is_open[source]
            limit[follows] = np.minimum(limit[follows], rate[source[follows]])
            growth = np.bincount(link[is_open].ravel(), need[is_open].ravel(), len(left))
            is_used = growth > 0
            until_full = (left[is_used] / growth[is_used]).min(initial=math.inf)
            step = max(0.0, min(until_full, float((limit[is_open] / weight[is_open]).min()) - level))
            if math.isinf(step):
                raise ValueError("a flow has neither a limit nor a link")
            level += step
            left[is_used] -= step * growth[is_used]
            is_full = is_used & (left <= SLACK * self._capacity)
            is_stopped = is_open & (is_full[link].any(axis=1) | (limit <= level * weight * (1 + SLACK)))
            rate[is_stopped] = np.minimum(level * weight, limit)[is_stopped]
            is_open &= ~is_stopped
        self._rate, self._source = rate, source
        self._load = np.bincount(link.ravel(), (table.need[:number] * rate[:, None]).ravel(), len(left))
        self._is_changed = False


@attrs.define
class _Table:
    """The numbers of the running flows, one row each; `link` and `need` have a column for each of its links."""

    size: NDArray[np.float64]
    position: NDArray[np.float64]
    weight: NDArray[np.float64]
    limit: NDArray[np.float64]
    need: NDArray[np.float64]
    link: NDArray[np.int64]

    @classmethod
    def of_size(cls, rows: int, unused: int) -> "_Table":
        shape = (rows, MAX_USES)
        size, position, weight, limit = np.zeros((4, rows))
        return cls(size, position, weight, limit, np.zeros(shape), np.full(shape, unused))

    def doubled(self) -> "_Table":
        values = attrs.asdict(self, recurse=False)
        return _Table(**{name: np.concatenate([each, each]) for name, each in values.items()})

    def move(self, old: int, new: int) -> None:
        for values in attrs.astuple(self, recurse=False):
            values[new] = values[old]

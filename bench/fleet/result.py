"""What happened in a simulated pull."""

from collections import Counter
from collections.abc import Sequence

import attrs


@attrs.frozen
class Completion:
    """`count` nodes that began to pull and had the image at these times, in seconds."""

    count: float
    began_at: float
    ended_at: float


@attrs.frozen
class Load:
    """What each of `count` equal links has carried, bytes or CPU seconds, and the largest part of its rate in use."""

    name: str
    count: float
    rate: float
    carried: float
    peak: float


@attrs.frozen
class Result:
    """`requests` are counted by kind, and `crossing_bytes` those that went to other availability zones."""

    completions: Sequence[Completion]
    loads: Sequence[Load]
    requests: Counter[str]
    crossing_bytes: float

    @property
    def last_s(self) -> float:
        """When the last node has the image."""
        return max(each.ended_at for each in self.completions)

    def quantile(self, part: float) -> float:
        """The seconds within which this part of the nodes has the image, each counted from its own beginning."""
        times = sorted((each.ended_at - each.began_at, each.count) for each in self.completions)
        missing = part * sum(number for _, number in times) * (1 - 1e-9)
        for seconds, number in times:
            missing -= number
            if missing <= 0:
                return seconds
        return times[-1][0]

    def carried(self, beginning: str, ending: str = "") -> float:
        """What all links with such names have carried."""
        return sum(each.carried * each.count for each in self._named(beginning, ending))

    def busiest(self, beginning: str = "", ending: str = "") -> Load:
        """The link with such a name that was longest at its rate."""
        return max(self._named(beginning, ending), key=lambda load: load.carried / load.rate)

    def _named(self, beginning: str, ending: str) -> list[Load]:
        return [each for each in self.loads if each.name.startswith(beginning) and each.name.endswith(ending)]

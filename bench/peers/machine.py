"""The machine that the numbers come from, and what else kept it busy meanwhile."""

import os
import platform
import time
from pathlib import Path

import attrs

FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


@attrs.frozen
class Clock:
    """The machine's CPU ticks at one moment."""

    ticks: tuple[int, ...]

    @classmethod
    def now(cls) -> "Clock":
        line = Path("/proc/stat").read_text().partition("\n")[0]
        return cls(tuple(int(word) for word in line.split()[1 : len(FIELDS) + 1]))

    def stolen_since(self, before: "Clock") -> float:
        """The share of all CPU time that the hypervisor gave to others, in percent."""
        passed = dict(zip(FIELDS, (new - old for new, old in zip(self.ticks, before.ticks, strict=True)), strict=True))
        return 100 * passed["steal"] / max(1, sum(passed.values()))


def describe() -> dict[str, str]:
    """The machine in words."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    model = next(models, platform.machine())
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "memory": f"{memory:.0f} GiB",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }

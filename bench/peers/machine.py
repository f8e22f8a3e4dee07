"""A description of the machine, and the CPU time that other virtual machines took from it."""

import os
import platform
import time
from pathlib import Path

import attrs

FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


@attrs.frozen
class CpuTicks:
    """The CPU ticks of the machine since it was started, by kind."""

    ticks: tuple[int, ...]

    @classmethod
    def now(cls) -> "CpuTicks":
        line = Path("/proc/stat").read_text().partition("\n")[0]
        return cls(tuple(int(number) for number in line.split()[1 : len(FIELDS) + 1]))

    def stolen_since(self, before: "CpuTicks") -> float:
        """The share of CPU time that the hypervisor gave to other machines, in percent."""
        passed = dict(zip(FIELDS, (new - old for new, old in zip(self.ticks, before.ticks, strict=True)), strict=True))
        return 100 * passed["steal"] / max(1, sum(passed.values()))


def describe() -> dict[str, str]:
    """Describe the machine."""
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

"""How many processors this process may use: the affinity mask, and the CPU quota of its control groups."""

import math
import os
from pathlib import Path

PROC = Path("/proc/self")


def count_processors(proc: Path = PROC) -> int:
    """The number of processors, at least 1. A quota counts rounded up: half a processor is 1."""
    available = len(os.sched_getaffinity(0))
    return max(1, min([available, *(math.ceil(quota) for quota in _find_quotas(proc))]))


def _find_quotas(proc: Path) -> list[float]:
    """The quotas, in processors, of the control groups (versions 1 and 2) of this process and of all above them."""
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return []
    quotas = []
    for mount in mounts:
        root, mountpoint = mount[3], Path(_unescape(mount[4]))
        kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
        for number, controllers, group in groups:
            if kind == "cgroup2" and number == "0":
                read = _read_quota
            elif kind == "cgroup" and "cpu" in options and "cpu" in controllers.split(","):
                read = _read_quota_version_1
            else:
                continue
            directory = mountpoint / os.path.relpath(group, root) if _is_below(group, root) else mountpoint
            while _is_below(str(directory), str(mountpoint)):
                quotas.append(read(directory))
                directory = directory.parent
    return [quota for quota in quotas if quota > 0]


def _read_quota(directory: Path) -> float:
    """The quota in `cpu.max`: two numbers, or `max` and a number; 0.0 when there is none."""
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return 0.0


def _read_quota_version_1(directory: Path) -> float:
    """The quota of version 1, in microseconds per period; 0.0 when there is none, which is written as -1."""
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        return quota / int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return 0.0


def _is_below(path: str, root: str) -> bool:
    return root in {"/", path} or path.startswith(f"{root}/")


def _unescape(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")

"""How many workers fit: the affinity mask, and the CPU quota and the memory limit of the control groups."""

import math
import os
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc/self")
WORKER_MEMORY_BYTES = 128 << 20  # under a memory limit; idle workers take half of it

_Read = Callable[[Path], float]  # reads a limit from the directory of a group; 0.0 if there is none


def count_workers(proc: Path = PROC) -> int:
    """One worker for each processor, at least 1, and at most one for each 128 MiB of the memory limit."""
    limits = _find_limits(proc, "memory", _read_memory_limit, _read_memory_limit_version_1)
    return max(1, min([count_processors(proc), *(int(limit / WORKER_MEMORY_BYTES) for limit in limits)]))


def count_processors(proc: Path = PROC) -> int:
    """The number of processors, at least 1. A quota counts rounded up: half a processor is 1."""
    available = len(os.sched_getaffinity(0))
    quotas = _find_limits(proc, "cpu", _read_quota, _read_quota_version_1)
    return max(1, min([available, *(math.ceil(quota) for quota in quotas)]))


def _find_limits(proc: Path, controller: str, read_version_2: _Read, read_version_1: _Read) -> list[float]:
    """The limits of the control groups (versions 1 and 2) of this process and of all groups above them."""
    try:
        groups = [line.split(":", 2) for line in (proc / "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        return []
    limits = []
    for mount in mounts:
        root, mountpoint = mount[3], Path(_unescape(mount[4]))
        kind, options = mount[mount.index("-") + 1], mount[-1].split(",")
        for number, controllers, group in groups:
            if kind == "cgroup2" and number == "0":
                read = read_version_2
            elif kind == "cgroup" and controller in options and controller in controllers.split(","):
                read = read_version_1
            else:
                continue
            directory = mountpoint / os.path.relpath(group, root) if _is_below(group, root) else mountpoint
            while _is_below(str(directory), str(mountpoint)):
                limits.append(read(directory))
                directory = directory.parent
    return [limit for limit in limits if limit > 0]


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


def _read_memory_limit(directory: Path) -> float:
    """The limit in `memory.max`, in bytes; 0.0 when there is none, which is written as `max`."""
    try:
        return int((directory / "memory.max").read_text())
    except (OSError, ValueError):
        return 0.0


def _read_memory_limit_version_1(directory: Path) -> float:
    """The limit of version 1, in bytes: a number larger than any memory when there is none."""
    try:
        return int((directory / "memory.limit_in_bytes").read_text())
    except (OSError, ValueError):
        return 0.0


def _is_below(path: str, root: str) -> bool:
    return root in {"/", path} or path.startswith(f"{root}/")


def _unescape(text: str) -> str:
    return text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")

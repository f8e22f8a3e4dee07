"""CPU seconds and memory of a program and its child processes, as accounted by the kernel.

CPU is measured with a control group for the program (`cpu.stat` of version 2, else `cpuacct.usage` of version 1); if
none can be created, with `/proc/PID/stat` of the program and its descendants, in ticks of 10 ms. Memory is `VmHWM`, the
peak of a process since the last `reset_peaks`, `VmRSS`, and what the program needs for itself: all memory that is not
the page cache of files. `Pss_Anon` and `Pss_Shmem` count a page that a fork has left in several processes once;
`RssAnon` counts it in each of them. The peak of a control group is not used, because it includes the page cache.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.support.processes import descendants

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
RESET_PEAK = "5"  # value for clear_refs
REMOVE_LIMIT_S = 5.0


@attrs.frozen
class Memory:
    """Bytes of the largest process and of all together.

    `peak` is the maximum of the resident memory. `private` counts each page once, `anonymous` in each process.
    """

    processes: int
    peak_sum: int
    peak_largest: int
    resident_sum: int
    resident_largest: int
    private_sum: int
    anonymous_sum: int
    anonymous_largest: int


@attrs.define(eq=False)
class ControlGroup:
    """The control group of one program. Start the program within `entered`."""

    directory: Path | None
    usage: Path | None
    unit_s: float
    root_pid: int = 0

    @classmethod
    def make(cls, name: str) -> "ControlGroup":
        """Create a control group. If that is not possible, CPU is measured per process."""
        leaf = f"bench-{name}-{secrets.token_hex(4)}"
        for kind, mount in _mounts():
            directory = mount / leaf
            try:
                directory.mkdir()
                (directory / "cgroup.procs").read_text()
                usage = directory / ("cpu.stat" if kind == "cgroup2" else "cpuacct.usage")
                usage.read_text()
            except OSError:
                with contextlib.suppress(OSError):
                    directory.rmdir()
                continue
            return cls(directory, usage, 1e-6 if kind == "cgroup2" else 1e-9)
        return cls(None, None, 0.0)

    @property
    def source(self) -> str:
        """The file that CPU seconds are read from."""
        return self.usage.name if self.usage else "/proc/PID/stat"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move this process into the group for a while, so that processes it starts are in the group."""
        if self.directory is None:
            yield
            return
        before = self.directory.parent
        (self.directory / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (before / "cgroup.procs").write_text(str(os.getpid()))

    def pids(self) -> list[int]:
        if self.directory is not None:
            return [int(line) for line in (self.directory / "cgroup.procs").read_text().split()]
        return [self.root_pid, *(each.pid for each in descendants(self.root_pid))]

    def cpu_s(self) -> float:
        """CPU seconds used so far, including ended processes."""
        if self.usage is None:
            return sum(_ticks(pid) for pid in self.pids()) / TICKS_PER_S
        return int(self.usage.read_text().removeprefix("usage_usec").split()[0]) * self.unit_s

    def reset_peaks(self) -> None:
        """Measure peaks from now on."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)

    def memory(self) -> Memory:
        found = []
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                found.append(_status(pid))
        peaks, resident, anonymous = (
            [status.get(name, 0) for status in found] for name in ("VmHWM", "VmRSS", "RssAnon")
        )
        return Memory(
            processes=len(found),
            peak_sum=sum(peaks),
            peak_largest=max(peaks, default=0),
            resident_sum=sum(resident),
            resident_largest=max(resident, default=0),
            private_sum=sum(status["Pss_Anon"] + status["Pss_Shmem"] for status in found),
            anonymous_sum=sum(anonymous),
            anonymous_largest=max(anonymous, default=0),
        )

    def remove(self) -> None:
        """Remove the group as soon as its last processes have ended. A second call does nothing."""
        if self.directory is None:
            return
        deadline = time.monotonic() + REMOVE_LIMIT_S
        while True:
            try:
                self.directory.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                self.directory = self.usage = None
                return


def _mounts() -> list[tuple[str, Path]]:
    """The groups of this process in the hierarchies that account for CPU, version 2 first."""
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    own = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in groups}
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        mount = Path(before.split()[4])
        if kind == "cgroup2" and "" in own:
            found.append((kind, mount / own[""].lstrip("/")))
        elif kind == "cgroup" and "cpuacct" in options.split()[-1].split(","):
            controllers = next((names for names in own if "cpuacct" in names.split(",")), None)
            if controllers is not None:
                found.append((kind, mount / own[controllers].lstrip("/")))
    return sorted(found, reverse=True)


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(int(field) for field in fields[11:15])


def _status(pid: int) -> dict[str, int]:
    files = (Path(f"/proc/{pid}/status"), Path(f"/proc/{pid}/smaps_rollup"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    values = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(size) * 1024 for name, size, _ in values}

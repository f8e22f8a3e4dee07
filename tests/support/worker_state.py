"""The state of Dockyard's workers, read from /proc: memory, CPU time, open files, client connections."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.deployment import Deployment

SAMPLE_EVERY_S = 0.1


class MemorySampler:
    """The largest resident memory of each worker while the block runs, sampled ten times a second and at its end."""

    def __init__(self, deployment: Deployment) -> None:
        self.peaks: dict[int, int] = {}
        self._deployment = deployment
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def peak(self) -> int:
        """The largest value of all workers, in bytes."""
        return max(self.peaks.values())

    def _sample(self) -> None:
        is_last = False
        while not is_last:  # at the end too: the block may be shorter than the time between samples
            is_last = self._done.wait(SAMPLE_EVERY_S)
            for pid in self._deployment.dockyard.worker_pids():
                self.peaks[pid] = max(self.peaks.get(pid, 0), resident_bytes(pid))


def resident_bytes(pid: int) -> int:
    """VmRSS of a process in bytes; 0 when it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def open_files(pid: int) -> dict[int, str]:
    """The file descriptors of a process and their targets."""
    found = {}
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found[int(entry.name)] = os.readlink(entry.path)
    return found


def download_owners(deployment: Deployment) -> dict[int, list[str]]:
    """The workers that have a partial file open for writing: they own the running downloads."""
    found: dict[int, list[str]] = {}
    for pid in deployment.dockyard.worker_pids():
        for number, path in open_files(pid).items():
            if "/partial/" in path and _is_for_writing(pid, number):
                found.setdefault(pid, []).append(path)
    return found


def workers_by_client_port(deployment: Deployment) -> dict[int, int]:
    """The worker that serves each client connection, by the local port of the client."""
    sockets = _sockets()
    own = {inode: remote for inode, (local, remote) in sockets.items() if local == deployment.dockyard.port}
    return {own[target]: pid for pid, target in _worker_files(deployment) if target in own}


def worker_of_connection(deployment: Deployment, server_port: int, local_port: int) -> int:
    """The worker that has connected to a server, by the local port of its connection."""
    sockets = _sockets()
    (pid,) = {pid for pid, target in _worker_files(deployment) if sockets.get(target) == (local_port, server_port)}
    return pid


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _is_for_writing(pid: int, number: int) -> bool:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/fdinfo/{number}").read_text().splitlines():
            if line.startswith("flags:"):
                return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False


def _worker_files(deployment: Deployment) -> Iterator[tuple[int, str]]:
    """The workers and the targets of their file descriptors."""
    for pid in deployment.dockyard.worker_pids():
        for target in open_files(pid).values():
            yield pid, target


def _sockets() -> dict[str, tuple[int, int]]:
    """Local and remote port of each TCP connection of this machine, as `open_files` names its socket."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            local, remote = (int(address.rpartition(":")[2], 16) for address in fields[1:3])
            found[f"socket:[{fields[9]}]"] = local, remote
    return found

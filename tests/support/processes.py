"""Start real programs, wait for them with a timeout, and end them by pid."""

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs

from tests.support.busy_machine import EVENT_TIMEOUT_S

POLL_S = 0.02
END_TIMEOUT_S = 10.0
PORTS_OF_A_PROCESS = 250


class SetupError(Exception):
    """A program did not do what the test needs; the text contains the end of its log."""


@attrs.define(eq=False)
class Process:
    """One running program. Its output goes to `log` (standard output to `output`, if given)."""

    name: str
    log: Path
    popen: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        argv: Sequence[str | Path],
        *,
        log: Path,
        output: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> "Process":
        with log.open("ab") as errors, (output or log).open("ab") as out:
            popen = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environ)
        return cls(Path(argv[0]).name, log, popen)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_running(self) -> bool:
        return self.popen.poll() is None

    def wait_until(self, check: Callable[[], bool], what: str, limit_s: float = EVENT_TIMEOUT_S) -> None:
        """Wait until `check` returns True; raise SetupError at once when the program has ended."""
        deadline = time.monotonic() + limit_s
        while not check():
            if not self.is_running:
                raise SetupError(f"{self.name} ended with status {self.popen.returncode} before {what}\n{self.tail()}")
            if time.monotonic() > deadline:
                raise SetupError(f"{self.name}: not {what} within {limit_s:.0f} s\n{self.tail()}")
            time.sleep(POLL_S)

    def send(self, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP and SIGCONT freeze and thaw."""
        self.popen.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM, limit_s: float = END_TIMEOUT_S) -> int:
        """Send a signal and wait; kill the program after the timeout. Return its exit status."""
        self.popen.send_signal(number)
        try:
            return self.popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait(limit_s)

    def end_all(self) -> None:
        """End the program, then the processes that it started and left running."""
        started = descendants(self.pid)
        self.end()
        kill_leftovers(started)

    def tail(self, lines: int = 60) -> str:
        """Return the end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def wait_until(check: Callable[[], bool], what: str, limit_s: float = EVENT_TIMEOUT_S) -> None:
    """Wait until `check` returns True; raise SetupError after the timeout."""
    deadline = time.monotonic() + limit_s
    while not check():
        if time.monotonic() > deadline:
            raise SetupError(f"not {what} within {limit_s:.0f} s")
        time.sleep(POLL_S)


def free_port() -> int:
    """Return a free loopback port that no other process which calls this will get.

    It is below the range of ports for outgoing connections, so that a server can be stopped and started again on it.
    """
    global _ports  # noqa: PLW0603
    if _ports is None or _ports.pid != os.getpid():
        _ports = _Ports.reserve()
    return _ports.find_free()


@attrs.define
class _Ports:
    """A range of ports that this process has reserved: they are given out in turn, and again from its beginning.

    Servers of several test processes start at the same time. If two of them were told the same port, the second one
    would fail, and its test would talk to the first one. The reservation is an abstract socket: its name is taken
    within the network namespace, as ports are, and free again when the process ends.
    """

    pid: int
    reservation: socket.socket
    ports: Sequence[int]
    next: int = 0

    @classmethod
    def reserve(cls) -> "_Ports":
        """Reserve a range of ports. Raises SetupError."""
        first_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        starts = [*range(min(15_000, first_outgoing // 2), first_outgoing - PORTS_OF_A_PROCESS, PORTS_OF_A_PROCESS)]
        random.shuffle(starts)  # users of the machine may listen on some
        for start in starts:
            reservation = socket.socket(socket.AF_UNIX)
            try:
                reservation.bind(f"\0dockyard-tests-ports-{start}")
            except OSError:
                reservation.close()
                continue
            return cls(os.getpid(), reservation, range(start, start + PORTS_OF_A_PROCESS))
        raise SetupError("all ports are reserved by other test processes")

    def find_free(self) -> int:
        """Return the next port that nothing listens on. Raises SetupError."""
        for _ in self.ports:
            port = self.ports[self.next % len(self.ports)]
            self.next += 1
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            return port
        raise SetupError(f"no free port from {self.ports[0]} to {self.ports[-1]}")


_ports: _Ports | None = None


@attrs.frozen
class ProcessInfo:
    """A process as described in /proc; the start time distinguishes it from a later one with the same pid."""

    pid: int
    parent: int
    started_at: int

    def command_line(self) -> bytes:
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return b""


def children(pid: int) -> list[ProcessInfo]:
    """Return the direct children of a process, oldest first."""
    return sorted(
        (each for each in _all_processes() if each.parent == pid), key=lambda each: (each.started_at, each.pid)
    )


def descendants(pid: int) -> list[ProcessInfo]:
    """Return the children of a process, their children, and so on."""
    processes = _all_processes()
    found: list[ProcessInfo] = []
    parents = {pid}
    while parents:
        born = [each for each in processes if each.parent in parents]
        found += born
        parents = {each.pid for each in born}
    return found


def kill_leftovers(started: Sequence[ProcessInfo]) -> list[int]:
    """Kill those of `started` that still run; return their pids."""
    left = []
    for each in started:
        if _read_process(each.pid) not in (each, attrs.evolve(each, parent=1)):
            continue  # it has ended, or another process has the pid now
        try:
            os.kill(each.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        left.append(each.pid)
    return left


def memory_bytes(pid: int) -> int:
    """Return the private memory of a process: anonymous pages, without files that are shared with the page cache."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SetupError(f"no memory figure of process {pid}")


def _all_processes() -> list[ProcessInfo]:
    found = (_read_process(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [each for each in found if each is not None]


def _read_process(pid: int) -> ProcessInfo | None:
    """Read a process from /proc; None when there is none, or only a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, parent, *rest = text.rpartition(")")[2].split()
    return None if state in "ZX" else ProcessInfo(pid, int(parent), int(rest[17]))

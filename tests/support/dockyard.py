"""A Dockyard server as a process: `python -m dockyard server` on a free port with a directory of its own."""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.distribution import DistributionRegistry
from tests.support.loopback_server import LoopbackServer
from tests.support.olareg import Olareg
from tests.support.processes import Process, children, descendants, free_port, kill_leftovers

DRAIN_TIMEOUT_S = 10
STOP_SLACK_S = 5.0  # the processes end one after the other


class Dockyard(LoopbackServer):
    """One Dockyard server. `settings` is merged over the default settings of the tests; lists and scalars replace.

    The process gets `environ` and PATH, and nothing else of the user's environment: no keychain, no proxies, no
    settings. `descriptors` limits the open files of each process (0: the limit of the tests). `wrapper` is a command
    that executes the server.
    """

    def __init__(
        self,
        directory: Path,
        upstreams: Sequence[Mapping[str, Any]],
        *,
        workers: int = 2,
        settings: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        descriptors: int = 0,
        wrapper: Sequence[str] = (),
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.storage = directory / "storage"
        self.config = directory / "config.yaml"
        self.log = directory / "dockyard.log"
        self.port = free_port()
        self.settings = _merged(
            {
                "logger": {"level": "info", "encoding": "console", "color": False, "output": "stderr"},
                "server": {
                    "host": "127.0.0.1",
                    "port": str(self.port),
                    "workers": workers,
                    "drain_timeout": f"{DRAIN_TIMEOUT_S}s",
                },
                "storage": {"directory": str(self.storage)},
                "upstream": {"check_timeout": "2s"},
                "upstreams": [dict(upstream) for upstream in upstreams],
            },
            settings or {},
        )
        self.has_tls = bool(self.settings["server"].get("tls"))
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(directory), **(environ or {})}
        self._limits = ["prlimit", f"--nofile={descriptors}"] if descriptors else []
        self._wrapper = wrapper
        self.start_took_s = 0.0  # the last start that was waited for
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """The supervisor's pid."""
        return self._running.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running

    def start(self, *, wait: bool = True) -> None:
        """Start it and wait until `/v2/` answers 200. A second start finds the cache of the first."""
        assert not self.is_running, "Dockyard runs already"
        self.config.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        self._process = Process.start(
            [*self._wrapper, *self._limits, sys.executable, "-m", "dockyard", "server", "-c", self.config],
            log=self.log,
            environ=self._environ,
        )
        if wait:
            began_at = time.monotonic()
            self._process.wait_until(self.is_answering, "answering")
            self.start_took_s = time.monotonic() - began_at

    def stop(self) -> None:
        """Send SIGTERM; the exit status must be 0 within the drain timeout, and no worker may be left."""
        process, workers = self._running, descendants(self.pid)
        self._process = None
        sent_at = time.monotonic()
        status = process.end(signal.SIGTERM, EVENT_TIMEOUT_S)
        took_s = time.monotonic() - sent_at
        left = kill_leftovers(workers)
        assert status == 0, f"exit status {status}\n{process.tail()}"
        assert left == [], f"left running: {left}\n{process.tail()}"
        assert is_within(took_s, DRAIN_TIMEOUT_S, slack_s=STOP_SLACK_S), f"ended after {took_s:.1f} s\n{process.tail()}"

    def kill(self) -> None:
        """Kill the supervisor and all its workers with SIGKILL."""
        if self._process is None:
            return
        process, self._process = self._process, None
        workers = descendants(process.pid)
        process.end(signal.SIGKILL)
        kill_leftovers(workers)

    def worker_pids(self) -> list[int]:
        """Return the pids of the workers, oldest first; an empty list while the server does not run."""
        process = self._process
        if process is None:
            return []
        return [child.pid for child in children(process.pid) if b"resource_tracker" not in child.command_line()]

    def read_log(self) -> str:
        """Return the log as it is now. A thread writes it: the lines of the last moment may be missing."""
        return self.log.read_text(errors="replace")

    @property
    def _running(self) -> Process:
        assert self._process is not None, "Dockyard does not run"
        return self._process


def docker_hub(registry: DistributionRegistry | Olareg) -> dict[str, Any]:
    """The upstream `docker.io`, for which the given registry stands in."""
    return {"prefix": "docker.io", "registry": registry.url, "auth": {"type": "anonymous"}}


@contextlib.contextmanager
def running(dockyard: Dockyard) -> Iterator[Dockyard]:
    """Start the server; kill it and delete its storage when the block ends."""
    try:
        dockyard.start()
        yield dockyard
    finally:
        dockyard.kill()
        shutil.rmtree(dockyard.storage, ignore_errors=True)


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        match merged.get(key), value:
            case Mapping() as under, Mapping() as over:
                merged[key] = _merged(under, over)
            case _:
                merged[key] = value
    return merged


def delete_in_use(directory: Path) -> None:
    """Delete a directory of a running server, which may create files in it meanwhile, and make it again afterwards."""
    deadline = time.monotonic() + EVENT_TIMEOUT_S
    while True:
        try:
            shutil.rmtree(directory)
        except OSError:  # not empty again, or the server has deleted a file first
            if time.monotonic() > deadline:
                raise
        else:
            return

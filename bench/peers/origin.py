"""The upstream as a process of its own: started, set, asked what reached it, frozen and stopped."""

import http.client
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

from bench.peers.accounting import Group
from tests.support.processes import Process, free_port

START_LIMIT_S = 10.0


@attrs.frozen
class Asked:
    """What reached the upstream since `forget`, over some paths."""

    gets: int
    heads: int
    body_bytes: int
    first_byte_at: float | None


class Upstream:
    """One upstream on one port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.group = Group.make("upstream")
        self._process: Process | None = None
        self._set: dict[str, float] = {}

    def start(self) -> None:
        argv = [sys.executable, "-m", "bench.peers.upstream", str(self.port), self.directory]
        with self.group.entered():
            self._process = Process.start(argv, log=self.directory / "upstream.log")
        self.group.root_pid = self._process.pid
        self._process.wait_until(self._answers, "answering", START_LIMIT_S)
        self._control("set", **self._set)

    def stop(self) -> None:
        """From here on connections are refused."""
        process, self._process = self._process, None
        if process is not None:
            process.end(signal.SIGKILL)

    def freeze(self) -> None:
        """From here on connections are taken and nothing is said, until `thaw`."""
        assert self._process is not None, "the upstream does not run"
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """End `freeze`."""
        assert self._process is not None, "the upstream does not run"
        self._process.send(signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        self.group.remove()

    def set_line(self, *, delay_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        """Set the delay of every answer and the bandwidth of all bodies together; 0 is none and unlimited."""
        self._set = {"delay_s": delay_s, "bytes_per_s": bytes_per_s}
        self._control("set", **self._set)

    def forget(self) -> None:
        """Count from here."""
        self._control("forget")

    def asked(self, *, containing: str = "/v2/") -> Asked:
        """What it was asked on paths that contain a text."""
        counts = [count for path, count in self._control("counts").items() if containing in path]
        firsts = [count["first_byte_at"] for count in counts if count["first_byte_at"] is not None]
        return Asked(
            sum(count["gets"] for count in counts),
            sum(count["heads"] for count in counts),
            sum(count["body_bytes"] for count in counts),
            min(firsts, default=None),
        )

    def _control(self, word: str, **query: float) -> Mapping[str, dict[str, float]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            text = "&".join(f"{key}={value}" for key, value in query.items())
            connection.request("GET", f"/control/{word}?{text}")
            found: Mapping[str, dict[str, float]] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return found

    def _answers(self) -> bool:
        try:
            self._control("counts")
        except OSError:
            return False
        return True

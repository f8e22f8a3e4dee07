"""The process of the upstream: starts, configures, pauses and stops it, and reads its request counts."""

import http.client
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import attrs

from bench.peers.accounting import ControlGroup
from tests.support.processes import Process, free_port


@attrs.frozen
class RequestCounts:
    """Requests to the upstream since `reset_counts`, for some paths."""

    gets: int
    heads: int
    body_bytes: int
    first_byte_at: float | None


class UpstreamProcess:
    """One upstream on one port."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.group = ControlGroup.make("upstream")
        self._process: Process | None = None
        self._link: dict[str, float] = {}

    def start(self) -> None:
        argv = [sys.executable, "-m", "bench.peers.upstream", str(self.port), self.directory]
        with self.group.entered():
            self._process = Process.start(argv, log=self.directory / "upstream.log")
        self.group.root_pid = self._process.pid
        self._process.wait_until(self._is_ready, "responding")
        self._control("set", **self._link)

    def stop(self) -> None:
        """Stop the process: connections are refused."""
        process, self._process = self._process, None
        if process is not None:
            process.end(signal.SIGKILL)

    def pause(self) -> None:
        """Suspend the process: connections are accepted, and nothing is sent, until `resume`."""
        assert self._process is not None, "the upstream does not run"
        self._process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """End `pause`."""
        assert self._process is not None, "the upstream does not run"
        self._process.send(signal.SIGCONT)

    def close(self) -> None:
        self.stop()
        self.group.remove()

    def set_link(self, *, delay_s: float = 0.0, bytes_per_s: float = 0.0, piece_bytes: int = 0) -> None:
        """Set the delay of each response and the bandwidth of all bodies together; 0 is no delay and no limit.

        With a limit, `piece_bytes` is how much is sent at once; 0 is 16 KiB.
        """
        self._link = {"delay_s": delay_s, "bytes_per_s": bytes_per_s, "piece_bytes": piece_bytes}
        self._control("set", **self._link)

    def reset_counts(self) -> None:
        """Count requests from now on."""
        self._control("forget")

    def count_requests(self, *, containing: str = "/v2/") -> RequestCounts:
        """The requests for paths that contain a text."""
        counts = [count for path, count in self._control("counts").items() if containing in path]
        firsts = [count["first_byte_at"] for count in counts if count["first_byte_at"] is not None]
        return RequestCounts(
            sum(count["gets"] for count in counts),
            sum(count["heads"] for count in counts),
            sum(count["body_bytes"] for count in counts),
            min(firsts, default=None),
        )

    def _control(self, command: str, **query: float) -> Mapping[str, dict[str, float]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            text = "&".join(f"{key}={value}" for key, value in query.items())
            connection.request("GET", f"/control/{command}?{text}")
            found: Mapping[str, dict[str, float]] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return found

    def _is_ready(self) -> bool:
        try:
            self._control("counts")
        except OSError:
            return False
        return True

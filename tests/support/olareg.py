"""Another real upstream: olareg, which has the referrers API and sha512, unlike distribution."""

import signal
from pathlib import Path

from tests.support.loopback_server import LoopbackServer
from tests.support.processes import Process, free_port


class Olareg(LoopbackServer):
    """A registry with its own port and directory; both stay the same when it is stopped and started again."""

    def __init__(self, program: Path, directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.port = free_port()
        self._process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        storage = self.directory / "storage"
        storage.mkdir(exist_ok=True)
        listen = ["--addr", "127.0.0.1", "--port", str(self.port)]
        self._process = Process.start(
            [self.program, "serve", *listen, "--dir", storage, "--gc-frequency", "-1s"],
            log=self.directory / "olareg.log",
            environ={"PATH": "/usr/bin:/bin", "HOME": str(self.directory)},
        )
        self._process.wait_until(self.is_answering, "answering")

    def stop(self) -> None:
        """Kill it: connections are refused from now on. What was pushed is on disk already."""
        process, self._process = self._process, None
        if process is not None:
            process.end(signal.SIGKILL)

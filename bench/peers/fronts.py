"""Load balancers between the clients and a cache: HAProxy and nginx, with the configurations of ops/.

Only addresses, directories, the user and the number of servers are changed in them; and the path of the health check,
where the cache is not Dockyard. Both keep connections to clients and to the cache. Their CPU time is not measured.
"""

from pathlib import Path

import attrs

from bench.peers.load import is_serving
from tests.deploy.fleet import EXAMPLES, write_nginx_config
from tests.support.paths import ROOT
from tests.support.processes import Process, free_port

READY_TIMEOUT_S = 5.0
FRONT_NAMES = ("haproxy", "nginx")


@attrs.define(eq=False)
class Front:
    """One load balancer with one cache behind it."""

    name: str
    program: Path
    directory: Path
    port: int = attrs.field(factory=free_port)
    _process: Process | None = attrs.field(default=None, init=False)

    def start(self, cache_port: int, probe: str) -> None:
        """Start it, and wait until a request has come back from the cache."""
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self._write_config(f"127.0.0.1:{cache_port}", probe)
        command: list[str | Path] = [self.program, "-db", "-f", config]
        if self.name == "nginx":
            command = [self.program, "-p", self.directory, "-c", config, "-g", "daemon off;"]
        self._process = Process.start(command, log=self.directory / "front.log")
        self._process.wait_until(self._is_ready, "responding")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end_all()

    def _write_config(self, address: str, probe: str) -> Path:
        first, *others = EXAMPLES
        if self.name == "nginx":
            config = write_nginx_config(ROOT / "ops", self.directory, self.port)
            changes = {f"        server {each} max_fails=3 fail_timeout=5s;\n": "" for each in others}
            text = config.read_text()
        else:
            config = self.directory / "haproxy.cfg"
            changes = {f"    server dockyard-{number} {each} check\n": "" for number, each in enumerate(others, 2)}
            changes |= {
                "    user haproxy\n    group haproxy\n": "",
                "bind :5000": f"bind 127.0.0.1:{self.port}",
                "/run/haproxy/admin.sock": f"{self.directory}/admin.sock",
                "uri /readyz": f"uri {probe}",
            }
            text = (ROOT / "ops" / "haproxy" / "haproxy.cfg").read_text()
        for old, new in {**changes, first: address}.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        config.write_text(text)
        return config

    def _is_ready(self) -> bool:
        return is_serving(self.port, READY_TIMEOUT_S)

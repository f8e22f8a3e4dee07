"""Toxiproxy before a server: slow, and cut, as a network would do it."""

import http.client
import json
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.rig.processes import Process, RigError, free_port

START_LIMIT_S = 10.0
ASK_LIMIT_S = 10.0


class Toxiproxy:
    """A toxiproxy with one proxy, which leads to a loopback port."""

    def __init__(self, program: Path, directory: Path, to_port: int) -> None:
        self._api, self._port = free_port(), free_port()
        self._toxics: list[str] = []
        self._process = Process.start(
            [program, "-host", "127.0.0.1", "-port", str(self._api)], log=directory / "toxiproxy.log"
        )
        self._process.wait_until(self._answers, "answering", START_LIMIT_S)
        proxy = {"name": "s3", "listen": self.host, "upstream": f"127.0.0.1:{to_port}", "enabled": True}
        self._ask("POST", "/proxies", proxy)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._port}"

    def slow_down(self, latency_s: float) -> None:
        """Every answer comes so much later."""
        self._add("latency", "downstream", latency=int(latency_s * 1000))

    def narrow(self, kilobytes_per_s: int) -> None:
        """So little goes through, each way."""
        self._add("bandwidth", "upstream", rate=kilobytes_per_s)
        self._add("bandwidth", "downstream", rate=kilobytes_per_s)

    def mend(self) -> None:
        """All is well again."""
        while self._toxics:
            self._ask("DELETE", f"/proxies/s3/toxics/{self._toxics.pop()}")

    def close(self) -> None:
        self._process.end()

    def _add(self, kind: str, stream: str, **attributes: int) -> None:
        name = f"{kind}-{stream}"
        self._ask(
            "POST", "/proxies/s3/toxics", {"name": name, "type": kind, "stream": stream, "attributes": attributes}
        )
        self._toxics.append(name)

    def _answers(self) -> bool:
        try:
            self._ask("GET", "/version")
        except OSError:
            return False
        return True

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", self._api, timeout=ASK_LIMIT_S)) as connection:
            connection.request(method, path, json.dumps(body) if body else None)
            answer = connection.getresponse()
            said = answer.read()
        if answer.status >= 300:
            raise RigError(f"toxiproxy: {method} {path} -> {answer.status} {said!r}")

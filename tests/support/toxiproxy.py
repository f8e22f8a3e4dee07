"""Network faults between Dockyard and a server, by toxiproxy: refused, reset, cut, silent or slow connections.

Controlled through toxiproxy-python, whose pitfalls are handled here: it supports one server per process, and its HTTP
client uses proxy variables. What the toxics do was measured:

- `refuse_connections` refuses new connections and ends existing ones by FIN.
- `reset_connections` resets new connections before their first byte.
- `cut(n)` passes exactly `n` bytes of a response, headers included, and then ends the connection by FIN or RST. It
  counts per connection, so the server must close after each response (`Connection: close`). For RST a `reset_peer` is
  added that never triggers by itself: its presence when a connection begins turns every end of it into a reset.
- `drop_responses` passes nothing on; the connection stays open as long as the server keeps it.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import toxiproxy
from toxiproxy.api import APIConsumer

from tests.support.processes import Process, free_port

LOOPBACK = "127.0.0.1"


class TcpProxy:
    """A TCP proxy in front of one server, with faults. It keeps its port."""

    def __init__(self, proxy: toxiproxy.Proxy) -> None:
        self.authority: str = proxy.listen
        self._proxy = proxy

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.authority.rpartition(":")
        return host, int(port)

    @property
    def url(self) -> str:
        return f"http://{self.authority}"

    def refuse_connections(self) -> None:
        """Refuse new connections, and end existing ones by FIN."""
        self._proxy.disable()

    def reset_connections(self) -> None:
        """Reset each new connection before its first byte."""
        self._add("reset_peer", timeout=0)

    def cut(self, at: int, *, by_reset: bool = False) -> None:
        """End each new connection after `at` bytes from the server."""
        self._add("limit_data", bytes=at)
        if by_reset:
            self._add("reset_peer", toxicity=0.0, timeout=0)

    def drop_responses(self) -> None:
        """Pass nothing on from the server."""
        self._add("timeout", timeout=0)

    def add_latency(self, latency_s: float) -> None:
        """Delay every response."""
        self._add("latency", latency=int(latency_s * 1000))

    def limit_bandwidth(self, kilobytes_per_s: int, streams: Sequence[str] = ("upstream", "downstream")) -> None:
        """Limit the bandwidth of each direction."""
        for stream in streams:
            self._add("bandwidth", stream=stream, rate=kilobytes_per_s)

    def restore(self) -> None:
        """Remove all faults."""
        for name in self._proxy.toxics():
            self._proxy.destroy_toxic(name)
        if not self._proxy.enabled:
            self._proxy.enable()

    def close(self) -> None:
        self._proxy.destroy()

    def _add(self, kind: str, *, stream: str = "downstream", toxicity: float = 1.0, **attributes: int) -> None:
        self._proxy.add_toxic(type=kind, stream=stream, toxicity=toxicity, attributes=attributes)


class Toxiproxy:
    """A toxiproxy server. One per test process: the library stores the address of one server only."""

    def __init__(self, program: Path, directory: Path) -> None:
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = LOOPBACK  # the library's HTTP client would use a proxy
        self._port = free_port()
        self._server = toxiproxy.Toxiproxy()
        self._server.update_api_consumer(LOOPBACK, self._port)
        self._proxies = 0
        self._process = Process.start(
            [program, "-host", LOOPBACK, "-port", str(self._port)], log=directory / "toxiproxy.log"
        )
        self._process.wait_until(self._server.running, "answering")

    def create_proxy(self, port: int) -> TcpProxy:
        """Create a proxy in front of a loopback port."""
        assert APIConsumer.port == self._port, "there is another toxiproxy in this process"
        self._proxies += 1
        listen = f"{LOOPBACK}:{free_port()}"
        return TcpProxy(self._server.create(f"{LOOPBACK}:{port}", f"way-{self._proxies}", listen=listen))

    def close(self) -> None:
        self._process.end()

"""How much requests that hang at one upstream delay the pulls of another.

    python -m bench.isolation [--requests 200] [--rounds 7] [--workers 0]

One Dockyard has two upstreams. One is fast. The other accepts connections and never answers, but for `/v2/`, so that it
does not count as down. In each round, the same pulls from the fast upstream are measured without load, and while
requests hang at the other one: half of them for tags, half for layers. Printed are the medians of all rounds; the exit
status is 1 if a pull takes more than MAX_RATIO times as long with load.
"""

import argparse
import contextlib
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import attrs

from bench.peers.content import REPOSITORY, Blob, Image, UpstreamContent
from bench.peers.load import check
from bench.peers.upstream_process import UpstreamProcess
from bench.peers.workload import MIB
from tests.support.deployment import upstream
from tests.support.dockyard import Dockyard, running

MAX_RATIO = 1.2
LAYER_BYTES = 8 * MIB
WARM_PULLS = 40
COLD_PULLS = 8
HANGING_REPOSITORIES = 10
HANGS_AFTER_S = 1.0  # until the requests that hang have reached their threads and queues
MAX_HANGS_AFTER_S = 30.0  # the same on a busy machine
LIMITS = {"check_timeout": "120s", "stall_timeout": "120s"}  # what hangs, hangs for longer than a round


class HangingRegistry:
    """A registry that answers `/v2/` and nothing else. `release` closes all connections."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._connections: list[socket.socket] = []
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def hanging(self) -> int:
        return len(self._connections)

    def release(self) -> None:
        while self._connections:
            self._connections.pop().close()

    def close(self) -> None:
        self._listener.close()
        self.release()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._respond, args=(connection,), daemon=True).start()

    def _respond(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            request = connection.recv(4096)
            if request.startswith(b"GET /v2/ "):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
                connection.close()
            else:
                self._connections.append(connection)


@attrs.frozen
class Pulls:
    """What is pulled from the fast upstream: warm and cold content."""

    port: int
    warm: Image
    content: UpstreamContent

    def warm_tag(self) -> None:
        """A cached tag: it is checked with the upstream."""
        self._get(f"manifests/{self.warm.tag}", self.warm.index)

    def warm_layer(self) -> None:
        """A cached layer."""
        self._get(f"blobs/{self.warm.layers[0].digest}", self.warm.layers[0])

    def cold_image(self, image: Image) -> None:
        """An image that is not cached: index, manifest, config, layer."""
        self._get(f"manifests/{image.tag}", image.index)
        self._get(f"manifests/{image.manifest.digest}", image.manifest)
        for blob in (image.config, *image.layers):
            self._get(f"blobs/{blob.digest}", blob)

    def _get(self, path: str, expected: Blob) -> None:
        check(self.port, f"/v2/fast.test/{REPOSITORY}/{path}", expected)


class Timings:
    """Seconds, by pull and by load."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, bool], list[float]] = {}

    def measure(self, name: str, pull: Callable[[], object], *, is_loaded: bool) -> None:
        began_at = time.perf_counter()
        pull()
        self._seconds.setdefault((name, is_loaded), []).append(time.perf_counter() - began_at)

    def report(self) -> bool:
        """Print the medians; return whether all are within MAX_RATIO."""
        print(f"{'':12} {'without':>10} {'with load':>10}  ratio")
        is_within = True
        for name in dict.fromkeys(name for name, _ in self._seconds):
            without, loaded = (statistics.median(self._seconds[name, is_loaded]) for is_loaded in (False, True))
            is_within = is_within and loaded <= MAX_RATIO * without
            print(f"{name:12} {without * 1000:7.2f} ms {loaded * 1000:7.2f} ms  {loaded / without:5.2f}")
        return is_within


@contextlib.contextmanager
def load(port: int, registry: HangingRegistry, requests: int, number: int) -> Iterator[None]:
    """Let requests hang, of names that were not used before; release them at the end."""
    connections = []
    for request in range(requests):
        name = f"round-{number}/app-{request % HANGING_REPOSITORIES}"
        digest = sha256(f"{number} {request}".encode()).hexdigest()
        path = f"manifests/v{request}" if request % 2 else f"blobs/sha256:{digest}"
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(f"GET /v2/slow.test/{name}/{path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
        connections.append(connection)
    try:
        deadline = time.monotonic() + MAX_HANGS_AFTER_S
        time.sleep(HANGS_AFTER_S)
        while registry.hanging < min(requests, 2 * HANGING_REPOSITORIES):
            if time.monotonic() > deadline:
                raise RuntimeError(f"only {registry.hanging} requests hang at the upstream")
            time.sleep(HANGS_AFTER_S)
        yield
    finally:
        for connection in connections:
            connection.close()
        registry.release()


def measure(directory: Path, requests: int, rounds: int, workers: int) -> Timings:
    """Run all rounds."""
    content = UpstreamContent(directory / "content")
    registry, hanging = UpstreamProcess(content.directory), HangingRegistry()
    timings = Timings()
    with contextlib.ExitStack() as stack:
        stack.callback(hanging.close)
        stack.callback(registry.close)
        registry.start()
        ours = [
            upstream("fast.test", f"http://127.0.0.1:{registry.port}"),
            upstream("slow.test", f"http://127.0.0.1:{hanging.port}"),
        ]
        server = Dockyard(directory / "dockyard", ours, workers=workers, settings={"upstream": LIMITS})
        dockyard = stack.enter_context(running(server))
        pulls = Pulls(dockyard.port, content.add_image("warm", (LAYER_BYTES,)), content)
        pulls.cold_image(pulls.warm)
        for number in range(rounds):
            for is_loaded in (False, True):
                images = [
                    content.add_image(f"cold-{number}-{is_loaded}-{image}", (LAYER_BYTES,))
                    for image in range(COLD_PULLS)
                ]
                busy = load(dockyard.port, hanging, requests, number) if is_loaded else contextlib.nullcontext()
                with busy:
                    _measure_pulls(timings, pulls, images, is_loaded=is_loaded)
    return timings


def _measure_pulls(timings: Timings, pulls: Pulls, images: list[Image], *, is_loaded: bool) -> None:
    pulls.warm_tag()  # not measured: the first pull after the images were generated
    for _ in range(WARM_PULLS):
        timings.measure("cached tag", pulls.warm_tag, is_loaded=is_loaded)
        timings.measure("cached layer", pulls.warm_layer, is_loaded=is_loaded)
    for image in images:
        timings.measure("cold image", lambda image=image: pulls.cold_image(image), is_loaded=is_loaded)


def main() -> None:
    """Parse the command line, measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.isolation", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200, help="that hang at the same time (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="(default %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="of Dockyard; 0: one for each core (the default)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        timings = measure(Path(directory), arguments.requests, arguments.rounds, arguments.workers)
    sys.exit(not timings.report())


if __name__ == "__main__":
    main()

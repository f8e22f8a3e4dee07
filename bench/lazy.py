"""Ranges of layers that are not cached, and large blobs over several connections.

    python -m bench.lazy [--rounds 5] [--layer-mib 1024] [--large-mib 4096] [--out FILE] [footer|patterns|large ...]

- `footer`: the last 50 bytes of a cold layer, over a line of 100 MiB/s with a delay of 50 ms: from the registry itself,
  through Dockyard with and without `lazy`, and through distribution as a proxy. Then the download in the background
  ends, and what Dockyard has requested for it is counted.
- `patterns`: the time that a lazy client needs for its requests of one cold layer, in the same places. The requests are
  those of `tests/lazy/patterns.json`.
- `large`: the throughput of a cold blob with `upstream.connections` 4 and 1, where each connection has 50 MiB/s
  (toxiproxy), and the memory of the workers.

In each round every place gets the same new layer, in turn. The table has medians over the rounds with the lowest and
the highest value, and the ratio of the medians to that of the first place. The last piece of a layer with a footer is
half a piece (512 KiB) long, as on average.
"""

import argparse
import contextlib
import http.client
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path

import attrs

from bench.peers.caches import CacheServer, make_cache
from bench.peers.content import REPOSITORY, Image, UpstreamContent
from bench.peers.load import LoadError, check
from bench.peers.machine import describe
from bench.peers.programs import ProgramResult, Programs
from bench.peers.upstream_process import UpstreamProcess
from bench.peers.workload import MIB
from tests.lazy.patterns import PATTERNS, LazyRequest, Pattern
from tests.support.deployment import upstream
from tests.support.dockyard import Dockyard, running
from tests.support.toxiproxy import Toxiproxy

LINE_BYTES_PER_S = 100 * MIB
DELAY_S = 0.050
CONNECTION_KILOBYTES_PER_S = 50 * 1024
FOOTER_BYTES = 50
LAZY, IN_ORDER = "lazy.test", "up.test"
LIMIT_S = 600.0
QUIET_S = 0.5


@attrs.frozen
class Place:
    """Where a layer is requested: the registry, or a cache. `prefix` is that of the repository there."""

    name: str
    port: int
    prefix: str = ""

    def path(self, kind: str, reference: str) -> str:
        return f"/v2/{self.prefix}{REPOSITORY}/{kind}/{reference}"

    def get(self, path: str, ranges: str | None = None, method: str = "GET") -> tuple[int, bytes]:
        """The status and the body of a response. Raises OSError, HTTPException."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            connection.request(method, path, headers={"Range": ranges} if ranges else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def pull_manifest(self, image: Image) -> None:
        """What a client does before it requests a layer."""
        self.get(self.path("manifests", image.tag))
        self.get(self.path("manifests", image.manifest.digest))


class Results:
    """Numbers, by what was measured (with its unit) and by place: one of each round."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, list[float]]] = {}

    def add(self, what: str, place: str, number: float) -> None:
        self._numbers.setdefault(what, {}).setdefault(place, []).append(number)

    def measure(self, what: str, place: str, call: Callable[[], object]) -> None:
        """Add the milliseconds that a call takes."""
        began_at = time.perf_counter()
        call()
        self.add(what, place, 1000 * (time.perf_counter() - began_at))

    def rows(self) -> list[str]:
        """The rows of a table in Markdown: what, place, median, lowest to highest, ratio to the first place."""
        rows = []
        for what, places in self._numbers.items():
            first = statistics.median(next(iter(places.values())))
            for place, numbers in places.items():
                median = statistics.median(numbers)
                spread = f"{_format(min(numbers))} to {_format(max(numbers))}"
                rows.append(f"| {what} | {place} | {_format(median)} | {spread} | {median / first:.2f} |")
        return rows


def _format(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.4g}"


@contextlib.contextmanager
def open_places(directory: Path, registry: UpstreamProcess, content: UpstreamContent) -> Iterator[list[Place]]:
    """The registry, Dockyard with and without `lazy`, and distribution, as far as that is available."""
    url = f"http://127.0.0.1:{registry.port}"
    upstreams = [upstream(LAZY, url, lazy=True), upstream(IN_ORDER, url)]
    with contextlib.ExitStack() as stack:
        dockyard = stack.enter_context(running(Dockyard(directory / "dockyard", upstreams, workers=2)))
        places = [
            Place("direct", registry.port),
            Place("dockyard, lazy", dockyard.port, f"{LAZY}/"),
            Place("dockyard", dockyard.port, f"{IN_ORDER}/"),
        ]
        peer = make_cache("distribution", Programs(), directory, registry.port, content.directory)
        if isinstance(peer, ProgramResult):
            print(f"without distribution: {peer}")
        else:
            assert isinstance(peer, CacheServer)
            stack.callback(peer.close)
            peer.start()
            places.append(Place("distribution", peer.port))
        yield places


def wait_until_quiet(registry: UpstreamProcess) -> None:
    """Wait until the registry sends nothing any more."""
    before = -1
    while (now := registry.count_requests().body_bytes) != before:
        before = now
        time.sleep(QUIET_S)


def measure_footers(directory: Path, rounds: int, layer_bytes: int) -> Results:
    """The last bytes of a cold layer. Raises LoadError for wrong bytes, or bytes that came twice."""
    results = Results()
    with open_upstream(directory) as (registry, content), open_places(directory, registry, content) as places:
        for number in range(rounds):
            for place in places:
                image = content.add_image(f"{number}-{places.index(place)}", (layer_bytes,))
                (layer,) = image.layers
                registry.set_link()
                place.pull_manifest(image)
                registry.set_link(delay_s=DELAY_S, bytes_per_s=LINE_BYTES_PER_S)
                registry.reset_counts()
                ranges = f"bytes={layer_bytes - FOOTER_BYTES}-{layer_bytes - 1}"
                path = place.path("blobs", layer.digest)
                results.measure("footer: ms", place.name, partial(expect_range, place, path, ranges, FOOTER_BYTES))
                if place.prefix == f"{LAZY}/":
                    first = registry.count_requests(containing=layer.digest)
                    registry.set_link()
                    wait_until_quiet(registry)
                    check(place.port, path, layer)
                    total = registry.count_requests(containing=layer.digest).body_bytes
                    requests, share = first.gets + first.heads, total / layer_bytes
                    results.add("footer: requests upstream until it came", place.name, requests)
                    results.add("footer: bytes from upstream in the end, in layers", place.name, share)
                    if total > 1.02 * layer_bytes:
                        raise LoadError(f"{total} bytes of {layer_bytes} were requested")
                registry.set_link()
                wait_until_quiet(registry)
                content.remove(layer)
    return results


def measure_patterns(directory: Path, rounds: int) -> Results:
    """All requests of a lazy client for one cold layer."""
    results = Results()
    with open_upstream(directory) as (registry, content), open_places(directory, registry, content) as places:
        for pattern in PATTERNS.values():
            for number in range(rounds):
                for place in places:
                    tag = f"{pattern.name}-{number}-{places.index(place)}"
                    image = content.add_image(sha256(tag.encode()).hexdigest(), (pattern.size,))
                    place.pull_manifest(image)
                    registry.set_link(delay_s=DELAY_S, bytes_per_s=LINE_BYTES_PER_S)
                    path = place.path("blobs", image.layers[0].digest)
                    results.measure(
                        f"requests of {pattern.name}: ms", place.name, partial(replay, place, path, pattern)
                    )
                    registry.set_link()
                    wait_until_quiet(registry)
    return results


def replay(place: Place, path: str, pattern: Pattern) -> None:
    """Send the requests of a pattern, the first one first."""

    def send(request: LazyRequest) -> None:
        place.get(path, request.header, request.method)

    first, *others = [request for request in pattern.requests if not request.has_too_many_ranges]
    send(first)
    with ThreadPoolExecutor(len(others) if pattern.at_once and others else 1) as pool:
        for result in [pool.submit(send, request) for request in others]:
            result.result()


def measure_large(directory: Path, rounds: int, size: int) -> Results:
    """A cold blob over one and over four connections, each of which has the same bandwidth."""
    results = Results()
    with contextlib.ExitStack() as stack:
        registry, content = stack.enter_context(open_upstream(directory))
        toxiproxy = Toxiproxy(Programs().need("toxiproxy-server"), directory)
        stack.callback(toxiproxy.close)
        line = toxiproxy.create_proxy(registry.port)
        line.limit_bandwidth(CONNECTION_KILOBYTES_PER_S, ("downstream",))
        for number in range(rounds):
            for connections in (1, 4):
                blob = content.add_blob(size)
                ours = [upstream(IN_ORDER, line.url)]
                settings = {"upstream": {"connections": connections}}
                server = Dockyard(directory / f"large-{number}-{connections}", ours, workers=2, settings=settings)
                with running(server):
                    place = Place(
                        "1 connection" if connections == 1 else f"{connections} connections",
                        server.port,
                        f"{IN_ORDER}/",
                    )
                    path = place.path("blobs", blob.digest)
                    began_at = time.perf_counter()
                    check(place.port, path, blob)
                    results.add("large blob: MiB/s", place.name, size / MIB / (time.perf_counter() - began_at))
                    memory = sum(read_peak_memory(pid) for pid in server.worker_pids())
                    results.add("large blob: peak memory of two workers, MiB", place.name, memory / MIB)
                content.remove(blob)
    return results


@contextlib.contextmanager
def open_upstream(directory: Path) -> Iterator[tuple[UpstreamProcess, UpstreamContent]]:
    """A registry and its content."""
    content = UpstreamContent(directory / "content")
    registry = UpstreamProcess(content.directory)
    with contextlib.closing(registry):
        registry.start()
        yield registry, content


def expect_range(place: Place, path: str, ranges: str, length: int) -> None:
    """Request a range. Raises LoadError if the response is another one; a peer may send the whole layer instead."""
    status, body = place.get(path, ranges)
    is_whole = status == http.HTTPStatus.OK and place.name == "distribution"
    if not is_whole and (status != http.HTTPStatus.PARTIAL_CONTENT or len(body) != length):
        raise LoadError(f"{place.name}: status {status}, {len(body)} bytes")


def read_peak_memory(pid: int) -> int:
    """The largest resident memory that a process has had, without pages of files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024 - int(fields["RssFile"].split()[0]) * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure and report."""
    parser = argparse.ArgumentParser(prog="python -m bench.lazy", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="(default %(default)s)")
    parser.add_argument("--layer-mib", type=int, default=1024, help="size of the layer with the footer (%(default)s)")
    parser.add_argument("--large-mib", type=int, default=4096, help="size of the large blob (%(default)s)")
    parser.add_argument("--out", type=Path, help="write the table to this file too")
    parser.add_argument("what", nargs="*", help="footer, patterns, large; all by default")
    options = parser.parse_args(arguments)
    measures: Mapping[str, Callable[[Path], Results]] = {
        "footer": lambda directory: measure_footers(directory, options.rounds, options.layer_mib * MIB + MIB // 2),
        "patterns": lambda directory: measure_patterns(directory, options.rounds),
        "large": lambda directory: measure_large(directory, options.rounds, options.large_mib * MIB),
    }
    lines = ["| what | place | median | lowest to highest | ratio |", "|---|---|--:|--:|--:|"]
    for name in options.what or measures:
        with tempfile.TemporaryDirectory() as directory:
            lines += measures[name](Path(directory)).rows()
    machine = ", ".join(f"{key} {value}" for key, value in describe().items())
    text = "\n".join([*lines, "", f"{options.rounds} rounds; {machine}.", ""])
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()

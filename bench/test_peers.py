"""The tools of the benchmarks: the upstream, the load generators, accounting, reports and targets."""

import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bench.peers import page, readme, report, targets
from bench.peers.accounting import ControlGroup
from bench.peers.caches import BASELINE, CacheServer, make_cache
from bench.peers.content import OCI_INDEX, REPOSITORY, Blob, UpstreamContent
from bench.peers.load import LoadError, check, discard
from bench.peers.measuring import Rounds, check_free_bytes
from bench.peers.programs import Programs
from bench.peers.report import Report
from bench.peers.upstream_process import UpstreamProcess
from bench.peers.workload import MIB
from tests.support.bodies import Synthetic
from tests.support.fake_registry import FakeRegistry
from tests.support.faults import cut, header

PUBLISHED = Path(__file__).parent / "published"
BURN_S = 0.3
BURN = f"import time\nuntil = time.process_time() + {BURN_S}\nwhile time.process_time() < until: pass"

SERVER = """
import http.server, pathlib, re, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        pathlib.Path(__file__).parents[1].joinpath("served").touch()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

(port,) = re.findall("port: '([0-9]+)'", pathlib.Path(sys.argv[-1]).read_text())
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[tuple[UpstreamProcess, UpstreamContent]]:
    """A fast upstream without content."""
    content = UpstreamContent(tmp_path / "content")
    upstream = UpstreamProcess(content.directory)
    try:
        upstream.start()
        yield upstream, content
    finally:
        upstream.close()


def _request(port: int, method: str, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_the_upstream_is_a_registry(upstream: tuple[UpstreamProcess, UpstreamContent]) -> None:
    """Blobs, ranges, manifests by tag and by digest, 404 for others; and each request is counted."""
    registry, content = upstream
    image = content.add_image("v1", (5 * MIB,))
    layer = image.layers[0]
    path = f"/v2/{REPOSITORY}/blobs/{layer.digest}"
    check(registry.port, path, layer)
    for reference in (image.tag, image.index.digest):
        check(registry.port, f"/v2/{REPOSITORY}/manifests/{reference}", image.index)
    part, body = _request(registry.port, "GET", path, Range="bytes=10-19")
    assert (part.status, len(body)) == (206, 10)
    assert part.getheader("Content-Range") == f"bytes 10-19/{layer.size}"
    head, body = _request(registry.port, "HEAD", f"/v2/{REPOSITORY}/manifests/v1")
    assert (head.getheader("Docker-Content-Digest"), body) == (image.index.digest, b"")
    assert head.getheader("Content-Type") == OCI_INDEX
    assert (
        _request(registry.port, "GET", f"/v2/{REPOSITORY}/blobs/sha256:{'0' * 64}")[0].status
        == http.HTTPStatus.NOT_FOUND
    )
    counts = registry.count_requests(containing=layer.digest)
    assert (counts.gets, counts.heads, counts.body_bytes) == (2, 0, layer.size + 10)
    assert registry.count_requests(containing="/manifests/v1").heads == 1


def test_the_bandwidth_is_shared(upstream: tuple[UpstreamProcess, UpstreamContent]) -> None:
    """Four clients at once get as many bytes as one in the same time, and none before the delay."""
    registry, content = upstream
    blob = content.add_blob(MIB)
    registry.set_link(delay_s=0.1, bytes_per_s=8 * MIB)
    result = discard(registry.port, [[(f"/v2/{REPOSITORY}/blobs/{blob.digest}", blob.size)]] * 4)
    assert result["received"] == 4 * MIB
    assert min(result["first_byte_s"]) >= 0.1
    assert result["wall_s"] >= 4 / 8


def test_a_truncated_body_fails_the_run() -> None:
    """Otherwise it would seem to be fast."""
    with FakeRegistry() as fake_registry:
        body = Synthetic(2 * MIB)
        digest = fake_registry.add_blob(body)
        port = int(fake_registry.authority.rpartition(":")[2])
        path = f"/v2/{REPOSITORY}/blobs/{digest}"
        assert discard(port, [[(path, body.size)]])["received"] == body.size
        with pytest.raises(LoadError, match="expected 5"):
            discard(port, [[(path, 5)]])
        fake_registry.on("blob", cut(MIB))
        with pytest.raises(LoadError, match="early"):
            discard(port, [[(path, body.size)]])


def test_a_client_connects_again_after_connection_close() -> None:
    """Servers may close a connection after a response."""
    with FakeRegistry() as fake_registry:
        body = Synthetic(MIB)
        digest = fake_registry.add_blob(body)
        fake_registry.on("blob", header("Connection", "close"))
        port = int(fake_registry.authority.rpartition(":")[2])
        result = discard(port, [[(f"/v2/{REPOSITORY}/blobs/{digest}", body.size)] * 3])
        assert result["received"] == 3 * body.size
        assert len(result["first_byte_s"]) == 3
        assert result["connections"] == 3


def test_a_connection_is_reused_or_new_for_each_download(upstream: tuple[UpstreamProcess, UpstreamContent]) -> None:
    """As the plan says; also with TLS, and for HEAD, whose responses have no body."""
    registry, content = upstream
    image = content.add_image("v1", (MIB,))
    (layer,) = image.layers
    downloads = [
        (f"/v2/{REPOSITORY}/manifests/{image.index.digest}", image.index.size),
        (f"/v2/{REPOSITORY}/blobs/{layer.digest}", layer.size),
        (f"/v2/{REPOSITORY}/blobs/{layer.digest}", layer.size),
    ]
    for is_fresh, connections in ((False, 2), (True, 6)):
        result = discard(registry.port, [downloads] * 2, is_fresh=is_fresh)
        assert (result["connections"], result["received"]) == (connections, 2 * sum(size for _, size in downloads))
    result = discard(registry.port, [downloads], method="HEAD")
    assert (result["connections"], result["received"], len(result["first_byte_s"])) == (1, 0, 3)
    assert registry.count_requests(containing=layer.digest).heads == 2


def test_wrong_content_fails_the_run(upstream: tuple[UpstreamProcess, UpstreamContent]) -> None:
    """`check` verifies the digest."""
    registry, content = upstream
    blob = content.add_blob(1000)
    with pytest.raises(LoadError, match="expected"):
        check(registry.port, f"/v2/{REPOSITORY}/blobs/{blob.digest}", Blob(f"sha256:{'0' * 64}", 1000))


def test_cpu_of_ended_processes_is_counted() -> None:
    """And only that of processes in the group."""
    group = ControlGroup.make("test")
    if group.directory is None:
        pytest.skip("no control group can be made here")
    try:
        before = group.cpu_s()
        subprocess.run([sys.executable, "-c", BURN], check=True)
        assert group.cpu_s() == before
        with group.entered():
            subprocess.run([sys.executable, "-c", BURN], check=True)
        assert BURN_S <= group.cpu_s() - before < BURN_S + 1
        assert group.pids() == []
    finally:
        group.remove()


def test_memory_is_that_of_the_processes_in_the_group() -> None:
    """Of one that allocates 64 MiB."""
    group = ControlGroup.make("test")
    hold = f"import sys\nheld = bytearray(b'x' * {64 * MIB})\nprint(flush=True)\nsys.stdin.read()"
    with (
        group.entered(),
        subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        group.root_pid = holder.pid
        memory = group.memory()
        assert memory.private_sum >= 64 * MIB
        assert memory.peak_sum >= memory.resident_largest >= memory.anonymous_largest >= 64 * MIB
        holder.communicate()
    group.remove()


def test_memory_that_a_fork_shares_is_counted_once() -> None:
    """As private memory. It is anonymous memory of each process."""
    group = ControlGroup.make("test")
    hold = f"import os\nheld = bytearray(b'x' * {64 * MIB})\nos.fork()\nos.write(1, b'.')\nos.read(0, 1)"
    with group.entered():
        holder = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.read(2) == b".."
        group.root_pid = holder.pid
        memory = group.memory()
        assert memory.processes == 2
        assert memory.anonymous_sum >= 2 * 64 * MIB
        assert 64 * MIB <= memory.private_sum < 2 * 64 * MIB
        holder.communicate()
    group.remove()


def test_the_times_of_a_stopped_run_are_lower_bounds(tmp_path: Path) -> None:
    """They are marked in the tables, also after writing and reading the results."""
    found = Report()
    found.begin("cold-layer-slow", "Cold")
    for seconds in (1.0, 3.0, 2.0):
        found.add("cold-layer-slow", "dockyard", {"last client s": seconds, "cut": 0.0})
    found.add("cold-layer-slow", "distribution", {"last client s": 40.0, "cut": 1.0})
    report.write(found, tmp_path)
    again = report.load(tmp_path)
    assert again == found
    lines = report.as_markdown(again).splitlines()
    assert "| dockyard | 2 (0.03x) | 3 |" in lines  # the ratio of the first round: there is one of distribution
    assert "| distribution | > 40 | 1 |" in lines


def test_ratios_are_of_the_same_round() -> None:
    """Their median and interval; a round in which one of the two failed does not count."""
    found = Report()
    found.begin("w", "A workload")
    for number, value in enumerate((2.0, 4.0, 6.0, 8.0, 10.0, 12.0)):
        found.add("w", "dockyard", {"requests/s": 3 * value if number else value, "round": number})
        if number != 3:
            found.add("w", "distribution", {"requests/s": value, "round": number})
    ratio = found.ratio("w", "requests/s", "dockyard", "distribution")
    assert ratio is not None
    assert (ratio.median, ratio.interval) == (3.0, (1.0, 3.0))
    assert "| dockyard | 21 (3.00x, 1.00 to 3.00) | 6 |" in report.as_markdown(found)
    assert found.rounds() == (6, 6)


@pytest.mark.parametrize(
    ("rates", "result"),
    [
        ((1300.0, 1250.0, 1400.0, 1350.0, 1210.0), "1.30 | 1.21 to 1.40 | reached"),
        ((1100.0, 1150.0, 1000.0, 900.0, 1190.0), "1.10 | 0.90 to 1.19 | **not reached**"),
        ((1300.0, 1250.0, 1400.0, 1350.0, 1100.0), "1.30 | 1.10 to 1.40 | undecided"),
        ((1300.0,), "1.30 | no interval | undecided"),
        ((), " |  | not measured"),
    ],
)
def test_targets_are_evaluated(rates: tuple[float, ...], result: str) -> None:
    """By their interval: medians of fewer than five rounds decide nothing."""
    found = Report()
    for number, rate in enumerate(rates):
        for cache, value in (("dockyard", rate), ("distribution", 1000.0)):
            found.add("warm-blob-1", cache, {"MiB/s": value, "round": number})
    lines = targets.as_markdown(found, 64).splitlines()
    assert f"| warm blob, 1 client, new connections: throughput / distribution's | ≥ 1.2 | {result} |" in lines


def test_a_workload_is_repeated_until_its_ratios_are_precise() -> None:
    """At least and at most as often as wanted; numbers without a target have no influence."""
    found = Report()
    rounds = Rounds(least=5, most=7, precision=0.1)
    for number, rate in enumerate((1000.0, 1200.0, 1000.0, 1000.0, 1000.0, 1000.0, 1000.0, 1000.0)):
        for cache, value in (("dockyard", rate), ("distribution", 1000.0)):
            found.add("warm-small-64k", cache, {"requests/s": value, "round": number})
        if number + 1 < 7:
            assert not rounds.is_enough(found, "warm-small-64k", number + 1, 64)
    assert rounds.is_enough(found, "warm-small-64k", 7, 64)
    assert Rounds(least=5, most=20, precision=0.1).is_enough(found, "warm-small-64k", 8, 64)
    assert Rounds(least=5, most=20, precision=0.1).is_enough(found, "another", 5, 64)
    assert Rounds(least=2).is_enough(found, "warm-small-64k", 2, 64)


def test_a_baseline_is_the_reference() -> None:
    """Ratios are to another commit where one was measured, else to distribution."""
    found = Report()
    found.begin("w", "A workload")
    for cache, value in (("dockyard", 1.0), ("distribution", 4.0)):
        found.add("w", cache, {"CPU s/GiB": value})
    assert "| dockyard | 1 (0.25x) | 1 |" in report.as_markdown(found)
    found.add("w", BASELINE, {"CPU s/GiB": 2.0})
    assert "| dockyard | 1 (0.50x) | 1 |" in report.as_markdown(found)


def test_a_baseline_runs_the_code_of_its_tree(tmp_path: Path) -> None:
    """And not the code of the current directory."""
    package = tmp_path / "tree" / "dockyard"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(SERVER)
    cache = make_cache(BASELINE, Programs(), tmp_path / "cache", 1, tmp_path, trees={BASELINE: tmp_path / "tree"})
    assert isinstance(cache, CacheServer)
    cache.start()
    try:
        assert (tmp_path / "tree" / "served").exists()
    finally:
        cache.close()


def test_results_that_cannot_be_written_do_not_replace_others(tmp_path: Path) -> None:
    """What was measured before a disk was full is kept."""
    results = Report()
    results.add("w", "dockyard", {"MiB/s": 1.0})
    report.write(results, tmp_path)
    (tmp_path / f"{report.FILE}.new").mkdir()
    results.add("w", "dockyard", {"MiB/s": 2.0})
    with pytest.raises(OSError, match=report.FILE):
        report.write(results, tmp_path)
    assert len(report.load(tmp_path).samples["w"]["dockyard"]) == 1


def test_a_disk_that_is_almost_full_ends_the_run(tmp_path: Path) -> None:
    """The error says how much is free and needed, and what to do."""
    check_free_bytes(tmp_path, tmp_path, 0)
    with pytest.raises(
        click.ClickException, match=r"GiB are free, and a round may need 1048576\.0\..*--directory.*--keep"
    ):
        check_free_bytes(tmp_path, tmp_path, 2**50)


def test_published_results_can_be_read() -> None:
    """The published page is what the published samples give, so that new results can be compared with them."""
    assert page.as_markdown(report.load(PUBLISHED)) == (PUBLISHED / readme.PAGE).read_text()


def test_the_readme_has_the_published_numbers() -> None:
    """Its table is what `python -m bench.peers.readme` makes of them."""
    text = readme.README.read_text()
    results = report.load(PUBLISHED)
    assert text == readme.replace_table(text, results)
    assert readme.as_markdown(results) in text
    with pytest.raises(ValueError, match="0 places"):
        readme.replace_table("no place", results)

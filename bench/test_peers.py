"""The measuring itself: a number is worth what its instruments are."""

import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers import report, targets
from bench.peers.accounting import Group
from bench.peers.load import LoadError, check, discard
from bench.peers.origin import Upstream
from bench.peers.place import MIB
from bench.peers.report import Report
from bench.peers.truth import OCI_INDEX, REPOSITORY, Blob, Truth
from tests.support.bodies import Synthetic
from tests.support.fake_registry import FakeRegistry
from tests.support.faults import cut, header

BURN_S = 0.3
BURN = f"import time\nuntil = time.process_time() + {BURN_S}\nwhile time.process_time() < until: pass"


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[tuple[Upstream, Truth]]:
    """A fast upstream with nothing in it."""
    truth = Truth(tmp_path / "truth")
    upstream = Upstream(truth.directory)
    try:
        upstream.start()
        yield upstream, truth
    finally:
        upstream.close()


def _ask(port: int, method: str, path: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def test_the_upstream_is_a_registry(upstream: tuple[Upstream, Truth]) -> None:
    """Blobs whole and in part, manifests by tag and by digest, what is not there, and each request counted."""
    registry, truth = upstream
    image = truth.add_image("v1", (5 * MIB,))
    layer = image.layers[0]
    path = f"/v2/{REPOSITORY}/blobs/{layer.digest}"
    check(registry.port, path, layer)
    for reference in (image.tag, image.index.digest):
        check(registry.port, f"/v2/{REPOSITORY}/manifests/{reference}", image.index)
    part, body = _ask(registry.port, "GET", path, Range="bytes=10-19")
    assert (part.status, len(body)) == (206, 10)
    assert part.getheader("Content-Range") == f"bytes 10-19/{layer.size}"
    head, body = _ask(registry.port, "HEAD", f"/v2/{REPOSITORY}/manifests/v1")
    assert (head.getheader("Docker-Content-Digest"), body) == (image.index.digest, b"")
    assert head.getheader("Content-Type") == OCI_INDEX
    assert (
        _ask(registry.port, "GET", f"/v2/{REPOSITORY}/blobs/sha256:{'0' * 64}")[0].status == http.HTTPStatus.NOT_FOUND
    )
    asked = registry.asked(containing=layer.digest)
    assert (asked.gets, asked.heads, asked.body_bytes) == (2, 0, layer.size + 10)
    assert registry.asked(containing="/manifests/v1").heads == 1


def test_the_line_is_shared(upstream: tuple[Upstream, Truth]) -> None:
    """Four clients at once get what one would get in the same time, and none before the delay."""
    registry, truth = upstream
    blob = truth.add_blob(MIB)
    registry.set_line(delay_s=0.1, bytes_per_s=8 * MIB)
    result = discard(registry.port, [[(f"/v2/{REPOSITORY}/blobs/{blob.digest}", blob.size)]] * 4)
    assert result["received"] == 4 * MIB
    assert min(result["first_byte_s"]) >= 0.1
    assert result["wall_s"] >= 4 / 8


def test_a_short_body_fails_the_run() -> None:
    """It is not counted as fast."""
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


def test_a_client_that_is_sent_away_connects_anew() -> None:
    """A server may end the connection after an answer, if it says so."""
    with FakeRegistry() as fake_registry:
        body = Synthetic(MIB)
        digest = fake_registry.add_blob(body)
        fake_registry.on("blob", header("Connection", "close"))
        port = int(fake_registry.authority.rpartition(":")[2])
        result = discard(port, [[(f"/v2/{REPOSITORY}/blobs/{digest}", body.size)] * 3])
        assert result["received"] == 3 * body.size
        assert len(result["first_byte_s"]) == 3


def test_wrong_bytes_fail_the_run(upstream: tuple[Upstream, Truth]) -> None:
    """The untimed pass looks at every byte."""
    registry, truth = upstream
    blob = truth.add_blob(1000)
    with pytest.raises(LoadError, match="expected"):
        check(registry.port, f"/v2/{REPOSITORY}/blobs/{blob.digest}", Blob(f"sha256:{'0' * 64}", 1000))


def test_cpu_of_ended_children_is_counted() -> None:
    """A peer may have used its seconds in processes that are gone, and no other process's are counted."""
    group = Group.make("test")
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


def test_memory_is_of_the_processes_in_the_group() -> None:
    """A process that holds 64 MiB is seen with them."""
    group = Group.make("test")
    hold = f"import sys\nheld = bytearray(b'x' * {64 * MIB})\nprint(flush=True)\nsys.stdin.read()"
    with (
        group.entered(),
        subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
    ):
        assert holder.stdout is not None
        holder.stdout.readline()
        group.root_pid = holder.pid
        memory = group.memory()
        assert memory.private_largest >= 64 * MIB
        assert memory.peak_sum >= memory.resident_largest >= memory.private_largest
        holder.communicate()
    group.remove()


def test_a_cut_run_gives_bounds(tmp_path: Path) -> None:
    """Its times are written as what they are, and survive being written and read."""
    found = Report()
    found.begin("cold-layer-slow", "Cold")
    for seconds in (1.0, 3.0, 2.0):
        found.add("cold-layer-slow", "dockyard", {"last client s": seconds, "cut": 0.0})
    found.add("cold-layer-slow", "distribution", {"last client s": 40.0, "cut": 1.0})
    report.write(found, tmp_path)
    again = report.load(tmp_path)
    assert again == found
    lines = report.as_markdown(again).splitlines()
    assert "| dockyard | 2 (0.05x) | 3 |" in lines
    assert "| distribution | > 40 | 1 |" in lines


def test_targets_are_judged() -> None:
    """Reached, not reached, and not measured are three things."""
    found = Report()
    for peer, rate in (("dockyard", 1300.0), ("distribution", 1000.0)):
        found.add("warm-blob-1", peer, {"MiB/s": rate, "CPU s/GiB": rate})
    lines = targets.as_markdown(found, 64).splitlines()
    assert "| warm blob, 1 client: throughput / distribution's | ≥ 1.2 | 1.30 | reached |" in lines
    assert "| warm blob, 1 client: CPU per GiB / distribution's | ≤ 0.8 | 1.30 | **not reached** |" in lines
    assert "| warm blob, 64 clients: throughput / distribution's | ≥ 1.2 |  | not measured |" in lines

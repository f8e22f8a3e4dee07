"""Ranges of blobs that are not cached: fetched ahead where the upstream is lazy, and large blobs in parallel ranges.

The workers are processes, so that most requests reach a worker that does not fetch the blob itself.
"""

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from dockyard.workers.rendezvous import owners
from tests.support import faults
from tests.support.bodies import Bytes, Synthetic
from tests.support.deployment import Deployment, eventually, set_at_exit, upstream
from tests.support.fake_registry import Change, FakeRegistry, max_concurrent
from tests.support.raw_http import Request, ScriptedResponse

Start = Callable[..., Deployment]

MIB = 1024 * 1024
WORKERS = 4
SIZE = 40 * MIB + 12345
UNVERIFIED = "detail=unverified-range"


@pytest.fixture
def content() -> Bytes:
    """A layer, with random bytes."""
    return Bytes(Random(SIZE).randbytes(SIZE))


@pytest.fixture
def path(fake_registry: FakeRegistry, content: Bytes) -> str:
    """The path of the layer, which an image names: its size is known when the manifest was pulled."""
    fake_registry.add_image("app", "v1", [content.data])
    return f"/v2/up.test/app/blobs/{content.digest}"


def start(
    make_deployment: Start, fake_registry: FakeRegistry, *, lazy: bool = True, background: str = "download"
) -> Deployment:
    """Workers with a lazy upstream, which have pulled the manifest."""
    up = upstream("up.test", fake_registry.url, lazy=lazy, lazy_background=background)
    deployment = make_deployment(workers=WORKERS, upstreams=[up], upstream={"stall_timeout": "60s"})
    deployment.wait_for_workers(WORKERS)
    assert deployment.get("/v2/up.test/app/manifests/v1").status == 200
    return deployment


def get_range(deployment: Deployment, path: str, content: Bytes, first: int, last: int) -> str:
    """Request a range, and check it. Returns Cache-Status."""
    response = deployment.get(path, Range=f"bytes={first}-{last}")
    assert response.status == 206, response
    assert response.header("Content-Range") == f"bytes {first}-{last}/{content.size}"
    assert response.body == content.data[first : last + 1]
    return response.header("Cache-Status") or ""


def requested(fake_registry: FakeRegistry, digest: str) -> list[tuple[int, int]]:
    """The ranges that reached the upstream, as first and last byte."""
    headers = [
        exchange.request.header("Range") or f"bytes=0-{SIZE - 1}"
        for exchange in fake_registry.received("blob", "GET", reference=digest)
    ]
    return [(int(first), int(last)) for first, last in re.findall(r"bytes=(\d+)-(\d+)", " ".join(headers))]


def pieces_of(ranges: Iterable[tuple[int, int]]) -> Counter[int]:
    """How often each piece was requested."""
    return Counter(piece for first, last in ranges for piece in range(first // MIB, last // MIB + 1))


def is_stored(deployment: Deployment, content: Bytes) -> bool:
    """Whether the local store has the layer."""
    return bool(deployment.stored_files(content.digest))


def read_patiently(deployment: Deployment, path: str, first: int, last: int) -> bytes:
    """Request a range until it comes: the worker that has the connection may be killed."""

    def once() -> bytes:
        try:
            response = deployment.get(path, Range=f"bytes={first}-{last}")
        except OSError:
            return b""
        return response.body if response.status == 206 and response.is_complete else b""

    return bytes(eventually(once, "the range is sent"))


def held_from(start: int, until: threading.Event) -> Callable[[Request, ScriptedResponse], ScriptedResponse]:
    """Send nothing of the ranges that begin before this byte until the event is set."""
    stalled = faults.stalled(0, until)

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        return stalled(request, response) if response.start < start else response

    return change


def test_a_footer_does_not_wait_for_the_layer(
    make_deployment: Start, fake_registry: FakeRegistry, content: Bytes, path: str
) -> None:
    """It is requested by itself, marked and counted. The whole layer is then verified, and no byte came twice."""
    deployment = start(make_deployment, fake_registry)
    with set_at_exit(threading.Event()) as go_on:
        fake_registry.on("blob", held_from(SIZE - SIZE % MIB, go_on), method="GET")
        status = get_range(deployment, path, content, SIZE - 50, SIZE - 1)
        assert UNVERIFIED in status
        assert not is_stored(deployment, content)
        go_on.set()
        eventually(lambda: is_stored(deployment, content), "it is stored")
    assert fake_registry.sent_bytes("blob", reference=content.digest) == SIZE
    assert deployment.metric("dockyard_unverified_bytes_total") == 50
    assert UNVERIFIED not in get_range(deployment, path, content, SIZE - 50, SIZE - 1)


def test_each_piece_is_fetched_once(
    make_deployment: Start, fake_registry: FakeRegistry, content: Bytes, path: str
) -> None:
    """A hundred clients read different pieces of one layer through four workers, which is being downloaded."""
    deployment = start(make_deployment, fake_registry)
    random = Random(1)
    firsts = [random.randrange(SIZE - 70_000) for _ in range(100)]
    with ThreadPoolExecutor(20) as pool:
        for result in [pool.submit(get_range, deployment, path, content, first, first + 69_999) for first in firsts]:
            result.result()
    assert deployment.get(path).body == content.data
    assert pieces_of(requested(fake_registry, content.digest)).most_common(1)[0][1] == 1
    assert fake_registry.sent_bytes("blob", reference=content.digest) == SIZE


def test_several_ranges_in_one_request(
    make_deployment: Start, fake_registry: FakeRegistry, content: Bytes, path: str
) -> None:
    """The response is multipart, as for a layer that is cached."""
    deployment = start(make_deployment, fake_registry)
    response = deployment.get(path, Range=f"bytes=0-9,{30 * MIB}-{30 * MIB + 9},-10")
    assert response.status == 206
    for first in (0, 30 * MIB, SIZE - 10):
        assert b"Content-Range: bytes %d-%d/%d" % (first, first + 9, SIZE) in response.body
        assert content.data[first : first + 10] in response.body
    assert UNVERIFIED in (response.header("Cache-Status") or "")
    assert response.header("Cache-Control") == "no-store"


def test_the_next_owner_continues_with_the_pieces_that_are_there(
    make_deployment: Start, fake_registry: FakeRegistry, content: Bytes, path: str
) -> None:
    """The owner is killed while clients read ahead: they get their bytes, and only what was on its way comes twice."""
    deployment = start(make_deployment, fake_registry)
    owner = owners(content.digest, WORKERS)[0]
    with set_at_exit(threading.Event()) as go_on, ThreadPoolExecutor(8) as pool:
        fake_registry.on("blob", held_from(8 * MIB, go_on), method="GET")
        get_range(deployment, path, content, 30 * MIB, 32 * MIB - 1)
        os.kill(int((deployment.dockyard.storage / f"run/shard-{owner}.lock").read_text()), signal.SIGKILL)
        firsts = [20 * MIB, 30 * MIB + 5, 25 * MIB, 36 * MIB]
        results = [pool.submit(read_patiently, deployment, path, first, first + 1000) for first in firsts]
        bodies = [result.result() for result in results]
        go_on.set()
    assert bodies == [content.data[first : first + 1001] for first in firsts]
    eventually(lambda: is_stored(deployment, content), "it is stored")
    counts = pieces_of(requested(fake_registry, content.digest))
    assert counts[30] == counts[31] == 1
    assert sum(counts.values()) <= 41 + 2 * 8 + 4


def test_a_wrong_piece_is_dropped_with_the_layer(
    make_deployment: Start, fake_registry: FakeRegistry, content: Bytes, path: str
) -> None:
    """It is never kept, it is counted and logged, and nobody gets it when that is known."""
    deployment = start(make_deployment, fake_registry)

    def poison(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        is_ahead = response.start == 30 * MIB
        return faults.flipped(30 * MIB + 5)(request, response) if is_ahead else response

    fake_registry.on("blob", poison, method="GET")
    response = deployment.get(path, Range=f"bytes={30 * MIB}-{30 * MIB + 9}")
    assert response.body != content.data[30 * MIB : 30 * MIB + 10]
    assert UNVERIFIED in (response.header("Cache-Status") or "")
    eventually(lambda: deployment.metric("dockyard_wrong_ranges_total") == 1, "it is noticed")
    assert not is_stored(deployment, content)
    assert not deployment.partial_files()
    deployment.wait_for_log("of which clients were sent ranges before")
    # The upstream still has wrong bytes for this range, but the blob is received in order now.
    get_range(deployment, path, content, 30 * MIB, 30 * MIB + 9)
    assert fake_registry.received("blob", "GET", reference=content.digest)[-1].request.header("Range") is None
    eventually(lambda: is_stored(deployment, content), "it is stored")
    assert deployment.get(path).body == content.data


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(faults.ignoring_range(), id="200 instead of 206"),
        pytest.param(faults.header("Content-Range", "bytes 0-9/10"), id="another range"),
        pytest.param(faults.header("Content-Range"), id="no Content-Range"),
        pytest.param(faults.header("Content-Type", "multipart/byteranges; boundary=x"), id="multipart"),
        pytest.param(faults.replaced(416), id="416"),
        pytest.param(faults.replaced(501), id="501"),
    ],
)
def test_an_upstream_without_ranges_sends_the_whole_layer(
    make_deployment: Start, fake_registry: FakeRegistry, content: Bytes, path: str, change: Change
) -> None:
    """Clients get 206 with the right bytes, from one response for the whole layer."""
    deployment = start(make_deployment, fake_registry)

    def break_ranges(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        return change(request, response) if request.header("Range") else response

    fake_registry.on("blob", break_ranges, method="GET")
    assert UNVERIFIED in get_range(deployment, path, content, 30 * MIB, 30 * MIB + 9)
    eventually(lambda: is_stored(deployment, content), "it is stored")
    get_range(deployment, path, content, SIZE - 50, SIZE - 1)
    whole = [
        exchange
        for exchange in fake_registry.received("blob", "GET", reference=content.digest)
        if not exchange.request.header("Range")
    ]
    assert len(whole) == 1


def test_on_demand_only_what_is_requested_is_fetched(
    make_deployment: Start, fake_registry: FakeRegistry, content: Bytes, path: str
) -> None:
    """Pieces stay on disk after all readers have left, and a client that pulls the layer gets the rest."""
    deployment = start(make_deployment, fake_registry, background="on_demand")
    for first in (0, 20 * MIB, SIZE - 100, 3 * MIB):
        get_range(deployment, path, content, first, first + 99)
    assert pieces_of(requested(fake_registry, content.digest)) == {0: 1, 20: 1, 40: 1, 3: 1}
    eventually(lambda: deployment.metric("dockyard_fills_running") == 0, "the download has ended", within_s=30)
    get_range(deployment, path, content, 20 * MIB + 500, 20 * MIB + 599)
    assert sum(pieces_of(requested(fake_registry, content.digest)).values()) == 4
    assert deployment.get(path).body == content.data
    eventually(lambda: is_stored(deployment, content), "it is stored")
    assert fake_registry.sent_bytes("blob", reference=content.digest) == SIZE


def test_nothing_is_fetched_ahead_by_default(
    make_deployment: Start, fake_registry: FakeRegistry, content: Bytes, path: str
) -> None:
    """A range waits until the download has reached it."""
    deployment = start(make_deployment, fake_registry, lazy=False)
    assert UNVERIFIED not in get_range(deployment, path, content, 30 * MIB, 30 * MIB + 9)
    (exchange,) = fake_registry.received("blob", "GET", reference=content.digest)
    assert exchange.request.header("Range") is None


def test_a_large_layer_comes_over_several_connections(make_deployment: Start, fake_registry: FakeRegistry) -> None:
    """In order at the front, each byte once but for what was on its way in the first response."""
    content = Synthetic(1024 * MIB + 100 * MIB + 7)
    digest = fake_registry.add_blob(content)
    deployment = make_deployment(workers=2)
    with deployment.crowd(f"/v2/up.test/app/blobs/{digest}", content, 2) as crowd:
        crowd.run()
        assert all(member.is_right for member in crowd.members), crowd.summary()
    whole, *ranges = fake_registry.received("blob", "GET", reference=digest)
    assert whole.request.header("Range") is None
    assert max_concurrent(ranges) == 4  # the first response, which is broken off, may not have noticed that yet
    assert fake_registry.sent_bytes("blob", reference=digest) <= 1.02 * content.size
    eventually(lambda: deployment.stored_files(digest), "it is stored")

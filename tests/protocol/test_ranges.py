"""Ranges of cold, cached and running blobs, single and multiple, and of very small blobs."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import parse_multipart

MIB = 1024 * 1024
LARGE = 3 * MIB  # streamed, except for its last bytes


def _random(size: int, seed: str) -> bytes:
    return Random(seed).randbytes(size)


PARTS = {
    "bytes=500-1499": (500, 1500),
    "bytes=500-": (500, 2048),
    "bytes=-500": (1548, 2048),
    "bytes=0-0": (0, 1),
    "bytes=0-": (0, 2048),
    "bytes=2000-5000": (2000, 2048),
    "bytes=-9999": (0, 2048),
    "bytes=2047-2047": (2047, 2048),
}


@pytest.mark.parametrize(
    "range_header", [*PARTS, "bytes=2048-", "bytes=5000-10000", "bytes=500-0", "bytes=-0", "bytes=x", "items=0-1", ""]
)
def test_ranges_of_a_cold_and_a_warm_blob(deployment: Deployment, range_header: str) -> None:
    """206 with exact bytes and Content-Range, 416 with the size, or 200 for an invalid Range: cold and cached."""
    blob = _random(2048, f"range {range_header}")
    digest = deployment.fake_registry.add_blob(blob)
    path = f"/v2/up.test/app/blobs/{digest}"
    for temperature in ("cold", "warm"):
        response = deployment.get(path, **({"Range": range_header} if range_header else {}))
        if range_header in PARTS:
            start, stop = PARTS[range_header]
            assert (response.status, response.body) == (206, blob[start:stop]), temperature
            assert response.header("Content-Range") == f"bytes {start}-{stop - 1}/2048"
            assert response.header("Content-Length") == str(stop - start)
            assert response.header("Content-Type") == "application/octet-stream"
            assert response.header("Docker-Content-Digest") == digest
        elif range_header in ("bytes=x", "items=0-1", ""):
            assert (response.status, response.body) == (200, blob), temperature
            assert response.header("Accept-Ranges") == "bytes"
        else:
            assert (response.status, response.header("Content-Range")) == (416, "bytes */2048"), temperature
            assert response.error
        eventually(lambda: deployment.get(path).body == blob, "the blob is warm")


def test_range_is_ignored_on_head(deployment: Deployment) -> None:
    """HEAD describes the whole blob, whatever range it names."""
    digest = deployment.fake_registry.add_blob(_random(2048, "head with range"))
    for _ in range(2):
        response = deployment.head(f"/v2/up.test/app/blobs/{digest}", Range="bytes=5-9")
        assert (response.status, response.header("Content-Length")) == (200, "2048")
        deployment.get(f"/v2/up.test/app/blobs/{digest}")


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (MIB, 2 * MIB), (LARGE - 10, LARGE), (40_000, LARGE)])
def test_ranges_of_a_running_download(deployment: Deployment, start: int, stop: int) -> None:
    """A range of a blob whose download has paused half-way is served as soon as its bytes have arrived."""
    blob = _random(LARGE, f"running {start}")
    digest = deployment.fake_registry.add_blob(blob)
    path = f"/v2/up.test/app/blobs/{digest}"
    with set_at_exit(threading.Event()) as go_on, ThreadPoolExecutor(1) as pool:
        deployment.fake_registry.on("blob", faults.stalled(LARGE * 2 // 3, go_on), reference=digest)
        whole = pool.submit(deployment.get, path)
        deployment.fake_registry.wait_for(
            lambda: deployment.fake_registry.sent_bytes(reference=digest) >= 2 * MIB, "the download is running"
        )
        part = pool.submit(deployment.get, path, Range=f"bytes={start}-{stop - 1}") if stop <= MIB else None
        go_on.set()
        assert whole.result().body == blob
    response = part.result() if part else deployment.get(path, Range=f"bytes={start}-{stop - 1}")
    assert (response.status, response.body == blob[start:stop]) == (206, True)
    assert response.header("Content-Range") == f"bytes {start}-{stop - 1}/{LARGE}"
    assert deployment.fake_registry.count("blob", "GET", reference=digest) == 1


def test_a_range_is_served_before_the_download_ends(deployment: Deployment) -> None:
    """Received bytes are served to any client while the upstream still holds the rest back."""
    blob = _random(LARGE, "received")
    digest = deployment.fake_registry.add_blob(blob)
    path = f"/v2/up.test/app/blobs/{digest}"
    with set_at_exit(threading.Event()) as go_on:
        deployment.fake_registry.on("blob", faults.stalled(2 * MIB, go_on), reference=digest)
        with deployment.stream(path) as first:
            assert first.head().read(MIB) == blob[:MIB]
            response = deployment.get(path, Range="bytes=1000-1999")
            assert (response.status, response.body) == (206, blob[1000:2000])
            with deployment.stream(path, Range=f"bytes=500000-{LARGE}") as second:
                assert second.head().status == 206
                assert second.read(MIB) == blob[500_000 : 500_000 + MIB]
            go_on.set()
            assert first.rest() == (blob[MIB:], "length")


def _ranges(pairs: list[tuple[int, int]]) -> str:
    return "bytes=" + ",".join(f"{start}-{stop - 1}" for start, stop in pairs)


MULTI = {
    "three, one open": ("bytes=0-9,100-109,2000-", [(0, 10), (100, 110), (2000, 2048)]),
    "a hundred": (_ranges([(20 * n, 20 * n + 5) for n in range(100)]), [(20 * n, 20 * n + 5) for n in range(100)]),
    "backwards": ("bytes=1000-1009,0-9", [(1000, 1010), (0, 10)]),
    "touching": ("bytes=0-9,10-19", [(0, 10), (10, 20)]),
    "overlapping a little": ("bytes=0-19,10-29", [(0, 20), (10, 30)]),
    "suffix and spaces": ("bytes=0-0, -1", [(0, 1), (2047, 2048)]),
    "one beyond the end": ("bytes=0-9,5000-5009,20-29", [(0, 10), (20, 30)]),
}


@pytest.mark.parametrize("name", MULTI)
@pytest.mark.parametrize("temperature", ["cold", "warm"])
def test_several_ranges(deployment: Deployment, name: str, temperature: str) -> None:
    """One part per range, in the requested order, each with its own Content-Range; never merged."""
    range_header, places = MULTI[name]
    blob = _random(2048, f"multi {name} {temperature}")
    path = f"/v2/up.test/app/blobs/{deployment.fake_registry.add_blob(blob)}"
    if temperature == "warm":
        assert deployment.get(path).body == blob
    response = deployment.get(path, Range=range_header)
    assert response.status == 206
    assert response.is_complete
    assert parse_multipart(response) == [(f"bytes {a}-{b - 1}/2048", blob[a:b]) for a, b in places]
    assert response.header("Content-Range") is None


@pytest.mark.parametrize(
    "range_header",
    [
        "bytes=" + ",".join(["0-"] * 50),
        "bytes=" + ",".join(["0-0"] * 1000),
        "bytes=" + ",".join(f"{20 * 2**30 + 2 * number}-{20 * 2**30 + 2 * number}" for number in range(1024)),
        "bytes=" + ",".join(["5-9"] * 10_000),
    ],
    ids=["overlapping", "1,000", "1,024 long ones", "10,000"],
)
def test_too_many_ranges_are_a_bad_request(deployment: Deployment, range_header: str) -> None:
    """Over the limit the response is 400: clients then request fewer ranges, or the whole blob.

    After any other status they fail. Podman requests up to 1,024 ranges, which are more than the limit of headers.
    """
    path = f"/v2/up.test/app/blobs/{deployment.fake_registry.add_blob(_random(2048, 'too many'))}"
    deployment.get(path)
    response = deployment.get(path, Range=range_header)
    assert (response.status, response.error) == (400, "UNSUPPORTED")


def test_no_range_can_be_satisfied(deployment: Deployment) -> None:
    """Several ranges, all beyond the end: 416."""
    path = f"/v2/up.test/app/blobs/{deployment.fake_registry.add_blob(_random(2048, 'none'))}"
    for _ in range(2):
        response = deployment.get(path, Range="bytes=3000-3009,4000-")
        assert (response.status, response.header("Content-Range")) == (416, "bytes */2048")


@pytest.mark.parametrize("temperature", ["cold", "warm"])
def test_the_empty_blob(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, temperature: str
) -> None:
    """The response is 200 with length 0, and no range can be satisfied."""
    deployment = make_deployment()
    digest = fake_registry.add_blob(b"")
    path = f"/v2/up.test/app/blobs/{digest}"
    if temperature == "warm":
        deployment.get(path)
    for range_header in ("bytes=0-1", "bytes=0-"):
        response = deployment.get(path, Range=range_header)
        assert (response.status, response.header("Content-Range")) == (416, "bytes */0")
    for method in ("HEAD", "GET"):
        response = deployment.request(method, path)
        assert (response.status, response.header("Content-Length"), response.body) == (200, "0", b"")
        assert response.header("Docker-Content-Digest") == digest_of(b"")


@pytest.mark.parametrize("range_header", ["bytes=0-1", "bytes=0-", "bytes=-1", "bytes=-5"])
def test_a_blob_of_one_byte(deployment: Deployment, range_header: str) -> None:
    """Ranges of a single byte are clipped to it."""
    digest = deployment.fake_registry.add_blob(bytes([len(range_header)]))
    for _ in range(2):
        response = deployment.get(f"/v2/up.test/app/blobs/{digest}", Range=range_header)
        assert (response.status, response.body) == (206, bytes([len(range_header)]))
        assert response.header("Content-Range") == "bytes 0-0/1"
    whole = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert (whole.status, whole.header("Content-Length")) == (200, "1")

"""Blobs that are sent with sendfile instead of by Granian: complete, in order, never mixed with other responses."""

import os
import time
from collections.abc import Callable
from random import Random
from threading import Event

import pytest

from tests.support.bodies import Bytes, Synthetic
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.faults import stalled_at_offset
from tests.support.http_client import StreamedResponse

MIB = 1024 * 1024
PING = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def deployment(make_deployment: Callable[..., Deployment]) -> Deployment:
    """A deployment with one worker."""
    return make_deployment()


def warm_blob(deployment: Deployment, size: int) -> tuple[str, Bytes]:
    """A blob that is in the local store: its path and its content."""
    content = Bytes(Random(size).randbytes(size))
    path = f"/v2/up.test/app/blobs/{deployment.fake_registry.add_blob(content)}"
    assert deployment.get(path).body == content.data
    eventually(lambda: deployment.stored_files(content.digest), "the blob is kept")
    return path, content


def get(path: str, more: str = "") -> bytes:
    """A request that leaves the connection open."""
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


def assert_last_ends_connection(download: StreamedResponse, first: Bytes, last: Bytes) -> None:
    """Both blobs come in order and complete, and the connection ends after the last."""
    assert download.head().status == 200
    assert download.read(first.size) == first.data
    assert download.head().header("Connection") == "close"
    assert download.read(last.size + 1) == last.data


def test_a_large_blob_ends_its_connection(deployment: Deployment) -> None:
    """On a new connection a large blob is sent straight from its file, with the usual headers."""
    path, content = warm_blob(deployment, 3 * MIB)
    with deployment.send_raw(get(path)) as download:
        assert download.head().status == 200
        assert download.header("Connection") == "close"
        assert download.header("Date")
        assert download.header("Docker-Content-Digest") == content.digest
        assert download.rest() == (content.data, "length")
        assert download.read(1) == b""


def test_a_large_range_ends_its_connection(deployment: Deployment) -> None:
    """The same for one range."""
    path, content = warm_blob(deployment, 4 * MIB)
    with deployment.send_raw(get(path, f"Range: bytes=1000-{3 * MIB}\r\n")) as download:
        assert download.head().status == 206
        assert download.header("Content-Range") == f"bytes 1000-{3 * MIB}/{content.size}"
        assert download.header("Connection") == "close"
        assert download.rest() == (content.data[1000 : 3 * MIB + 1], "length")


def test_a_small_blob_keeps_its_connection(deployment: Deployment) -> None:
    """A small blob does not end its connection: the next request is sent over the same one."""
    path, content = warm_blob(deployment, 1000)
    with deployment.send_raw(get(path) + PING) as download:
        assert download.head().header("Connection") is None
        assert download.read(content.size) == content.data
        assert (download.head().status, download.read(2)) == (200, b"{}")


def test_zero_copy_can_be_switched_off(make_deployment: Callable[..., Deployment]) -> None:
    """With `server.zero_copy: false`, a large blob and a large range keep their connection, with the right bytes."""
    deployment = make_deployment(server={"zero_copy": False})
    path, content = warm_blob(deployment, 3 * MIB)
    with deployment.send_raw(get(path)) as download:
        assert (download.head().status, download.header("Connection")) == (200, None)
        assert download.read(content.size) == content.data
        download.socket.sendall(get(path, f"Range: bytes=1000-{2 * MIB}\r\n"))
        assert (download.head().status, download.header("Connection")) == (206, None)
        assert download.header("Content-Range") == f"bytes 1000-{2 * MIB}/{content.size}"
        assert download.read(2 * MIB - 999) == content.data[1000 : 2 * MIB + 1]
        download.socket.sendall(PING)
        assert (download.head().status, download.read(2)) == (200, b"{}")


@pytest.mark.parametrize("kind", ["version", "small blob", "range", "not modified", "HEAD", "not found", "manifest"])
def test_a_used_connection(deployment: Deployment, kind: str) -> None:
    """A large blob after another response on its connection is sent straight from its file, too, and ends it."""
    path, content = warm_blob(deployment, 3 * MIB)
    small_path, small = warm_blob(deployment, 500_000)
    image = deployment.fake_registry.add_image("app", "v1")
    requests = {
        "version": PING,
        "small blob": get(small_path),
        "range": get(path, "Range: bytes=5-9\r\n"),
        "not modified": get(path, f'If-None-Match: "{content.digest}"\r\n'),
        "HEAD": get(path).replace(b"GET", b"HEAD"),
        "not found": get("/v2/up.test/app/manifests/none"),
        "manifest": get(f"/v2/up.test/app/manifests/{image.digest}"),
    }
    with deployment.send_raw(requests[kind]) as download:
        for following in [requests[kind]] * 3 + [get(path)]:
            download.head()
            has_body = kind not in {"HEAD", "not modified"}
            body = download.read(int(download.header("Content-Length") or 0)) if has_body else b""
            assert kind != "small blob" or body == small.data
            download.socket.sendall(following)
        assert download.head().status == 200
        assert download.header("Connection") == "close"
        assert download.read(content.size + 1) == content.data


def test_a_client_that_reads_the_response_before_late(deployment: Deployment) -> None:
    """A large blob is not sent before all of a response that the client has not read when it requests the blob."""
    first_path, first = warm_blob(deployment, 900_000)
    path, content = warm_blob(deployment, 3 * MIB)
    for _ in range(5):
        with StreamedResponse(deployment.address, "", request=get(first_path), receive_buffer=4096) as download:
            download.socket.sendall(get(path))
            time.sleep(0.1)  # until the server has written what it can
            assert_last_ends_connection(download, first, content)


def test_granian_sends_after_a_request_with_a_body(deployment: Deployment) -> None:
    """After a request with a body, large blobs are sent by Granian, and the connection stays open."""
    path, content = warm_blob(deployment, 3 * MIB)
    with deployment.send_raw(get("/v2/", "Content-Length: 5\r\n") + b"hello" + get(path)) as download:
        assert (download.head().status, download.read(2)) == (200, b"{}")
        for _ in range(2):
            assert download.head().header("Connection") is None
            assert download.read(content.size) == content.data
            download.socket.sendall(get(path))


@pytest.mark.parametrize("first_is_large", [True, False])
def test_pipelined_requests_are_answered_in_order(deployment: Deployment, first_is_large: bool) -> None:  # noqa: FBT001
    """Two requests in one packet: their responses are not interleaved."""
    path, content = warm_blob(deployment, 3 * MIB)
    requests = [get(path), PING] if first_is_large else [PING, get(path)]
    with deployment.send_raw(b"".join(requests)) as download:
        if not first_is_large:
            assert (download.head().status, download.read(2)) == (200, b"{}")
        assert download.head().status == 200
        assert download.read(content.size) == content.data
        if first_is_large:
            assert download.header("Connection") == "close"
            assert download.read(1) == b""  # `Connection: close` announced it


def test_many_pipelined_blobs(deployment: Deployment) -> None:
    """A large blob after a small one, with a client that reads late: both are complete, and nothing follows."""
    large_path, large = warm_blob(deployment, 3 * MIB)
    small_path, small = warm_blob(deployment, 500_000)
    requests = get(small_path) + get(large_path) + get(small_path)
    with StreamedResponse(deployment.address, "", request=requests, receive_buffer=4096) as download:
        time.sleep(0.5)  # until the server has written what it can
        assert_last_ends_connection(download, small, large)


def test_a_truncated_file_ends_the_response_short(deployment: Deployment) -> None:
    """When a file is truncated while it is sent, the client sees an incomplete response."""
    content = Synthetic(60 * MIB)
    path = f"/v2/up.test/app/blobs/{deployment.fake_registry.add_blob(content)}"
    with deployment.stream(path) as download:
        download.head().rest()
    (stored,) = eventually(lambda: deployment.stored_files(content.digest), "the blob is kept")
    with deployment.stream(path, receive_buffer=4096) as download:
        assert download.head().header("Connection") == "close"
        os.truncate(stored, 40 * MIB)
        body, ended = download.rest()
    assert ended == "fin"
    assert len(body) <= 40 * MIB
    deployment.wait_for_log("cut: a cached blob ended early")


def test_a_file_that_is_not_in_the_page_cache(deployment: Deployment) -> None:
    """A blob that is not in the page cache is read from the disk, and right."""
    path, content = warm_blob(deployment, 8 * MIB)
    (stored,) = deployment.stored_files(content.digest)
    os.sync()
    fd = os.open(stored, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    with deployment.send_raw(get(path)) as download:
        assert download.head().header("Connection") == "close"
        assert download.rest() == (content.data, "length")


def test_a_running_download_is_sent_as_it_arrives(deployment: Deployment) -> None:
    """A running download is sent from its partial file in the same way, and its end waits for the digest."""
    content = Bytes(Random(5).randbytes(6 * MIB))
    digest = deployment.fake_registry.add_blob(content)
    with set_at_exit(Event()) as gate:
        deployment.fake_registry.on("blob", stalled_at_offset(4 * MIB, gate), method="GET", reference=digest)
        with deployment.send_raw(get(f"/v2/up.test/app/blobs/{digest}")) as download:
            assert download.head().header("Connection") == "close"
            assert download.read(3 * MIB) == content.data[: 3 * MIB]
            gate.set()
            assert download.rest() == (content.data[3 * MIB :], "length")
    assert deployment.fake_registry.count("blob", "GET", reference=digest) == 1

"""Clients that disconnect, stop reading, or read slowly."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.support import faults
from tests.support.bodies import Bytes, Synthetic
from tests.support.deployment import Deployment, eventually, set_at_exit, stays
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import is_part_of
from tests.support.paths import ROOT
from tests.support.worker_state import cpu_seconds, open_files

MIB = 1024 * 1024


def test_a_client_that_disconnects_during_a_download(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The download continues to its end; the log gets three lines at most."""
    content = Bytes(Random(11).randbytes(20 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment()
    logged = len(deployment.dockyard.read_log().splitlines())
    with set_at_exit(threading.Event()) as go_on:
        fake_registry.on("blob", faults.stalled(0.5, go_on))
        download = deployment.stream(path)
        assert download.head().read(MIB) == content.data[:MIB]
        download.reset()
    eventually(lambda: deployment.stored_files(content.digest), "the download has ended")
    stays(lambda: len(deployment.dockyard.read_log().splitlines()) - logged <= 3, "a quiet log", for_s=0.5)
    assert deployment.get(path).body == content.data
    assert fake_registry.count("blob", "GET") == 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_work_for_disconnected_clients_stops(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, how: str
) -> None:
    """Twenty clients leave a large cached layer: its file is closed, the worker is idle, and the log stays short."""
    content = Synthetic(200 * MIB)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment()
    with deployment.stream(path) as download:
        download.head().rest()
    (worker,) = deployment.dockyard.worker_pids()
    logged = len(deployment.dockyard.read_log().splitlines())
    clients = [deployment.stream(path, receive_buffer=4096) for _ in range(20)]
    for client in clients:
        client.head()
        client.socket.close() if how == "close" else client.reset()
    encoded = content.digest.partition(":")[2]
    eventually(lambda: not any(encoded in name for name in open_files(worker).values()), "the layer is closed")
    used, since = cpu_seconds(worker), time.monotonic()
    stays(lambda: cpu_seconds(worker) - used < 0.2 + 0.2 * (time.monotonic() - since), "an idle worker", for_s=1)
    assert len(deployment.read_log().splitlines()) - logged <= 3 * len(clients)


@pytest.mark.parametrize("zero_copy", [True, False])
def test_clients_that_close_after_the_last_byte(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    zero_copy: bool,  # noqa: FBT001
) -> None:
    """As curl and Go do at Content-Length: no client has left. One that closes before the end is logged."""
    content = Bytes(Random(12).randbytes(20 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(server={"zero_copy": zero_copy})
    assert deployment.get(path).body == content.data
    eventually(lambda: deployment.stored_files(content.digest), "the layer is kept")
    more = ("", "Connection: close\r\n", "Range: bytes=0-0\r\n", "Range: bytes=0-5,7-9\r\n", "If-None-Match: *\r\n")
    requests = [
        f"{method} {path} HTTP/{version}\r\nHost: x\r\n{lines}\r\n"
        for method in ("GET", "HEAD")
        for version in ("1.0", "1.1")
        for lines in more
    ]
    for number, request in enumerate(requests * 2):
        with deployment.send_raw(request.encode()) as download:
            status = download.head().status
            if not request.startswith("HEAD") and status != 304:
                download.read(int(download.header("Content-Length") or 0))
            if number % 2:
                download.reset()
    logged = 1 + 2 * len(requests)
    eventually(lambda: len(_request_lines(deployment)) == logged, "each request is logged")
    assert [line for line in _request_lines(deployment) if " end=" in line] == []
    assert deployment.metric("dockyard_cut_responses_total") == 0

    def is_early_client_logged() -> bool:
        """Granian takes the rest of a body for a client that has left: one may be known too late to be logged."""
        with deployment.stream(path, receive_buffer=4096) as early:
            early.head()
            early.reset()
        return 'end="client left"' in deployment.dockyard.read_log()

    eventually(is_early_client_logged, "an early client is logged")


@pytest.mark.parametrize("way", ["zero copy", "reused connection"])
def test_clients_that_close_a_range_without_an_end(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, way: str
) -> None:
    """As containerd does to get 8 MiB: that is no client that has left, and little more than it reads is sent."""
    content = Synthetic(200 * MIB)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(server={"zero_copy": way == "zero copy"})
    with deployment.stream(path) as whole:
        whole.head().rest()
    eventually(lambda: deployment.stored_files(content.digest), "the layer is kept")
    ranges = {
        "bytes=8388608-": True,
        "Bytes= 8388608-": True,
        "bytes=8388608-209715198": False,
        "bytes=-100000000": False,
    }
    for header, is_open in ranges.items():
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: {header}\r\n\r\n"
        with deployment.send_raw(request.encode(), receive_buffer=64 * 1024) as download:
            download.head().read(8 * MIB if is_open else 64 * 1024)
            download.reset()

        def find_line(header: str = header) -> str | None:
            return next((line for line in _request_lines(deployment) if f'range="{header}"' in line), None)

        line = eventually(find_line, "the request is logged") or ""
        if is_open:
            assert 'end="open range closed"' in line
            sent = int(line.partition(" bytes=")[2].split()[0])
            assert 8 * MIB - 256 * 1024 <= sent <= 9 * MIB  # the last bytes may not have been acknowledged
        else:
            assert 'end="client left"' in line
    assert deployment.metric("dockyard_cut_responses_total", reason="open range closed") == 2


def _request_lines(deployment: Deployment) -> list[str]:
    return [line for line in deployment.dockyard.read_log().splitlines() if "reference=sha256:" in line]


@pytest.fixture
def impatient(tmp_path: Path) -> dict[str, str]:
    """An environment in which a client is cut after one second without reading, not after a minute."""
    shorter = "from dockyard.web import connections\n\nconnections.CLIENT_TIMEOUT_S = 1.0\n"
    (tmp_path / "sitecustomize.py").write_text(shorter)
    return {"PYTHONPATH": f"{tmp_path}:{ROOT}"}


def test_a_client_that_reads_nothing_is_cut(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, impatient: dict[str, str]
) -> None:
    """A client that reads nothing until the timeout is cut short of its Content-Length, and its file is closed."""
    content = Synthetic(50 * MIB)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(environ=impatient)
    with deployment.stream(path) as download:
        download.head().rest()
    (worker,) = deployment.dockyard.worker_pids()
    encoded = content.digest.partition(":")[2]
    with deployment.stream(path, receive_buffer=4096) as stalled:
        assert stalled.head().status == 200
        assert any(encoded in name for name in open_files(worker).values())
        eventually(lambda: not any(encoded in name for name in open_files(worker).values()), "it is cut")
        body, ended = stalled.rest()
        assert ended in ("fin", "rst")
        assert len(body) < content.size


def test_a_client_that_reads_slowly_is_not_cut(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, impatient: dict[str, str]
) -> None:
    """A client that reads a little at a time, over many timeouts, gets the whole body."""
    content = Synthetic(50 * MIB)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(environ=impatient)
    with deployment.stream(path, receive_buffer=4096) as slow:
        slow.head()
        stays(lambda: is_part_of(content, slow.received, slow.read(64 * 1024)), "the right bytes", for_s=4)
        assert slow.find_mismatch(content) is None

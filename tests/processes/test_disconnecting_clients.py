"""Clients that leave, wait, or speak oddly."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.support import faults
from tests.support.bodies import Bytes, Synthetic
from tests.support.deployment import Deployment, eventually, open_deployment, set_at_exit, stays
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import is_part_of
from tests.support.paths import ROOT
from tests.support.worker_state import cpu_seconds, open_files

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Give a deployment for odd requests, none of which harms it."""
    with (
        FakeRegistry() as fake_registry,
        open_deployment(fake_registry, tmp_path_factory.mktemp("deployment")) as deployment,
    ):
        yield deployment


def test_a_client_that_leaves_a_running_fetch(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The fill goes on to its end; there are three lines in the log at most."""
    content = Bytes(Random(11).randbytes(20 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment()
    logged = len(deployment.dockyard.read_log().splitlines())
    with set_at_exit(threading.Event()) as go_on:
        fake_registry.on("blob", faults.stalled(0.5, go_on))
        download = deployment.stream(path)
        assert download.head().read(MIB) == content.data[:MIB]
        download.reset()
    eventually(lambda: deployment.stored_files(content.digest), "the fill has ended")
    stays(lambda: len(deployment.dockyard.read_log().splitlines()) - logged <= 3, "a quiet log", for_s=0.5)
    assert deployment.get(path).body == content.data
    assert fake_registry.count("blob", "GET") == 1


@pytest.mark.parametrize("how", ["close", "reset"])
def test_the_work_for_clients_that_left_stops(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, how: str
) -> None:
    """Twenty clients leave a large warm layer: its file is closed, the worker is idle, and the log is quiet."""
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
    eventually(lambda: not any(encoded in name for name in open_files(worker).values()), "the layer is closed", 5)
    used, since = cpu_seconds(worker), time.monotonic()
    stays(lambda: cpu_seconds(worker) - used < 0.2 + 0.2 * (time.monotonic() - since), "an idle worker", for_s=1)
    assert len(deployment.dockyard.read_log().splitlines()) - logged <= 3 * len(clients)


@pytest.fixture
def impatient(tmp_path: Path) -> dict[str, str]:
    """Give an environment in which a client is cut after a second of reading nothing, not after a minute."""
    shorter = "from dockyard.web import exchange\n\nexchange.CLIENT_TIMEOUT_S = 1.0\n"
    (tmp_path / "sitecustomize.py").write_text(shorter)
    return {"PYTHONPATH": f"{tmp_path}:{ROOT}"}


def test_a_client_that_reads_nothing_is_cut(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, impatient: dict[str, str]
) -> None:
    """A client that has read nothing for the time limit is cut, short of its Content-Length, and costs nothing more."""
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
        eventually(lambda: not any(encoded in name for name in open_files(worker).values()), "it is cut", 8)
        body, ended = stalled.rest()
        assert ended in ("fin", "rst")
        assert len(body) < content.size


def test_a_client_that_reads_slowly_is_not_cut(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, impatient: dict[str, str]
) -> None:
    """A client that reads a little now and then, over many time limits, is served."""
    content = Synthetic(50 * MIB)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(environ=impatient)
    with deployment.stream(path, receive_buffer=4096) as slow:
        slow.head()
        stays(lambda: is_part_of(content, slow.received, slow.read(64 * 1024)), "the right bytes", for_s=4)
        assert slow.find_mismatch(content) is None


def test_half_closed_clients_are_answered(deployment: Deployment) -> None:
    """A client that shuts its sending side down after the request either gets its answer whole or is cut; no harm."""
    digest = deployment.fake_registry.add_blob(b"a warm blob")
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}").status == 200
    with deployment.stream(f"/v2/up.test/app/blobs/{digest}") as download:
        download.socket.shutdown(1)
        try:
            assert download.head().status == 200
            assert download.rest()[0] in (b"a warm blob", b"")
        except ConnectionError:
            pass
    assert deployment.get("/v2/").status == 200


def test_pipelined_requests_are_answered_in_order(deployment: Deployment) -> None:
    """Two requests in one packet get two answers, each its own."""
    digest = deployment.fake_registry.add_blob(b"a warm blob")
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}").status == 200
    request = f"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/up.test/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n"
    with deployment.send_raw((request + "Connection: close\r\n\r\n").encode()) as download:
        assert (download.head().status, download.read(download.length or 0)) == (200, b"{}")
        assert (download.head().status, download.read(11)) == (200, b"a warm blob")


@pytest.mark.parametrize("host", ["", "Host: x\r\n"], ids=["without Host", "with Host"])
def test_requests_of_http_1_0(deployment: Deployment, host: str) -> None:
    """HTTP/1.0, with and without Host, as nginx speaks it by default: answered, and the connection is closed."""
    image = deployment.fake_registry.add_image("app", "v1", [b"a layer"])
    for _ in range(2):
        for path, body in (
            ("/v2/", b"{}"),
            ("/v2/up.test/app/manifests/v1", image.body),
            (f"/v2/up.test/app/blobs/{image.layers[0]}", b"a layer"),
        ):
            with deployment.send_raw(f"GET {path} HTTP/1.0\r\n{host}\r\n".encode()) as download:
                assert download.head().status == 200
                assert download.header("Transfer-Encoding") is None
                assert download.read(len(body)) == body
                assert download.read(1) == b""


def test_a_large_cold_blob_over_http_1_0(deployment: Deployment) -> None:
    """A layer that streams while it is fetched is whole for an HTTP/1.0 client too, with its length."""
    content = Bytes(Random(12).randbytes(5 * MIB))
    path = f"/v2/up.test/app/blobs/{deployment.fake_registry.add_blob(content)}"
    with deployment.send_raw(f"GET {path} HTTP/1.0\r\n\r\n".encode()) as download:
        assert download.head().length == content.size
        assert download.rest() == (content.data, "length")


def test_clients_own_headers_go_nowhere(deployment: Deployment) -> None:
    """Credentials, cookies and proxy headers of a client reach neither the upstream nor the log."""
    deployment.fake_registry.add_image("app", "v1")
    names = ("Authorization", "Cookie", "X_Registry_Auth", "X_Forwarded_Host", "X_Original_URL", "X_Rewrite_URL")
    response = deployment.get("/v2/up.test/app/manifests/v1", **dict.fromkeys(names, "canary-value"))
    assert response.status == 200
    assert not any("canary-value" in str(each.request) for each in deployment.fake_registry.received())
    assert "canary-value" not in deployment.dockyard.read_log() + str(response.headers)

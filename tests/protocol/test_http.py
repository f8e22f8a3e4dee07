"""HTTP itself: half-closed connections, pipelining, HTTP/1.0, and headers of clients."""

from random import Random

import pytest

from tests.support.bodies import Bytes
from tests.support.deployment import Deployment

MIB = 1024 * 1024


def test_half_closed_clients_are_answered(deployment: Deployment) -> None:
    """A client that closes its sending side after the request gets its whole response or is cut; the server goes on."""
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
    """Two requests in one packet get two responses, in order."""
    digest = deployment.fake_registry.add_blob(b"a warm blob")
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}").status == 200
    request = f"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/up.test/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n"
    with deployment.send_raw((request + "Connection: close\r\n\r\n").encode()) as download:
        assert (download.head().status, download.read(download.length or 0)) == (200, b"{}")
        assert (download.head().status, download.read(11)) == (200, b"a warm blob")


@pytest.mark.parametrize("host", ["", "Host: x\r\n"], ids=["without Host", "with Host"])
def test_requests_of_http_1_0(deployment: Deployment, host: str) -> None:
    """HTTP/1.0, with and without Host, as nginx sends it by default: answered, and the connection is closed."""
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
    """A layer that is streamed while it is downloaded is complete for an HTTP/1.0 client too, with its length."""
    content = Bytes(Random(12).randbytes(5 * MIB))
    path = f"/v2/up.test/app/blobs/{deployment.fake_registry.add_blob(content)}"
    with deployment.send_raw(f"GET {path} HTTP/1.0\r\n\r\n".encode()) as download:
        assert download.head().length == content.size
        assert download.rest() == (content.data, "length")


def test_clients_own_headers_are_not_forwarded(deployment: Deployment) -> None:
    """Credentials, cookies and proxy headers of a client reach neither the upstream nor the log."""
    deployment.fake_registry.add_image("app", "v1")
    names = ("Authorization", "Cookie", "X_Registry_Auth", "X_Forwarded_Host", "X_Original_URL", "X_Rewrite_URL")
    response = deployment.get("/v2/up.test/app/manifests/v1", **dict.fromkeys(names, "canary-value"))
    assert response.status == 200
    assert not any("canary-value" in str(each.request) for each in deployment.fake_registry.received())
    assert "canary-value" not in deployment.read_log() + str(response.headers)

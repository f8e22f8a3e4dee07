"""The fake registry itself: each fault is what its name says, as seen by a simple client."""

import http.client
import json
import socket
import ssl
import threading
import time
from contextlib import closing

import pytest
import trustme

from tests.support import faults
from tests.support.bodies import Bytes, Synthetic, digest_of, read_whole
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.certificates import server_context
from tests.support.deployment_fixtures import fake_registry
from tests.support.fake_registry import OCI_INDEX, OCI_MANIFEST, FakeRegistry
from tests.support.http_client import StreamedResponse
from tests.support.raw_http import Ending

__all__ = ["fake_registry"]

BLOB = bytes(range(256)) * 400


def get(
    fake_registry: FakeRegistry, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """Send one request with the standard library's client; header names are given with underscores."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(
        http.client.HTTPConnection("127.0.0.1", fake_registry.listener.port, timeout=EVENT_TIMEOUT_S)
    ) as connection:
        connection.request(method, path, headers=named)
        response = connection.getresponse()
        return response, response.read()


def raw(fake_registry: FakeRegistry, path: str) -> tuple[bytes, bytes, str]:
    """Head and body as they were on the wire, and whether a FIN or an RST ended them."""
    with socket.create_connection(("127.0.0.1", fake_registry.listener.port), timeout=EVENT_TIMEOUT_S) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data, ended = b"", "fin"
        try:
            while more := connection.recv(65536):
                data += more
        except ConnectionResetError:
            ended = "rst"
    head, _, body = data.partition(b"\r\n\r\n")
    return head, body, ended


def test_an_image_can_be_read_as_from_a_registry(fake_registry: FakeRegistry) -> None:
    """Manifest by tag and by digest, configuration and layers, each with the headers of a registry."""
    image = fake_registry.add_image("library/app", "v1", [b"one", b"two"])
    by_tag, body = get(fake_registry, "/v2/library/app/manifests/v1")
    assert by_tag.status == 200
    assert by_tag.getheader("Docker-Content-Digest") == image.digest == digest_of(body)
    assert by_tag.getheader("Content-Type") == OCI_MANIFEST
    assert get(fake_registry, f"/v2/library/app/manifests/{image.digest}")[1] == body
    assert [
        get(fake_registry, f"/v2/library/app/blobs/{layer['digest']}")[1] for layer in json.loads(body)["layers"]
    ] == [
        b"one",
        b"two",
    ]


def test_an_index_names_its_images(fake_registry: FakeRegistry) -> None:
    """An index lists the manifests it was made of."""
    images = [fake_registry.add_image("app", None, [layer]) for layer in (b"amd", b"arm")]
    index = fake_registry.add_index("app", "latest", images)
    response, body = get(fake_registry, "/v2/app/manifests/latest")
    assert response.getheader("Content-Type") == OCI_INDEX
    assert [child["digest"] for child in json.loads(body)["manifests"]] == [image.digest for image in images]
    assert digest_of(body) == index.digest


def test_what_is_not_there_is_404(fake_registry: FakeRegistry) -> None:
    """Unknown content is a 404 of the registry; so is a blob of other repositories."""
    digest = fake_registry.add_blob(BLOB, repos=["mine"])
    assert get(fake_registry, f"/v2/mine/blobs/{digest}")[0].status == 200
    assert get(fake_registry, f"/v2/yours/blobs/{digest}")[0].status == 404
    assert get(fake_registry, "/v2/mine/manifests/nope")[0].status == 404


def test_head_has_the_length_and_no_body(fake_registry: FakeRegistry) -> None:
    """HEAD answers as GET without the body, and the connection can be used again."""
    digest = fake_registry.add_blob(BLOB)
    with closing(
        http.client.HTTPConnection("127.0.0.1", fake_registry.listener.port, timeout=EVENT_TIMEOUT_S)
    ) as connection:
        for _ in range(2):
            connection.request("HEAD", f"/v2/app/blobs/{digest}")
            response = connection.getresponse()
            assert (response.getheader("Content-Length"), response.read()) == (str(len(BLOB)), b"")
    assert fake_registry.listener.connections == 1


@pytest.mark.parametrize(
    ("requested", "start", "stop"),
    [("bytes=10-19", 10, 20), ("bytes=102390-", 102390, 102400), ("bytes=-5", 102395, 102400)],
)
def test_ranges_are_honoured(fake_registry: FakeRegistry, requested: str, start: int, stop: int) -> None:
    """One range gives 206 with its Content-Range; beyond the end it is 416."""
    digest = fake_registry.add_blob(BLOB)
    response, body = get(fake_registry, f"/v2/app/blobs/{digest}", Range=requested)
    assert (response.status, body) == (206, BLOB[start:stop])
    assert response.getheader("Content-Range") == f"bytes {start}-{stop - 1}/{len(BLOB)}"
    assert get(fake_registry, f"/v2/app/blobs/{digest}", Range="bytes=102400-")[0].status == 416


def test_requests_are_recorded_with_headers_and_bytes(fake_registry: FakeRegistry) -> None:
    """Kind, method, headers and query of requests, and the body bytes that were sent."""
    digest = fake_registry.add_blob(BLOB)
    get(fake_registry, f"/v2/a/b/blobs/{digest}?ns=x", X_Mark="seen")
    get(fake_registry, f"/v2/a/b/blobs/{digest}", "HEAD")
    exchange = fake_registry.received("blob", "GET")[0]
    assert (exchange.request.repo, exchange.request.reference) == ("a/b", digest)
    assert (exchange.request.header("x-mark"), exchange.request.query) == ("seen", {"ns": "x"})
    assert (fake_registry.count("blob"), fake_registry.count("blob", "HEAD")) == (2, 1)
    # Bytes are counted after they were sent: the client may be faster.
    fake_registry.wait_for(lambda: fake_registry.sent_bytes("blob") == len(BLOB), "all bytes are counted")


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("at", [0, 1, 50_000, 102_399])
def test_a_body_is_cut_at_a_byte(fake_registry: FakeRegistry, how: Ending, at: int) -> None:
    """Exactly that many bytes arrive, then FIN or RST as requested."""
    digest = fake_registry.add_blob(BLOB)
    fake_registry.on("blob", faults.cut(at, how))
    head, body, ended = raw(fake_registry, f"/v2/app/blobs/{digest}")
    assert b"Content-Length: 102400" in head
    assert (body, ended) == (BLOB[:at], how)


def test_a_rule_applies_as_often_as_it_says(fake_registry: FakeRegistry) -> None:
    """`times=1` cuts the first response only."""
    digest = fake_registry.add_blob(BLOB)
    fake_registry.on("blob", faults.cut(0.5), times=1)
    assert len(raw(fake_registry, f"/v2/app/blobs/{digest}")[1]) == len(BLOB) // 2
    assert raw(fake_registry, f"/v2/app/blobs/{digest}")[1] == BLOB


def test_a_stalled_body_continues_after_the_event(fake_registry: FakeRegistry) -> None:
    """The bytes before the stall arrive, then none, then the rest."""
    digest = fake_registry.add_blob(BLOB)
    go_on = threading.Event()
    fake_registry.on("blob", faults.stalled(1000, go_on))
    with socket.create_connection(("127.0.0.1", fake_registry.listener.port), timeout=EVENT_TIMEOUT_S) as connection:
        connection.sendall(f"GET /v2/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while not data.endswith(BLOB[990:1000]):
            data += connection.recv(65536)
        assert data.partition(b"\r\n\r\n")[2] == BLOB[:1000]
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        go_on.set()
        connection.settimeout(EVENT_TIMEOUT_S)
        while more := connection.recv(65536):
            data += more
        assert data.partition(b"\r\n\r\n")[2] == BLOB


def test_a_silent_registry_sends_nothing_and_records_the_disconnect(fake_registry: FakeRegistry) -> None:
    """No byte arrives; the record shows that the client disconnected."""
    fake_registry.on("ping", faults.silent())
    with socket.create_connection(("127.0.0.1", fake_registry.listener.port), timeout=0.2) as connection:
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(TimeoutError):
            connection.recv(1)
    fake_registry.wait_for(lambda: fake_registry.received("ping")[0].ended == "gone", "the disconnect is recorded")


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_registry_disconnects_without_a_response(fake_registry: FakeRegistry, how: Ending) -> None:
    """No byte arrives, then FIN or RST."""
    fake_registry.on("ping", faults.disconnected(how))
    assert raw(fake_registry, "/v2/") == (b"", b"", how)


def test_slow_headers(fake_registry: FakeRegistry) -> None:
    """The head comes byte by byte: the first line is not complete after one read."""
    fake_registry.on("ping", faults.slow_headers(1.0))
    with socket.create_connection(("127.0.0.1", fake_registry.listener.port), timeout=EVENT_TIMEOUT_S) as connection:
        connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert len(connection.recv(65536)) < 5


def test_a_slow_body_takes_its_time(fake_registry: FakeRegistry) -> None:
    """100 KiB at 400 KiB/s cannot arrive in a tenth of a second."""
    digest = fake_registry.add_blob(BLOB)
    fake_registry.on("blob", faults.slow(400 * 1024))
    began = time.monotonic()
    assert get(fake_registry, f"/v2/app/blobs/{digest}")[1] == BLOB
    assert time.monotonic() - began > 0.2


def test_framings_without_a_length(fake_registry: FakeRegistry) -> None:
    """Chunked, chunked without an end, and a body that ends with the connection."""
    digest = fake_registry.add_blob(b"hello")
    rule = fake_registry.on("blob", faults.chunked())
    assert raw(fake_registry, f"/v2/app/blobs/{digest}")[1] == b"5\r\nhello\r\n0\r\n\r\n"
    fake_registry.remove_rules(rule)
    rule = fake_registry.on("blob", faults.chunked(ended=False))
    assert raw(fake_registry, f"/v2/app/blobs/{digest}")[1:] == (b"5\r\nhello\r\n", "fin")
    fake_registry.remove_rules(rule)
    fake_registry.on("blob", faults.close_delimited())
    head, body, ended = raw(fake_registry, f"/v2/app/blobs/{digest}")
    assert (b"Content-Length" in head, body, ended) == (False, b"hello", "fin")


def test_wrong_lengths(fake_registry: FakeRegistry) -> None:
    """Lengths that are too long or too short, a body with extra bytes, and a short body with correct framing."""
    digest = fake_registry.add_blob(b"hello")
    for change, claimed, sent in (
        (faults.wrong_length(3), b"8", b"hello"),
        (faults.wrong_length(-2), b"3", b"hello"),
        (faults.longer(b"!!"), b"7", b"hello!!"),
        (faults.short(2), b"3", b"hel"),
    ):
        rule = fake_registry.on("blob", change)
        head, body, _ = raw(fake_registry, f"/v2/app/blobs/{digest}")
        assert b"Content-Length: " + claimed in head
        assert body == sent
        fake_registry.remove_rules(rule)


def test_wrong_bytes_under_the_right_headers(fake_registry: FakeRegistry) -> None:
    """A flipped bit changes one byte of the content and nothing else, also in a range."""
    digest = fake_registry.add_blob(BLOB)
    fake_registry.on("blob", faults.flipped(70_000))
    _, body = get(fake_registry, f"/v2/app/blobs/{digest}")
    assert [at for at in range(len(BLOB)) if body[at] != BLOB[at]] == [70_000]
    assert get(fake_registry, f"/v2/app/blobs/{digest}", Range="bytes=70000-70000")[1] == bytes([BLOB[70_000] ^ 1])


def test_other_responses(fake_registry: FakeRegistry) -> None:
    """Errors, pages, headers sent twice or removed, ignored ranges."""
    digest = fake_registry.add_blob(BLOB)
    path = f"/v2/app/blobs/{digest}"
    for change, check in (
        (
            faults.error_response(429, "TOOMANYREQUESTS", "7"),
            lambda r, b: r.status == 429 and r.getheader("Retry-After") == "7",
        ),
        (faults.html_page(), lambda r, b: r.getheader("Content-Type") == "text/html" and b == faults.HTML),
        (
            faults.header("Docker-Content-Digest", "a", "b"),
            lambda r, b: r.headers.get_all("docker-content-digest") == ["a", "b"],
        ),
        (faults.without("Docker-Content-Digest"), lambda r, b: r.getheader("Docker-Content-Digest") is None),
        (faults.ignoring_range(), lambda r, b: (r.status, r.getheader("Content-Range"), b) == (200, None, BLOB)),
        (
            faults.challenged('Basic realm="x"', "Bearer y"),
            lambda r, b: len(r.headers.get_all("www-authenticate")) == 2,
        ),
    ):
        rule = fake_registry.on("blob", change)
        assert check(*get(fake_registry, path, Range="bytes=5-6"))
        fake_registry.remove_rules(rule)
    fake_registry.on("blob", faults.without("Content-Length"), method="HEAD")
    assert get(fake_registry, path, "HEAD")[0].getheader("Content-Length") is None


def test_presigned_downloads_are_for_one_method_and_expire(fake_registry: FakeRegistry) -> None:
    """A presigned URL answers GET only, as often as allowed, without credentials, and not after it has expired."""
    digest = fake_registry.add_blob(BLOB)
    cdn = fake_registry.listen("cdn", "127.0.0.2")
    fake_registry.on("blob", faults.redirected(lambda request: fake_registry.presign(digest, listener="cdn", uses=1)))
    location = get(fake_registry, f"/v2/app/blobs/{digest}")[0].getheader("Location") or ""
    assert location.startswith(f"http://127.0.0.2:{cdn.port}/cdn/")
    path = location.removeprefix(cdn.url)
    assert get(fake_registry, path, "HEAD")[0].status == 403
    assert get(fake_registry, path, Authorization="Bearer x")[0].status == 400
    assert get(fake_registry, path)[1] == BLOB
    assert get(fake_registry, path)[0].status == 403
    lasting = fake_registry.presign(digest).removeprefix(fake_registry.url)
    assert get(fake_registry, lasting)[0].status == 200
    fake_registry.expire_presigned()
    assert get(fake_registry, lasting)[0].status == 403


def test_a_closed_listener_refuses_and_comes_back_on_its_port(fake_registry: FakeRegistry) -> None:
    """Closing ends open connections and refuses new ones; opening again keeps the port."""
    with socket.create_connection(("127.0.0.1", fake_registry.listener.port), timeout=EVENT_TIMEOUT_S) as idle:
        get(fake_registry, "/v2/")
        fake_registry.listener.close()
        assert idle.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        get(fake_registry, "/v2/")
    fake_registry.listener.open()
    assert get(fake_registry, "/v2/")[0].status == 200


def test_a_listener_speaks_tls(fake_registry: FakeRegistry) -> None:
    """The certificate of the test's own authority is presented; a body can be cut under TLS too."""
    authority = trustme.CA()
    server = server_context(authority, "localhost")
    client = ssl.create_default_context()
    authority.configure_trust(client)
    secure = fake_registry.listen("secure", tls=server)
    digest = fake_registry.add_blob(BLOB)
    for at in (len(BLOB), 10):
        with closing(
            http.client.HTTPSConnection("localhost", secure.port, timeout=EVENT_TIMEOUT_S, context=client)
        ) as connection:
            connection.request("GET", f"/v2/app/blobs/{digest}")
            try:
                body = connection.getresponse().read()
            except http.client.IncompleteRead as exc:
                body = exc.partial
        assert body == BLOB[:at]
        fake_registry.on("blob", faults.cut(10))


def test_a_synthetic_body_is_the_same_from_every_offset() -> None:
    """Pieces of a large body agree with each other, and no two blocks are equal."""
    body = Synthetic(3 * 1024 * 1024 + 17, seed=5)
    whole = read_whole(body)
    assert len(whole) == body.size
    assert body.digest == Bytes(whole).digest
    for start, stop in ((0, 1), (1024 * 1024 - 3, 2 * 1024 * 1024 + 3), (body.size - 5, body.size), (7, body.size)):
        assert b"".join(body.pieces(start, stop)) == whole[start:stop]
    assert whole[: 1024 * 1024] != whole[1024 * 1024 : 2 * 1024 * 1024]


def test_a_proxy_leads_every_tunnel_to_the_registry(fake_registry: FakeRegistry) -> None:
    """CONNECT to any name leads to the fake registry over TLS; an absolute target is served in plain text."""
    authority = trustme.CA()
    server = server_context(authority, "registry.example.com")
    client = ssl.create_default_context()
    authority.configure_trust(client)
    proxy = fake_registry.listen("proxy", tunnel=server)
    with closing(
        http.client.HTTPSConnection(proxy.host, proxy.port, timeout=EVENT_TIMEOUT_S, context=client)
    ) as connection:
        connection.set_tunnel("registry.example.com")
        connection.request("GET", "/v2/")
        assert connection.getresponse().read() == b"{}"
    assert [each.request.target for each in fake_registry.received("connect")] == ["registry.example.com:443"]
    assert get(fake_registry, "http://registry.example.com/v2/")[0].status == 200


def test_a_listener_that_drops_syns(fake_registry: FakeRegistry) -> None:
    """Existing connections continue, new ones time out, and afterwards connections are accepted again."""
    fake_registry.add_image("app", "v1")
    listener = fake_registry.listener
    address = (listener.host, listener.port)
    with StreamedResponse(address, "/v2/app/manifests/v1") as before:
        listener.drop_syns()
        assert before.head().status == 200
        for _ in range(2):
            with pytest.raises(TimeoutError):
                StreamedResponse(address, "/v2/", timeout_s=0.3)
        listener.accept_syns()
    assert get(fake_registry, "/v2/app/manifests/v1")[0].status == 200


def test_a_slow_body_at_full_speed_after_the_event(fake_registry: FakeRegistry) -> None:
    """It arrives in small pieces at its speed, and at once when the event is set."""
    digest = fake_registry.add_blob(b"x" * 10_000)
    hurry = threading.Event()
    fake_registry.on("blob", faults.slow(1000, hurry))
    with StreamedResponse(
        (fake_registry.listener.host, fake_registry.listener.port), f"/v2/app/blobs/{digest}"
    ) as download:
        download.head()
        began_at = time.monotonic()
        assert download.read(300) == b"x" * 300
        waited_s = time.monotonic() - began_at
        assert waited_s >= 0.2
        assert is_within(waited_s, 2)
        hurry.set()
        body, ended = download.rest()
    assert (len(body), ended) == (9700, "length")
    assert is_within(time.monotonic() - began_at, 4)


def test_a_connection_that_ends_with_its_response(fake_registry: FakeRegistry) -> None:
    """A response with `Connection: close` ends the connection."""
    fake_registry.on("ping", faults.header("Connection", "close"))
    with StreamedResponse((fake_registry.listener.host, fake_registry.listener.port), "/v2/") as download:
        download.head()
        assert download.rest() == (b"{}", "length")
        assert download.socket.recv(1) == b""


def test_tls_to_a_port_of_plain_http(fake_registry: FakeRegistry) -> None:
    """The error is sent in plain HTTP, as real servers do."""
    with pytest.raises(ssl.SSLError, match=r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE"):
        StreamedResponse(
            (fake_registry.listener.host, fake_registry.listener.port), "/v2/", tls=ssl.create_default_context()
        )

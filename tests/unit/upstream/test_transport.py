"""Connections: kept, renewed, secured, cut off in time, and nothing said about them that is secret."""

import contextlib
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import attrs
import pytest
import trustme

from dockyard import __version__
from dockyard.errors import BadUpstream, RegistryError, Unavailable, UpstreamTimeout
from dockyard.oci.reference import Digest, Tag
from dockyard.upstream import transport as transport_module
from dockyard.upstream.responses import UpstreamBlob
from tests.support import faults
from tests.support.bodies import Synthetic, digest_of
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.raw_http import ClientGoneError, Request, ScriptedResponse
from tests.support.raw_server import RawConnection, RawServer, response
from tests.support.upstreams import BASIC, LATEST, LIMITS, MODERATE, SHORT, Ward, certified, error_text, together


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """Give a fake registry and what asks it."""
    with Ward(tmp_path) as ward:
        yield ward


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Give a private certificate authority."""
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    """Give its certificate as a file."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def received_before(error: type[Exception], source: UpstreamBlob) -> bytes:
    """What a source gives before it raises this error."""
    pieces = []
    try:
        while piece := source.read(256 * 1024):
            pieces.append(piece)
    except error:
        return b"".join(pieces)
    finally:
        source.close()
    pytest.fail(f"the body ended well after {sum(map(len, pieces))} bytes")


def vanish(request: Request, answer: ScriptedResponse) -> NoReturn:
    """A change: the connection is closed without a response."""
    raise ClientGoneError


def test_only_our_own_headers_are_sent(ward: Ward) -> None:
    """No cookies, no compression; the User-Agent is Dockyard."""
    ward.fake_registry.add_image("lib/app", "latest")
    ward.registry().head_manifest("lib/app", LATEST)
    (seen,) = ward.fake_registry.received()
    assert {name for name, _ in seen.request.headers} == {"Host", "User-Agent", "Accept-Encoding", "Accept"}
    assert seen.request.header("Accept-Encoding") == "identity"
    assert seen.request.header("User-Agent") == f"dockyard/{__version__}"
    assert seen.request.header("Host") == ward.fake_registry.authority


def test_a_connection_is_used_again(ward: Ward) -> None:
    """After checks, manifests, blobs that were read to their end, errors and redirects."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    registry = ward.registry()
    for _ in range(3):
        registry.head_manifest("lib/app", LATEST)
        registry.get_manifest("lib/app", LATEST)
        source = registry.open_blob("lib/app", Digest.parse(image.config))
        while source.read(1000):
            pass
        source.close()
        with pytest.raises(Exception, match="has no"):
            registry.get_manifest("lib/other", LATEST)
    assert ward.fake_registry.count() == 12
    assert ward.fake_registry.listener.connections == 1


def test_a_body_that_was_not_read_costs_its_connection(ward: Ward) -> None:
    """Nobody reads a layer to its end only to keep a connection."""
    digest = Digest.parse(ward.fake_registry.add_blob(Synthetic(64 * 2**20)))
    registry = ward.registry()
    for _ in range(2):
        source = registry.open_blob("lib/app", digest)
        assert source.read(1000)
        source.close()
    assert ward.fake_registry.listener.connections == 2


def test_many_threads_share_a_registry(ward: Ward) -> None:
    """Each gets its own response."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    registry = ward.registry()
    found = together(30, lambda: str(registry.get_manifest("lib/app", LATEST).digest))
    assert found == [image.digest] * 30
    assert ward.fake_registry.count("manifest", "GET") == 30


def test_a_kept_connection_that_died_is_replaced_at_no_cost(ward: Ward) -> None:
    """The request is sent again on a new one, without an error."""
    ward.fake_registry.add_image("lib/app", "latest")
    registry = ward.registry()
    registry.head_manifest("lib/app", LATEST)
    ward.fake_registry.on("manifest", vanish, times=1)
    registry.head_manifest("lib/app", LATEST)
    assert ward.fake_registry.count("manifest", "HEAD") == 3
    assert ward.fake_registry.listener.connections == 2
    ward.fake_registry.listener.drop_connections()
    registry.head_manifest("lib/app", LATEST)


def test_a_connection_that_was_idle_for_long_is_not_trusted(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies between may have forgotten it."""
    monkeypatch.setattr(transport_module, "MAX_IDLE_S", 0.0)
    ward.fake_registry.add_image("lib/app", "latest")
    registry = ward.registry()
    for _ in range(3):
        registry.head_manifest("lib/app", LATEST)
    assert ward.fake_registry.listener.connections == 3


def test_a_kept_connection_that_swallows_a_request_takes_the_others_with_it(ward: Ward) -> None:
    """After a network change all of them are dead, and each would cost a time-out."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    registry = ward.registry(limits=MODERATE)
    together(5, lambda: registry.get_manifest("lib/app", LATEST))
    kept = ward.fake_registry.listener.connections
    ward.fake_registry.on("manifest", faults.silent(), times=1)
    with pytest.raises(UpstreamTimeout):
        registry.head_manifest("lib/app", LATEST)
    assert ward.fake_registry.listener.connections <= kept + 1  # the check of the registry itself may have begun
    ward.fake_registry.wait_for(lambda: ward.fake_registry.count("ping") == 1, "the registry itself is checked")
    registry.open_blob("lib/app", Digest.parse(image.config), 1).close()
    assert kept < ward.fake_registry.listener.connections <= kept + 2


def test_a_new_connection_that_breaks_gets_one_more_try(ward: Ward) -> None:
    """And no third one."""
    ward.fake_registry.add_image("lib/app", "latest")
    ward.fake_registry.on("manifest", vanish, times=1)
    ward.registry().head_manifest("lib/app", LATEST)
    assert ward.fake_registry.count("manifest") == 2
    ward.fake_registry.clear_exchanges()
    ward.fake_registry.on("manifest", vanish)
    with pytest.raises(Unavailable) as caught:
        ward.registry().head_manifest("lib/app", LATEST)
    assert ward.fake_registry.count("manifest") == 2
    assert caught.value.retry_after_s == 3


def test_a_refused_connection_is_unavailable(ward: Ward) -> None:
    """Within no time, with a Retry-After, and without saying where."""
    registry = ward.registry()
    ward.fake_registry.listener.close()
    begun = time.monotonic()
    with pytest.raises(Unavailable, match=r"^up0\.test cannot be reached") as caught:
        registry.head_manifest("lib/app", LATEST)
    assert is_within(time.monotonic() - begun, 0, slack_s=0.5)
    assert caught.value.retry_after_s == 3
    assert not caught.value.remembered
    assert "127.0.0.1" not in str(caught.value)


def test_an_unknown_host_is_unavailable(ward: Ward) -> None:
    """A name that cannot be resolved is an outage."""
    with pytest.raises(Unavailable, match="name resolution failed"):
        ward.registry(at="http://dockyard.invalid").head_manifest("lib/app", LATEST)


@pytest.mark.parametrize("change", [faults.silent(), faults.slow_headers(0.02)])
def test_headers_that_do_not_come_end_at_the_deadline(ward: Ward, change: object) -> None:
    """Silence, and a byte now and then that would satisfy any socket timeout (M15)."""
    ward.fake_registry.add_image("lib/app", "latest")
    ward.fake_registry.on("manifest", change)  # type: ignore[arg-type]
    begun = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        ward.registry(limits=SHORT).head_manifest("lib/app", LATEST)
    assert is_within(time.monotonic() - begun, SHORT.check_timeout, slack_s=0.5)
    ward.fake_registry.wait_for(lambda: ward.fake_registry.count("manifest") == 1, "the one request")


def test_a_body_that_drips_ends_at_the_deadline(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest has a time limit in all."""
    monkeypatch.setattr("dockyard.config.settings.MIN_RESPONSE_TIMEOUT_S", 0.3)
    ward.fake_registry.add_manifest("lib/app", "latest", b"{" + b" " * 10_000 + b"}", "application/json")
    ward.fake_registry.on("manifest", lambda request, answer: attrs.evolve(answer, framing="chunked"))
    ward.fake_registry.on("manifest", faults.slow(2000))
    registry = ward.registry(limits=attrs.evolve(SHORT, stall_timeout=5.0))
    begun = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        registry.get_manifest("lib/app", LATEST)
    assert is_within(time.monotonic() - begun, 0.5)


def test_the_deadline_covers_the_token_service(ward: Ward) -> None:
    """And redirects: all of a check together."""
    ward.fake_registry.on("manifest", faults.challenged(f'Bearer realm="{ward.fake_registry.url}/token",service="s"'))
    ward.fake_registry.on("token", faults.silent())
    begun = time.monotonic()
    with pytest.raises(UpstreamTimeout, match="token service"):
        ward.registry(limits=SHORT).head_manifest("lib/app", LATEST)
    assert is_within(time.monotonic() - begun, SHORT.check_timeout, slack_s=0.5)
    assert ward.fake_registry.count("token") == 1


def test_a_check_without_a_limit_still_ends_when_nothing_moves(ward: Ward) -> None:
    """`check_timeout: 0` leaves the limits of each wait."""
    ward.fake_registry.on("manifest", faults.silent())
    with pytest.raises(UpstreamTimeout):
        ward.registry(limits=attrs.evolve(SHORT, check_timeout=0.0)).head_manifest("lib/app", LATEST)


def test_a_body_may_take_as_long_as_it_moves(ward: Ward) -> None:
    """A layer has no deadline, only a limit to each pause."""
    content = bytes(3000)
    digest = Digest.parse(ward.fake_registry.add_blob(content))
    ward.fake_registry.on("blob", lambda request, answer: attrs.evolve(answer, framing="chunked"))
    gates = [threading.Event() for _ in range(3)]
    for number, gate in enumerate(gates):
        ward.fake_registry.on("blob", faults.stalled(number * 1000 + 500, gate))
    source = ward.registry(limits=SHORT).open_blob("lib/app", digest)
    received = b""
    begun = time.monotonic()
    for gate in gates:
        while len(received) < gates.index(gate) * 1000 + 500:
            received += source.read(500)
        threading.Event().wait(0.4)  # less than stall_timeout; all together more
        gate.set()
    while piece := source.read(500):
        received += piece
    source.close()
    assert time.monotonic() - begun > SHORT.stall_timeout
    assert received == content


def test_a_stalled_body_is_late(ward: Ward) -> None:
    """No byte for `stall_timeout`; what came before was given."""
    digest = Digest.parse(ward.fake_registry.add_blob(bytes(3000)))
    ward.fake_registry.on("blob", faults.stalled(1000, threading.Event()))
    source = ward.registry(limits=MODERATE).open_blob("lib/app", digest)
    assert received_before(UpstreamTimeout, source) == bytes(1000)


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_broken_body_loses_nothing_that_came(ward: Ward, how: str) -> None:
    """Every byte before the break is given first, then the error: resuming fetches none twice."""
    body = Synthetic(1_000_000)
    digest = Digest.parse(ward.fake_registry.add_blob(body))
    ward.fake_registry.on("blob", faults.cut(700_001, how))  # type: ignore[arg-type]
    source = ward.registry().open_blob("lib/app", digest)
    assert received_before(Unavailable, source) == b"".join(body.pieces(0, 700_001))


def test_an_abort_ends_a_read_at_once(ward: Ward) -> None:
    """From another thread, while the upstream is silent."""
    digest = Digest.parse(ward.fake_registry.add_blob(bytes(3000)))
    ward.fake_registry.on("blob", faults.stalled(1000, threading.Event()))
    source = ward.registry(limits=attrs.evolve(LIMITS, stall_timeout=30.0)).open_blob("lib/app", digest)
    assert len(source.read(3000)) == 1000
    timer = threading.Timer(0.1, source.abort)
    timer.start()
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        source.read(3000)
    assert is_within(time.monotonic() - begun, 1)
    timer.join()
    source.close()
    source.abort()


def test_an_abort_does_not_reach_the_next_request(ward: Ward) -> None:
    """The connection is in the pool again and may be in use by another request."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    registry = ward.registry()
    source = registry.open_blob("lib/app", Digest.parse(image.config))
    while source.read(1000):
        pass
    registry.head_manifest("lib/app", LATEST)
    source.abort()
    registry.head_manifest("lib/app", LATEST)
    assert ward.fake_registry.listener.connections == 1


# Responses that belong to no request


def manifest_response(body: bytes, method: str = "GET") -> bytes:
    """A response to a request for a manifest."""
    headers = ("Content-Type: application/vnd.oci.image.manifest.v1+json", f"Docker-Content-Digest: {digest_of(body)}")
    sent = response(body, *headers)
    return sent if method == "GET" else sent.removesuffix(body)


def tag_of(request_line: str) -> str:
    """The last part of a path."""
    return request_line.split()[1].rpartition("/")[2]


BODIES = {tag: b'{"schemaVersion": 2, "config": {}, "layers": [], "tag": "%s"}' % tag.encode() for tag in ("v1", "v2")}


def serve_tags(
    connection: RawConnection,
    before: Callable[[RawConnection], object],
    after: Callable[[RawConnection, bytes], object],
) -> None:
    """Respond with the manifest of the tag; call `before` and `after` each first response of a connection."""
    is_first = True
    while line := connection.receive_request():
        body = BODIES[tag_of(line)]
        if is_first:
            before(connection)
        connection.send(manifest_response(body, line.split()[0]))
        if is_first:
            after(connection, body)
        is_first = False


def nothing(*_: object) -> None:
    """Neither before nor after."""


def test_an_early_hint_and_a_late_response_do_not_shift_responses(ward: Ward) -> None:
    """103, and the response after the time in which another tag is requested."""
    has_hinted, may_respond = threading.Event(), threading.Event()

    def hint(connection: RawConnection) -> None:
        if connection.number == 1:
            connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </s>; rel=preload\r\n\r\n")
            has_hinted.set()
            may_respond.wait(EVENT_TIMEOUT_S)

    with RawServer(lambda connection: serve_tags(connection, hint, nothing)) as server:
        registry = ward.registry(at=server.url)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(registry.head_manifest, "lib/app", Tag("v1"))
            assert has_hinted.wait(EVENT_TIMEOUT_S)
            second = registry.head_manifest("lib/app", Tag("v2"))
            may_respond.set()
            assert str(first.result().digest) == digest_of(BODIES["v1"])
        assert str(second.digest) == digest_of(BODIES["v2"])
        for tag, body in BODIES.items():
            assert str(registry.head_manifest("lib/app", Tag(tag)).digest) == digest_of(body)
    assert len(server.heads) == 4


def test_interim_responses_do_not_extend_the_deadline(ward: Ward) -> None:
    """102 again and again is no response."""

    def process(connection: RawConnection) -> None:
        while True:
            connection.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            threading.Event().wait(0.05)

    with RawServer(lambda connection: serve_tags(connection, process, nothing)) as server:
        begun = time.monotonic()
        with pytest.raises(UpstreamTimeout):
            ward.registry(at=server.url, limits=SHORT).head_manifest("lib/app", Tag("v1"))
        assert is_within(time.monotonic() - begun, SHORT.check_timeout, slack_s=0.5)
    assert len(server.heads) == 1


def test_a_change_of_protocol_is_an_error(ward: Ward) -> None:
    """No request asks for one."""
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"
    with RawServer(lambda connection: serve_tags(connection, lambda it: it.send(switch), nothing)) as server:
        registry = ward.registry(at=server.url)
        for _ in range(2):
            with pytest.raises(BadUpstream, match="not valid HTTP"):
                registry.head_manifest("lib/app", Tag("v1"))
        assert server.connections == 2


def test_a_body_after_the_response_to_head_is_not_the_next_response(ward: Ward) -> None:
    """It comes when the next request is on its way already: that one is sent again, on another connection."""
    has_next = threading.Event()

    def send_body(connection: RawConnection, body: bytes) -> None:
        if connection.number == 1:
            connection.receive_request()
            has_next.set()
            connection.send(body + b"\r\n")
            connection.wait_for_end()

    with RawServer(lambda connection: serve_tags(connection, nothing, send_body)) as server:
        registry = ward.registry(at=server.url)
        assert str(registry.head_manifest("lib/app", Tag("v1")).digest) == digest_of(BODIES["v1"])
        assert str(registry.head_manifest("lib/app", Tag("v2")).digest) == digest_of(BODIES["v2"])
        assert has_next.is_set()
        assert [tag_of(line) for line in server.request_lines] == ["v1", "v2", "v2"]
        assert server.connections == 2


def test_a_timeout_of_an_idle_connection_is_not_the_next_response(ward: Ward) -> None:
    """Some servers say 408 before they close a connection; it may cross with the next request."""

    def close_idle(connection: RawConnection, _: bytes) -> None:
        if connection.number == 1:
            connection.receive_request()
            connection.send(response(b"", "Connection: close", status=408))
            connection.wait_for_end()

    with RawServer(lambda connection: serve_tags(connection, nothing, close_idle)) as server:
        registry = ward.registry(at=server.url)
        for tag in ("v1", "v2"):
            assert str(registry.head_manifest("lib/app", Tag(tag)).digest) == digest_of(BODIES[tag])
        assert [tag_of(line) for line in server.request_lines] == ["v1", "v2", "v2"]


def test_408_on_a_new_connection_is_a_timeout(ward: Ward) -> None:
    """It is the response to this request."""
    sent = response(b"", status=408)
    with RawServer(lambda connection: (connection.receive_request(), connection.send(sent))) as server:  # type: ignore[func-returns-value]
        with pytest.raises(UpstreamTimeout):
            ward.registry(at=server.url).head_manifest("lib/app", Tag("v1"))
        assert len(server.heads) == 1


# URLs


@pytest.mark.parametrize(
    "target",
    [
        "/store/a%2fb?Policy=x|y&sig=ab%2Fcd",
        "/a/./b/../c//d?e[1]=100%&f=%zz",
        "/a?",
        '/<x>^`{y}?"z"',
    ],
)
@pytest.mark.parametrize("is_proxied", [False, True])
def test_the_target_of_a_redirect_is_sent_as_it_came(ward: Ward, target: str, is_proxied: bool) -> None:  # noqa: FBT001
    """A signature covers it. Through a proxy without a tunnel it is part of the whole URL."""
    digest = Digest.parse(ward.fake_registry.add_blob(b"content"))
    ward.fake_registry.on("blob", faults.redirected(target))
    at = "http://registry.test:8080" if is_proxied else ""
    registry = ward.registry(at=at, proxy=ward.fake_registry.url if is_proxied else "")
    with pytest.raises(RegistryError):
        registry.open_blob("lib/app", digest)
    _, seen = ward.fake_registry.received()
    assert seen.request.target == at + target
    assert seen.request.header("Host") == (at.removeprefix("http://") or ward.fake_registry.authority)


def test_a_redirect_cannot_inject_a_header(ward: Ward) -> None:
    """A folded Location is one line with a space in it."""
    blob = Digest.parse(ward.fake_registry.add_blob(b"content"))
    folded = b"HTTP/1.1 307 Moved\r\nContent-Length: 0\r\nLocation: /a\r\n X-Injected: y\r\n\r\n"

    def serve(connection: RawConnection) -> None:
        while line := connection.receive_request():
            connection.send(folded if "/blobs/" in line else response(b"", status=404))

    with RawServer(serve) as server, contextlib.suppress(RegistryError):
        ward.registry(at=server.url).open_blob("lib/app", blob)
    assert server.request_lines[1:] == ["GET /a%20X-Injected:%20y HTTP/1.1"]
    assert not [head for head in server.heads if b"\nX-Injected" in head]


# TLS


def test_a_private_authority_is_trusted_when_it_is_configured(ward: Ward, authority: trustme.CA, ca_file: str) -> None:
    """`ca_file`, beside the system's roots. A large body arrives whole through TLS records."""
    body = Synthetic(3_000_000)
    digest = ward.fake_registry.add_blob(body)
    at = ward.fake_registry.listen("tls", tls=certified(authority, "127.0.0.1")).url
    source = ward.registry(at=at, ca_file=ca_file).open_blob("lib/app", Digest.parse(digest))
    received = b""
    while piece := source.read(256 * 1024):
        received += piece
    source.close()
    assert digest_of(received) == digest


def test_a_broken_tls_body_loses_nothing_that_came(ward: Ward, authority: trustme.CA, ca_file: str) -> None:
    """As in plain text."""
    digest = Digest.parse(ward.fake_registry.add_blob(bytes(1_000_000)))
    ward.fake_registry.on("blob", faults.cut(700_001, "rst"))
    at = ward.fake_registry.listen("tls", tls=certified(authority, "127.0.0.1")).url
    source = ward.registry(at=at, ca_file=ca_file).open_blob("lib/app", digest)
    assert received_before(Unavailable, source) == bytes(700_001)


def test_headers_over_tls_end_at_the_deadline(ward: Ward, authority: trustme.CA, ca_file: str) -> None:
    """Dripping behind encryption is dripping as well."""
    ward.fake_registry.on("manifest", faults.slow_headers(0.02))
    at = ward.fake_registry.listen("tls", tls=certified(authority, "127.0.0.1")).url
    begun = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        ward.registry(at=at, ca_file=ca_file, limits=SHORT).head_manifest("lib/app", LATEST)
    assert is_within(time.monotonic() - begun, SHORT.check_timeout, slack_s=0.5)


def test_what_cannot_be_verified_gets_no_request(ward: Ward, authority: trustme.CA, ca_file: str) -> None:
    """Another authority, another name, out of date: not a byte of a request.

    The second connection is made to describe the certificate in the log.
    """
    ward.fake_registry.add_image("lib/app", "latest")
    expired = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", not_after=datetime.now(UTC) - timedelta(days=1)).configure_cert(expired)
    listeners = [
        ward.fake_registry.listen("stranger", tls=certified(trustme.CA(), "127.0.0.1")),
        ward.fake_registry.listen("other name", tls=certified(authority, "other.test")),
        ward.fake_registry.listen("expired", tls=expired),
    ]
    for listener in listeners:
        with pytest.raises(BadUpstream, match="no trusted TLS"):
            ward.registry(at=listener.url, ca_file=ca_file, auth=BASIC).head_manifest("lib/app", LATEST)
        ward.fake_registry.wait_for(lambda: listener.connections >= 2, "both connections are accepted")  # noqa: B023
        assert listener.connections == 2
    assert ward.fake_registry.count() == 0


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b""])
def test_what_does_not_speak_tls_gets_no_request(ward: Ward, answer: bytes) -> None:
    """A plain response, or a reset in the handshake: one attempt, and no fallback to plain HTTP."""
    received: list[bytes] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                with client:
                    received.append(client.recv(65536))
                    client.sendall(answer)
                    if not answer:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        registry = ward.registry(at=f"https://127.0.0.1:{server.getsockname()[1]}", auth=BASIC)
        with pytest.raises(BadUpstream, match="no trusted TLS"):
            registry.head_manifest("lib/app", LATEST)
        server.shutdown(socket.SHUT_RDWR)
        thread.join(EVENT_TIMEOUT_S)
    assert len(received) == 1
    assert b"HTTP" not in received[0]


def test_verification_can_be_switched_off(ward: Ward) -> None:
    """With `insecure_skip_verify`."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    at = ward.fake_registry.listen("stranger", tls=certified(trustme.CA(), "other.test")).url
    registry = ward.registry(at=at, insecure_skip_verify=True)
    assert str(registry.head_manifest("lib/app", LATEST).digest) == image.digest


# Proxies


class Proxy:
    """A CONNECT proxy: records its requests, and forwards bytes or responds with `status`."""

    def __init__(self, status: int = 200) -> None:
        self.heads: list[bytes] = []
        self.names: dict[str, str] = {}
        self._status = status
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://user:pr0xy-pass@127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._tunnel, args=(client,), daemon=True).start()

    def _tunnel(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(65536)
        self.heads.append(head)
        client.sendall(f"HTTP/1.1 {self._status} Scripted\r\n\r\n".encode())
        if self._status != 200:
            client.close()
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        with client, socket.create_connection((self.names.get(host, host), int(port))) as server:
            back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
            back.start()
            self._pump(client, server)
            back.join(EVENT_TIMEOUT_S)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Give a proxy that lets through."""
    proxy = Proxy()
    yield proxy
    proxy.close()


def test_a_proxy_is_used_when_it_is_configured(ward: Ward, proxy: Proxy, authority: trustme.CA, ca_file: str) -> None:
    """By CONNECT; its password goes to it and no further."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    tls = ward.fake_registry.listen("tls", tls=certified(authority, "127.0.0.1"))
    registry = ward.registry(at=tls.url, ca_file=ca_file, proxy=proxy.url)
    assert str(registry.head_manifest("lib/app", LATEST).digest) == image.digest
    (head,) = proxy.heads
    assert head.startswith(f"CONNECT {tls.authority} ".encode())
    assert b"Proxy-Authorization: Basic" in head.title() or b"proxy-authorization: basic" in head.lower()
    assert ward.fake_registry.received()[0].request.header("Proxy-Authorization") is None


def test_plain_http_goes_through_a_proxy_too(ward: Ward) -> None:
    """With the whole URL in the request line; here the fake registry plays the proxy."""
    image = ward.fake_registry.add_image("lib/app", "latest")
    proxy_url = f"http://user:pr0xy-pass@{ward.fake_registry.authority}"
    registry = ward.registry(at="http://registry.test:8080", proxy=proxy_url)
    assert str(registry.head_manifest("lib/app", LATEST).digest) == image.digest
    (seen,) = ward.fake_registry.received()
    assert seen.request.target == "http://registry.test:8080/v2/lib/app/manifests/latest"
    assert seen.request.header("Host") == "registry.test:8080"
    assert (seen.request.header("Proxy-Authorization") or "").startswith("Basic ")


def test_a_proxy_that_refuses_is_an_outage(ward: Ward, authority: trustme.CA) -> None:
    """Whose password is in no message."""
    proxy = Proxy(status=403)
    tls = ward.fake_registry.listen("tls", tls=certified(authority, "127.0.0.1"))
    with pytest.raises(Unavailable, match="proxy") as caught:
        ward.registry(at=tls.url, proxy=proxy.url).head_manifest("lib/app", LATEST)
    proxy.close()
    assert "pr0xy-pass" not in error_text(caught.value)
    assert ward.fake_registry.count() == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "localhost", "[::1]", "169.254.169.254"])
def test_behind_a_proxy_spelt_addresses_are_checked(
    ward: Ward, proxy: Proxy, authority: trustme.CA, ca_file: str, host: str
) -> None:
    """Names are looked up by the proxy; what is written out is refused here."""
    port = ward.fake_registry.listen("tls", tls=certified(authority, "registry.test")).port
    proxy.names["registry.test"] = "127.0.0.1"
    ward.fake_registry.on("manifest", faults.redirected(f"https://{host}:{port}/v2/"))
    registry = ward.registry(at=f"https://registry.test:{port}", ca_file=ca_file, proxy=proxy.url)
    with pytest.raises(BadUpstream, match="not allowed"):
        registry.head_manifest("lib/app", LATEST)
    assert ward.fake_registry.count() == 1


def test_proxies_of_the_environment_are_not_used(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the settings say."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    ward.fake_registry.add_image("lib/app", "latest")
    ward.registry().head_manifest("lib/app", LATEST)
    assert ward.fake_registry.count("manifest") == 1


# What is said


def test_no_signature_is_logged(ward: Ward, caplog: pytest.LogCaptureFixture) -> None:
    """Not even by the library below, at any level."""
    caplog.set_level(logging.DEBUG)
    digest = ward.fake_registry.add_blob(b"content")
    ward.fake_registry.on("blob", faults.redirected(lambda request: ward.fake_registry.presign(digest)))
    ward.registry().open_blob("lib/app", Digest.parse(digest)).close()
    assert ward.fake_registry.count("cdn") == 1
    assert "Signature" not in caplog.text

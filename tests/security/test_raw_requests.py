"""Request parsing and smuggling: 42 raw inputs, and four clients that send slowly.

Each input has its exact responses. The server never sends more responses than a strict HTTP parser finds requests in
the same bytes, closes the connection after a rejected request, and sends nothing upstream or to the bucket for
malformed ones.
"""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.deploy.fleet import EXAMPLES
from tests.security.canaries import WatchedDeployment
from tests.security.corpus import CORPUS, INNER, LAST, RawInput
from tests.security.raw_connection import count_requests, send_bytes
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.paths import ROOT
from tests.support.processes import Process, free_port
from tests.support.programs import Programs

_BODY = b"Content-Length: %d\n" % len(INNER)
OPS = ROOT / "ops"


def test_the_corpus_is_complete() -> None:
    """42 inputs; the strict parser tells one request from two."""
    assert len({each.name for each in CORPUS}) == len(CORPUS) == 42
    assert [count_requests(data) for data in (b"", INNER, INNER * 2, INNER + LAST, b"no HTTP\r\n\r\n")] == [
        0,
        1,
        2,
        2,
        1,
    ]


@pytest.mark.usefixtures("no_backend_requests")
@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_s1_raw_inputs(empty_bucket_deployment: WatchedDeployment, case: RawInput) -> None:
    """Exactly these responses, then the end of the connection; nothing inside an input is taken for a request."""
    result = send_bytes(empty_bucket_deployment.address, case.data)
    assert result.statuses == case.statuses
    assert result.is_closed
    assert len(result.statuses) <= count_requests(case.data)
    assert empty_bucket_deployment.fake_registry.count(repo="smuggled") == 0


def _slow_headers(connection: socket.socket) -> None:
    """Send a byte every half a second, never the last one."""
    for byte in b"GET /v2/ HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 100:
        connection.sendall(bytes([byte]))
        time.sleep(0.5)  # this client is slow on purpose


WAITING: dict[str, Callable[[socket.socket], None]] = {
    "headers that drip": _slow_headers,
    "no byte": lambda connection: None,
    "half a header": lambda connection: connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost:"),
    "idle after a response": lambda connection: connection.sendall(b"GET /v2/ HTTP/1.1\r\nHost: h\r\n\r\n"),
}


def test_s2_slow_and_idle_clients_are_cut(empty_bucket_deployment: WatchedDeployment) -> None:
    """A client that has not sent a whole request within ten seconds is cut, and so is an idle connection."""

    def wait(start: Callable[[socket.socket], None]) -> float:
        with socket.create_connection(empty_bucket_deployment.address, EVENT_TIMEOUT_S) as connection:
            began = time.monotonic()
            try:
                start(connection)
                while connection.recv(4096):
                    pass
            except ConnectionError:
                pass
            return time.monotonic() - began

    with ThreadPoolExecutor(len(WAITING)) as pool:
        took = dict(zip(WAITING, pool.map(wait, WAITING.values()), strict=True))
    assert all(seconds > 5 and is_within(seconds, 10, slack_s=2) for seconds in took.values()), took


def test_s3_the_body_of_a_post_is_not_read(empty_bucket_deployment: WatchedDeployment) -> None:
    """405 within half a second, and the connection is closed, before a byte of the body has come."""
    head = b"POST /v2/up.test/app/blobs/uploads/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"
    result = send_bytes(empty_bucket_deployment.address, head)
    assert (result.statuses, result.is_closed) == ((405,), True)
    assert is_within(result.took_s, 0, slack_s=0.5)


@contextmanager
def _front(
    name: str, programs: Programs, empty_bucket_deployment: WatchedDeployment, directory: Path
) -> Iterator[tuple[str, int]]:
    """A load balancer with its configuration of ops/ in front of one Dockyard."""
    port = free_port()
    changes = dict.fromkeys(EXAMPLES, empty_bucket_deployment.dockyard.host)
    config = directory / name
    if name == "haproxy":
        source = OPS / "haproxy" / "haproxy.cfg"
        changes |= {
            "    user haproxy\n    group haproxy\n": "",
            "bind :5000": f"bind 127.0.0.1:{port}",
            "/run/haproxy/admin.sock": f"{directory}/admin.sock",
        }
        argv: list[str | Path] = [programs.need("haproxy"), "-db", "-f", config]
    else:
        source = OPS / "nginx" / "nginx.conf"
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        changes |= {
            "pid /run/nginx.pid": f"pid {directory}/nginx.pid",
            "/var/log/nginx/error.log": f"{directory}/error.log",
            "listen 5000": f"listen 127.0.0.1:{port}",
            "worker_connections 16384": "worker_connections 512",
            "access_log off;": "access_log off;" + "".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds),
        }
        argv = [programs.need("nginx"), "-p", directory, "-c", config, "-g", "daemon off;"]
    text = source.read_text()
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    config.write_text(text)
    process = Process.start(argv, log=directory / f"{name}.log")
    try:
        process.wait_until(lambda: _is_up(port), "answering")
        yield "127.0.0.1", port
    finally:
        process.end()


def _is_up(port: int) -> bool:
    try:
        return send_bytes(("127.0.0.1", port), LAST).statuses == (200,)
    except OSError:
        return False


UNSEEN = {
    "bare-lf": b"GET /v2/up.test/NAME/manifests/x HTTP/1.1\nHost: h\nConnection: close\n\n",
    "bare-lf-twice": b"GET /v2/up.test/NAME/manifests/x HTTP/1.1\nHost: h\n\n" * 2 + LAST,
    "bare-lf-and-length": b"GET /v2/up.test/NAME/manifests/x HTTP/1.1\nHost: h\n" + _BODY + b"\n" + INNER + LAST,
    "host-in-the-target": b"GET http://h/v2/up.test/NAME/manifests/x HTTP/1.1\r\nConnection: close\r\n\r\n",
    "fragment": b"GET /v2/up.test/NAME/manifests/x#/../y HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("name", ["haproxy", "nginx"])
def test_s4_the_load_balancer_settles_what_dockyard_cannot_see(
    empty_bucket_deployment: WatchedDeployment, programs: Programs, tmp_path: Path, name: str
) -> None:
    """What never reaches the application: bare LF, a fragment after `#`, a Host only in the target.

    A load balancer of ops/ rejects such a request or rewrites it, so that both servers see the same: for each request
    that reached Dockyard there is one response, and no more than a strict parser finds.
    """
    with _front(name, programs, empty_bucket_deployment, tmp_path) as address:
        for what, data in UNSEEN.items():
            repo = f"{what}-by-{name}"
            result = send_bytes(address, data.replace(b"NAME", repo.encode()))
            assert set(result.statuses) <= {200, 400, 404}, what
            assert result.is_closed, what
            assert 1 <= len(result.statuses) <= count_requests(data), what
            targets = {each.request.target for each in empty_bucket_deployment.fake_registry.received(repo=repo)}
            assert targets <= {f"/v2/{repo}/manifests/x"}, what
            assert bool(targets) == (404 in result.statuses), what
        assert empty_bucket_deployment.fake_registry.count(repo="smuggled") == 0

"""What clients and upstreams can make Dockyard spend: memory, time, connections, lines in the log."""

import ast
import socket
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from functools import cache
from math import inf
from random import Random

import pytest

from dockyard.errors import RegistryError
from dockyard.log import MAX_LINE_BYTES
from dockyard.oci.challenge import is_realm_trusted, parse_challenges
from dockyard.oci.links import find_next
from dockyard.oci.origin import Origin
from dockyard.oci.ranges import parse_ranges
from dockyard.oci.reference import Digest, Name, Tag, parse_reference
from dockyard.upstream.headers import parse_content_range, parse_retry_after
from dockyard.upstream.urls import InvalidUrl, parse_http_url
from tests.s3.store.proxy import Respond, S3Proxy
from tests.security.canaries import WatchedDeployment
from tests.security.conftest import bucket_settings
from tests.security.raw_connection import send_bytes
from tests.support import faults
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.deployment import set_at_exit, upstream
from tests.support.fake_auth import FakeTokenService
from tests.support.fake_registry import FakeRegistry
from tests.support.paths import ROOT
from tests.support.processes import memory_bytes

DOCKYARD = ROOT / "dockyard"
MIB = 2**20
BOMB_BYTES = 512 * MIB


@cache
def _bomb() -> bytes:
    """Half a GiB of zeros, as gzip."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    block = bytes(16 * MIB)
    return b"".join(packer.compress(block) for _ in range(BOMB_BYTES // len(block))) + packer.flush()


def _memory(deployment: WatchedDeployment) -> int:
    return max(memory_bytes(pid) for pid in deployment.dockyard.worker_pids())


def test_d1_compressed_responses_are_no_bombs(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """A gzip bomb as manifest or token is unpacked up to its limit, as blob or bucket error not at all: an error."""
    bomb = _bomb()
    assert len(bomb) < 4 * MIB
    encoded = faults.replaced(200, bomb, ("Content-Encoding", "gzip"), ("Content-Type", "application/json"))
    with closing(S3Proxy(0)) as bucket:
        bucket.rule = lambda request: Respond(404, bomb, "Content-Encoding: gzip\r\nContent-Type: application/xml\r\n")
        deployment = make_deployment(
            upstreams=[upstream(name, fake_registry.url) for name in ("plain.test", "up.test", "login.test")],
            storage=bucket_settings(bucket),
        )
        image = fake_registry.add_image("app", "v1", [b"an ordinary layer"])
        assert deployment.get("/v2/plain.test/app/manifests/v1").body == image.body
        assert deployment.get(f"/v2/plain.test/app/blobs/{image.layers[0]}").status == 200
        before = _memory(deployment)
        for kind in ("manifest", "blob"):
            fake_registry.on(kind, encoded, repo="bombs")
        for path in ("manifests/v1", f"manifests/sha256:{'1' * 64}", f"blobs/sha256:{'1' * 64}"):
            response = deployment.get(f"/v2/up.test/bombs/{path}")
            assert response.status == 502 or (path.startswith("blobs/") and not response.is_complete), path
        FakeTokenService(fake_registry)
        fake_registry.on("token", encoded)
        assert deployment.get("/v2/login.test/other/manifests/v1").status in (502, 503)
        assert _memory(deployment) - before < 64 * MIB
        assert bucket.requests


def test_d2_one_module_imports_a_decompressor() -> None:
    """The one for small responses of upstreams, with a limit; layers are bytes."""
    unpackers = {"gzip", "zlib", "bz2", "lzma", "zipfile", "tarfile", "shutil.unpack_archive", "zstandard", "brotli"}
    wanted = set()
    for path in DOCKYARD.rglob("*.py"):
        if path == DOCKYARD / "http1" / "encoding.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    wanted |= {name.name.partition(".")[0] for name in names}
                case ast.ImportFrom(module=str(module)):
                    wanted |= {module.partition(".")[0]}
    assert {"urllib3", "hashlib"} <= wanted
    assert wanted & unpackers == set()


LAUGHS = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">' + b"".join(
    b'<!ENTITY %c "%s">' % (letter, b"&%c;" % (letter - 1) * 10) for letter in range(ord("b"), ord("k"))
)
STORES = {
    "billion laughs": LAUGHS + b"]><Error><Code>&j;</Code></Error>",
    "an outside entity": b'<!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]><Error><Code>&a;</Code></Error>',
    "deep": b"<Error>" * 100_000,
    "many codes": b"<Error>" + b"<Code>" * 50_000,
    "8 MiB": b"<Error><Code>" + b"x" * (8 * MIB) + b"</Code></Error>",
}


@pytest.mark.parametrize("status", [200, 403])
def test_d5_hostile_xml_of_the_bucket(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry, status: int
) -> None:
    """Entities, depth and size of the bucket's XML cost nothing; pulls succeed as if there were no bucket.

    A 200 with 8 MiB counts as a blob whose first part is sent before it is known to be wrong: that response ends short,
    and the next one is right.
    """
    with closing(S3Proxy(0)) as bucket:
        deployment = make_deployment(storage=bucket_settings(bucket))
        for number, (name, xml) in enumerate(STORES.items()):
            bucket.rule = lambda request, xml=xml: Respond(status, xml)  # type: ignore[misc]
            image = fake_registry.add_image(f"store-{number}", "v1", [name.encode()])
            for path, body in (("manifests/v1", image.body), (f"blobs/{image.layers[0]}", name.encode())):
                response = deployment.get(f"/v2/up.test/store-{number}/{path}")
                if (status, name, path[:5]) == (200, "8 MiB", "blobs"):
                    assert not response.is_complete
                    response = deployment.get(f"/v2/up.test/store-{number}/{path}")
                assert (response.status, response.body, is_within(response.took_s, 2)) == (200, body, True), name
        assert "root:" not in deployment.read_log()
        assert _memory(deployment) < 160 * MIB


def test_d6_more_connections_than_descriptors(
    make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry
) -> None:
    """More idle connections than file descriptors: no worker dies of them, and no running download is cut.

    Connections beyond the limit of a worker wait until idle ones are cut. There is no limit per client address.
    """
    deployment = make_deployment(descriptors=600)
    go_on = threading.Event()
    blob = Random(6).randbytes(3 * MIB)
    digest = fake_registry.add_blob(blob)
    fake_registry.on("blob", faults.stalled(0.5, go_on), times=1)
    (pid,) = deployment.dockyard.worker_pids()
    with set_at_exit(go_on), deployment.stream(f"/v2/up.test/app/blobs/{digest}") as running, ExitStack() as idle:
        assert running.head().status == 200
        for _ in range(150):
            idle.enter_context(socket.create_connection(deployment.address, EVENT_TIMEOUT_S))
        began = time.monotonic()
        assert deployment.get("/v2/").status == 200
        waited_s = time.monotonic() - began
        assert waited_s > 5  # it had to wait until others were cut
        assert is_within(waited_s, 10, slack_s=5)
        go_on.set()
        assert running.rest() == (blob, "length")
    assert deployment.dockyard.worker_pids() == [pid]
    assert "does not respond" not in deployment.read_log()


def test_d7_many_unknown_tags(make_deployment: Callable[..., WatchedDeployment], fake_registry: FakeRegistry) -> None:
    """Unknown names and tags leave nothing behind: no metric label, no file, no memory.

    There is no limit on the request rate of a client; connections to the upstream are limited.
    """
    deployment = make_deployment()
    with ThreadPoolExecutor(20) as pool:
        # As many at once as below: each thread that handles a request takes some memory once.
        list(pool.map(deployment.get, [f"/v2/up.test/warm-{number % 50}/manifests/{number}" for number in range(500)]))
        files, memory = set(deployment.dockyard.storage.rglob("*")), _memory(deployment)
        paths = [f"/v2/up.test/unknown-{number % 100}/manifests/tag-{number}" for number in range(1500)]
        assert {response.status for response in pool.map(deployment.get, paths)} == {404}
    metrics = deployment.get("/metrics").body.decode()
    assert "unknown-" not in metrics
    assert len(metrics.splitlines()) < 1000
    assert {path for path in set(deployment.dockyard.storage.rglob("*")) - files if path.is_file()} == set()
    assert _memory(deployment) - memory < 32 * MIB
    assert fake_registry.listener.connections <= 64


FLOODS = {
    "line ends": "/v2/up.test/a%0d%0a2026-01-01T00:00:00Z%20error%20forged/manifests/x",
    "colours": "/v2/up.test/%1b[31mred/manifests/x",
    "raw colours": "/v2/up.test/\x1b[31mred/manifests/x",
    "a long name": "/v2/up.test/" + "a" * 1900 + "/manifests/x",
    "64 KiB": "/v2/up.test/" + "a" * 65_000 + "/manifests/x",
    "UTF-8": "/v2/up.test/\u202egnp.exe/manifests/x",
    "a long tag": "/v2/up.test/a/manifests/" + "t" * 1900,
    "a long query": "/v2/up.test/a/manifests/x?ns=" + "q" * 20_000,
}


def test_d8_the_log_is_not_flooded(make_deployment: Callable[..., WatchedDeployment]) -> None:
    """A request has one log line at most, printable ASCII, below 2 KiB, whatever its path and query contain."""
    deployment = make_deployment()
    deployment.wait_for_log("Dockyard is listening")
    log_length = len(deployment.dockyard.read_log())
    for path in FLOODS.values():
        send_bytes(
            deployment.address,
            f"GET {path} HTTP/1.1\r\nHost: h\r\nUser-Agent: {'u' * 8000}\r\nConnection: close\r\n\r\n".encode(),
        )
    assert deployment.get("/version").status == 200
    lines = deployment.wait_for_log("/version")[log_length:].splitlines()
    assert len(lines) <= len(FLOODS) + 1
    assert all(line.isascii() and line.isprintable() and len(line) < MAX_LINE_BYTES for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)


LONG = 64 * 1024
MAX_PARSING_S = 0.01
TEXTS = {
    "letters": "a" * LONG,
    "dashes": "-" * LONG,
    "a and dashes": "a" + "-" * LONG,
    "many components": "a/" * (LONG // 2),
    "underscores": "a__" * (LONG // 3),
    "dots": "a." * (LONG // 2) + "!",
    "digits": "bytes=" + "9" * LONG,
    "ranges": "bytes=" + "0-0," * (LONG // 4),
    "spaces": "bytes=" + " " * LONG + "0-0",
    "quotes": 'Bearer realm="' + '\\"' * (LONG // 2),
    "parameters": "Bearer " + "a=b," * (LONG // 4),
    "open quotes": 'a="' * (LONG // 3),
    "commas": "," * LONG,
    "schemes": "a " * (LONG // 2),
    "equals": "Basic " + "=" * LONG,
    "URL": "https://" + "a." * (LONG // 2),
    "brackets": "https://" + "[" * LONG,
    "links": '<a>; rel="next"' + "," * LONG,
    "open links": "<" * LONG,
}
REGISTRY = Origin("https", "registry.test", 443)
PARSERS: dict[str, Callable[[str], object]] = {
    "name": Name.parse,
    "tag": Tag.parse,
    "digest": Digest.parse,
    "reference": parse_reference,
    "ranges": lambda text: parse_ranges(text, 2**40),
    "challenges": lambda text: parse_challenges([text]),
    "realm": lambda text: is_realm_trusted(text, REGISTRY),
    "place": parse_http_url,
    "link": lambda text: find_next([text]),
    "content range": parse_content_range,
    "retry after": lambda text: parse_retry_after(text, 0.0),
}


@pytest.mark.parametrize("parser", PARSERS)
def test_d9_hostile_texts_cost_little_time(parser: str) -> None:
    """64 KiB of any text are parsed, or rejected, within ten milliseconds of CPU time."""
    slow = {}
    for name, text in TEXTS.items():
        fastest = inf
        for _ in range(20):  # caches may be cold, and what a virtual machine waits for its processor may count
            began = time.thread_time()
            with suppress(RegistryError, InvalidUrl, ValueError):
                PARSERS[parser](text)
            fastest = min(fastest, time.thread_time() - began)
            if fastest <= MAX_PARSING_S:
                break
        else:
            slow[name] = fastest
    assert slow == {}


def _frames(count: int, kind: int) -> bytes:
    """Frames of HTTP/2: RST_STREAM (3) or CONTINUATION (9), four bytes each."""
    return b"".join(b"\0\0\4" + bytes([kind, 0]) + (2 * n + 1).to_bytes(4, "big") + b"\0\0\0\0" for n in range(count))


@pytest.mark.parametrize("kind", [3, 9], ids=["rapid reset", "CONTINUATION"])
def test_d10_there_is_no_http_2(deployment: WatchedDeployment, kind: int) -> None:
    """The preface of HTTP/2 ends the connection without a response; floods of its frames are never read."""
    settings = b"\0\0\0\4\0\0\0\0\0"
    result = send_bytes(deployment.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + _frames(10_000, kind))
    assert (result.received, result.is_closed) == (b"", True)
    assert deployment.get("/v2/").status == 200

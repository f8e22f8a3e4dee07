"""Random HTTP: mutations of the smuggling corpus, and random requests for all endpoints, to a real server."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.budget import runs
from tests.security.corpus import CORPUS, INNER, LAST
from tests.security.raw_connection import count_requests, send_bytes
from tests.support.deployment import Deployment
from tests.support.http_client import send_request

HEX = "0123456789abcdef" * 4
PIECES = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\0",
        b"\x0b",
        b":",
        b",",
        b";",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Content-Length: 0\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Host: h\r\n",
        b"Host:\r\n",
    ),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n", b"Upgrade: h2c\r\n"),
    *(
        b"HTTP/1.0",
        b"HTTP/1.1",
        b"HTTP/2.0",
        b"GET ",
        b"POST ",
        b"HEAD ",
        b"/v2/",
        b"%2e",
        b"#",
        b"?",
        b"\xff",
        INNER,
        LAST,
    ),
]


# Without those with a host in the target: Granian takes it for a missing Host header, h11 does not.
BEGINNINGS = [each.data[:3000] for each in CORPUS if b"://" not in each.data]


@pytest.fixture(scope="module")
def deployment(module_deployment: Deployment) -> Deployment:
    """A deployment with one worker."""
    return module_deployment


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """One or two inputs of the corpus with parts inserted, removed, or replaced by others."""
    data = b"".join(draw(st.lists(st.sampled_from(BEGINNINGS), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        gone = draw(st.integers(0, 20) | st.just(0))
        data = data[:at] + draw(st.sampled_from(PIECES) | st.binary(max_size=2)) + data[at + gone :]
    return data + LAST


@settings(max_examples=runs(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=mutated())
def test_f8_raw_http(deployment: Deployment, data: bytes) -> None:
    """Never more responses than a strict parser finds requests, never 5xx, and the next connection is served."""
    result = send_bytes(deployment.address, data, limit_s=0.3)
    assert len(result.statuses) <= count_requests(data)
    assert all(status < 500 or status == 501 for status in result.statuses)
    assert send_bytes(deployment.address, LAST).statuses == (200,)


SEGMENTS = [
    *(
        "v2",
        "",
        "up.test",
        "docker.io",
        "library",
        "app",
        "manifests",
        "blobs",
        "tags",
        "list",
        "referrers",
        "_catalog",
    ),
    *(
        "latest",
        "v1",
        f"sha256:{HEX}",
        "sha256:x",
        "uploads",
        ".",
        "..",
        "A",
        "a" * 200,
        "metrics",
        "healthz",
        "version",
    ),
]
QUERIES = [
    "",
    "?ns=docker.io",
    "?ns=evil.test",
    "?n=1",
    "?n=x",
    "?n=1&last=a",
    "?artifactType=a/b",
    "?n=0",
    "?" + "a=1&" * 40,
]
HEADERS = [
    *(("Range", "bytes=0-1"), ("Range", "bytes=9-1"), ("If-None-Match", "*"), ("Accept", "text/html"), ("Accept", "")),
    *(("If-Range", "x"), ("Range", "bytes=-1,0-0"), ("Accept-Encoding", "gzip"), ("X-Forwarded-For", "1.2.3.4")),
]
STATUSES = {200, 206, 304, 400, 404, 405, 414, 416, 431}
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"]
known = st.sampled_from(
    [
        "/v2/",
        "/v2/up.test/app/manifests/v1",
        "/v2/up.test/app/tags/list",
        "/version",
        "/healthz",
        "/docker.io/v2/app/manifests/v1",
    ]
)
made_up = st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=7).map(lambda parts: "/" + "/".join(parts))


@settings(max_examples=runs(200), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=known | made_up,
    query=st.sampled_from(QUERIES),
    headers=st.dictionaries(st.sampled_from([name for name, _ in HEADERS]), st.sampled_from([v for _, v in HEADERS])),
    method=st.sampled_from(METHODS) | st.just("GET"),
)
def test_f11_endpoints(deployment: Deployment, path: str, query: str, headers: dict[str, str], method: str) -> None:
    """Every response has a documented status and the form that belongs to it; HEAD is GET without a body."""
    deployment.fake_registry.add_image("app", "v1")
    if headers.get("Range") == "":
        headers = {}
    response = send_request(deployment.address, path + query, headers, method=method)
    assert response.status in STATUSES, response
    assert response.header("X-Content-Type-Options") == "nosniff"
    if response.status >= 400 and method != "HEAD":
        (error,) = json.loads(response.body)["errors"]
        assert set(error) == {"code", "message"}
        assert response.header("Content-Type") == "application/json"
        assert len(response.body) <= 4096
    if method not in ("GET", "HEAD"):
        assert response.status in (400, 405, 414)
    if method == "GET":
        head = send_request(deployment.address, path + query, headers, method="HEAD")
        assert (head.status, head.body) in [
            (response.status, b""),
            *([(200, b"")] if response.status in (206, 416) else []),
        ]
        assert head.header("Content-Type") == response.header("Content-Type") or response.status in (206, 416)

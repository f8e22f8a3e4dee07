"""Random responses of the upstream, and of the bucket."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dockyard.config.settings import StorageSettings
from dockyard.config.types import Secret
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3.blob_stream import S3BlobStream
from dockyard.s3.errors import S3Error
from dockyard.s3.store import S3Store
from tests.fuzz.budget import runs
from tests.s3.store.proxy import Respond, S3Proxy
from tests.s3.store.store_adapters import reader
from tests.support.bodies import Bytes
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, open_deployment, upstream
from tests.support.fake_registry import OCI_INDEX, OCI_MANIFEST, FakeRegistry
from tests.support.raw_http import Request, ScriptedResponse

PREFIXES = 300  # an open circuit breaker then affects its own upstream only
KINDS = ("manifests/v1", "manifests/{manifest}", "blobs/{blob}", "tags/list", "referrers/{manifest}")
STATUSES = {200, 403, 404, 429, 502, 503, 504}
BLOB = b"the bytes of a small layer" * 200
MIB = 2**20
SIZES = {"small": BLOB, "large": hashlib.sha256(b"seed").digest() * (2 * MIB // 32)}

values = st.sampled_from(
    [
        *("", "0", "-1", "5", "5, 5", "99999999999999999999", "gzip", "identity", "chunked", "bytes", "*", "abc"),
        *("text/html", "application/json", OCI_MANIFEST, OCI_INDEX, "bytes 0-4/5", "bytes 5-4/9", "bytes */5"),
        *('Bearer realm="http://127.0.0.1:1/token"', 'Basic realm="x"', "Bearer", f"sha256:{'a' * 64}", "a" * 9000),
        *("/v2/app/blobs/x", "http://169.254.169.254/", "//", "file:///etc/passwd", "/", '</v2/x>; rel="next"', "1"),
    ]
)
names = st.sampled_from(
    [
        *(
            "Content-Type",
            "Content-Length",
            "Transfer-Encoding",
            "Content-Encoding",
            "Content-Range",
            "Location",
            "ETag",
        ),
        *("Docker-Content-Digest", "WWW-Authenticate", "Retry-After", "Link", "Connection", "Set-Cookie", "Date"),
    ]
)
bodies = st.sampled_from(
    [
        *(
            b"",
            b"{}",
            b"[]",
            b"null",
            b"<html>",
            b'{"errors":[]}',
            b'{"token":"x"}',
            b'{"tags":null}',
            b"\x1f\x8b\x08",
            BLOB,
        ),
        *(
            b'{"manifests":[]}',
            b'{"name":"app","tags":["a","../b"]}',
            b"[" * 5000,
            b"a" * (2 * MIB),
            BLOB[:-1],
            BLOB + b"x",
        ),
    ]
)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """The parts of a response that are changed."""
    parts: dict[str, Any] = {}
    if draw(st.booleans()):
        parts["status"] = draw(
            st.sampled_from(
                [100, 101, 200, 201, 204, 206, 301, 304, 307, 400, 401, 403, 404, 416, 429, 500, 503, 599, 999]
            )
        )
    if draw(st.booleans()):
        body = Bytes(draw(bodies | st.binary(max_size=50)))
        parts |= {"body": body, "start": 0, "stop": body.size}
    if draw(st.booleans()):
        parts["framing"] = draw(st.sampled_from(["length", "chunked", "chunked-unended", "close"]))
    if draw(st.booleans()):
        parts["length"] = draw(st.sampled_from([0, 1, 100, 10**7, 10**18]))
    if draw(st.booleans()):
        parts |= {"cut": draw(st.integers(0, 6000)), "cut_how": draw(st.sampled_from(["fin", "rst"]))}
    return parts


def _spoil(parts: dict[str, Any], headers: dict[str, str]) -> Any:
    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        for name, value in headers.items():
            response = response.with_header(name, value)
        return attrs.evolve(response, **parts)

    return change


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment with many prefixes for one upstream and short timeouts; its stored files are checked at the end."""
    with FakeRegistry() as fake_registry:
        entries = [upstream(f"up{number}.test", fake_registry.url) for number in range(PREFIXES)]
        limits = {"check_timeout": "1s", "stall_timeout": "1s"}
        with open_deployment(
            fake_registry, tmp_path_factory.mktemp("deployment"), upstreams=entries, upstream=limits
        ) as deployment:
            yield deployment
            assert _wrong_files(deployment) == []


def _wrong_files(deployment: Deployment) -> list[str]:
    """The stored files whose content does not match their names."""
    cache = [
        path for path in deployment.dockyard.storage.glob("*/[bm]*s/**/*") if path.is_file() and "run" not in path.parts
    ]
    whole = [path for path in cache if "partial" not in path.parts and len(path.name) == 64]
    return [str(path) for path in whole if hashlib.sha256(path.read_bytes()).hexdigest() != path.name]


turns = iter(range(10**9))


@settings(max_examples=runs(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=changes(),
    headers=st.dictionaries(names, values, max_size=3),
    times=st.sampled_from([1, 2, None]),
    size=st.sampled_from(sorted(SIZES)),
)
def test_f9_random_upstream_responses(
    deployment: Deployment, parts: dict[str, Any], headers: dict[str, str], times: int | None, size: str
) -> None:
    """A complete response is right, an error is one of Dockyard's and short, and no request takes long."""
    turn = next(turns)
    repo = f"app-{turn}"
    blob = SIZES[size] + str(turn).encode()
    image = deployment.fake_registry.add_image(repo, "v1", [blob])
    content = {image.digest: image.body, image.layers[0]: blob}
    rule = deployment.fake_registry.on(None, _spoil(parts, headers), repo=repo, times=times)
    for kind in KINDS:
        path = kind.format(manifest=image.digest, blob=image.layers[0])
        response = deployment.get(f"/v2/up{turn % PREFIXES}.test/{repo}/{path}")
        assert is_within(response.took_s, 13), path
        assert response.status in STATUSES, (path, response)
        if response.status != 200:
            assert response.error
            deployment.assert_no_leak(response)
        elif response.is_complete and path.startswith(("manifests", "blobs")):
            digest = response.header("Docker-Content-Digest") or ""
            assert f"sha256:{hashlib.sha256(response.body).hexdigest()}" == digest
            assert "/v1" in path or response.body == content[digest]
        elif response.is_complete:
            json.loads(response.body)
    deployment.fake_registry.remove_rules(rule)


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3Proxy]:
    """An S3 endpoint whose responses the test sets."""
    with closing(S3Proxy(0)) as bucket:
        bucket.rule = lambda request: Respond(404)
        yield bucket


@pytest.fixture(scope="module")
def stored_deployment(bucket: S3Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A deployment over that bucket."""
    storage = {"endpoint": bucket.host, "bucket": "anything", "access_key": "a", "secret_key": "b", "use_ssl": False}
    with (
        FakeRegistry() as fake_registry,
        open_deployment(fake_registry, tmp_path_factory.mktemp("stored"), storage=storage) as deployment,
    ):
        yield deployment
        assert _wrong_files(deployment) == []


XML = b"<?xml version='1.0'?><Error><Code>%s</Code></Error>"
bucket_responses = st.sampled_from(
    [
        *(
            b"",
            b"{}",
            BLOB,
            BLOB[:-1],
            b"sha256:" + b"a" * 64,
            b"a" * (2 * MIB),
            b"<" * 9000,
            b"\0" * 100,
            b'{"manifests":[]}',
        ),
        *(
            XML % code
            for code in (b"NoSuchKey", b"SlowDown", b"AccessDenied", b"NoSuchBucket", b"PermanentRedirect", b"&x;")
        ),
    ]
)
s3_headers = st.dictionaries(
    st.sampled_from(
        [
            "ETag",
            "Last-Modified",
            "Content-Range",
            "Content-Encoding",
            "x-amz-request-id",
            "Location",
            "Date",
            "Content-Type",
        ]
    ),
    st.sampled_from(
        ['"a"', "", "gzip", "Thu, 01 Jan 1970 00:00:00 GMT", "bytes 0-4/5", "http://127.0.0.1:1/", "99", "text/html"]
    ),
    max_size=3,
)


s3_responses = st.builds(
    lambda status, body, headers: Respond(
        status, body, "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    ),
    st.sampled_from([200, 204, 206, 301, 307, 400, 403, 404, 412, 416, 500, 503]),
    bucket_responses,
    s3_headers,
)


@settings(max_examples=runs(60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bucket_response=s3_responses)
def test_f10_random_bucket_responses(stored_deployment: Deployment, bucket: S3Proxy, bucket_response: Respond) -> None:
    """Whatever the bucket answers, a small image is pulled complete and right, at once."""
    turn = next(turns)
    repo, blob = f"stored-{turn}", BLOB + str(turn).encode()
    image = stored_deployment.fake_registry.add_image(repo, "v1", [blob])
    bucket.rule = lambda request: bucket_response
    before = len(bucket.requests)
    content = {f"manifests/{image.digest}": image.body, "manifests/v1": image.body, f"blobs/{image.layers[0]}": blob}
    for path, body in content.items():
        response = stored_deployment.get(f"/v2/up.test/{repo}/{path}")
        if response.status in (200, 206) and len(response.body) > MIB and not response.is_complete:
            response = stored_deployment.get(
                f"/v2/up.test/{repo}/{path}"
            )  # its first part was sent before it was known to be wrong
        assert (response.status, response.body) == (200, body), path
        assert is_within(response.took_s, 13)
    if len(bucket.requests) == before:
        stored_deployment.wait_for_log("reading without it")


DIGEST, NAME, TAG = Digest.of(BLOB), Name("up.test/app"), Tag("v1")
BUCKET_OPERATIONS: dict[str, Callable[[S3Store], object]] = {
    "open_blob": lambda tier: _read(tier.open_blob(DIGEST)),
    "open_blob from 5": lambda tier: _read(tier.open_blob(DIGEST, 5)),
    "stat_blob": lambda tier: tier.stat_blob(DIGEST),
    "read_manifest": lambda tier: tier.read_manifest(NAME, DIGEST),
    "read_pointer": lambda tier: tier.read_pointer(NAME, TAG),
    "write_manifest": lambda tier: tier.write_manifest(NAME, DIGEST, BLOB, OCI_MANIFEST),
    "write_pointer": lambda tier: tier.write_pointer(NAME, TAG, DIGEST),
    "publish_blob": lambda tier: tier.publish_blob(DIGEST, len(BLOB), reader([BLOB])),
    "check": lambda tier: tier.check(),
    "abort_stale_uploads": lambda tier: tier.abort_stale_uploads(0.0),
}


def _read(body: S3BlobStream | None) -> bytes | None:
    with closing(body) if body else nullcontext():
        return body and b"".join(iter(lambda: body.read(64 * 1024), b""))


@pytest.mark.parametrize("operation", BUCKET_OPERATIONS)
@settings(max_examples=runs(20), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bucket_response=s3_responses)
def test_f10_the_store_accepts_any_response(bucket: S3Proxy, operation: str, bucket_response: Respond) -> None:
    """Each bucket operation ends with a result or S3Error, whatever the bucket answers."""
    kept = StorageSettings(
        endpoint=bucket.host, bucket="anything", access_key="a", secret_key=Secret("b"), use_ssl=False
    )
    bucket.rule = lambda request: bucket_response
    before = len(bucket.requests)
    tier = S3Store(kept, {})
    try:
        with suppress(S3Error):
            BUCKET_OPERATIONS[operation](tier)
    finally:
        tier.close()
    assert len(bucket.requests) > before

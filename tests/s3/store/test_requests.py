"""The requests of the S3 store: their number for each operation, and their headers."""

import base64
import hashlib
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from urllib3 import HTTPConnectionPool

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3.errors import S3Error
from dockyard.s3.store import S3Store
from dockyard.storage import keys
from tests.s3.store.proxy import Forward, Request, Respond, S3Proxy, s3_error
from tests.s3.store.servers import MIB, Server
from tests.s3.store.store_adapters import MANIFEST_TYPE, pieces, reader
from tests.support.busy_machine import EVENT_TIMEOUT_S

NAME = Name.parse("docker.io/library/app")
TAG = Tag.parse("latest")
BODY = bytes(range(256)) * 4096
DIGEST = Digest.of(BODY)
MANIFEST = b'{"schemaVersion":2}'


def publish(s3: S3Store, body: bytes = BODY) -> Digest:
    """Publish a blob."""
    digest = Digest.of(body)
    s3.publish_blob(digest, len(body), reader(pieces(body)))
    return digest


def test_a_cold_blob_takes_one_get_and_one_put(s3: S3Store, proxy: S3Proxy) -> None:
    """A GET that finds nothing, and a PUT, without a HEAD before or after them."""
    assert s3.open_blob(DIGEST) is None
    publish(s3)
    assert proxy.counted() == {"GET": 1, "PUT": 1}


OPERATIONS: list[tuple[str, Callable[[S3Store], object], dict[str, int]]] = [
    ("open_blob", lambda s3: s3.open_blob(DIGEST), {"GET": 1}),
    ("stat_blob", lambda s3: s3.stat_blob(DIGEST), {"HEAD": 1}),
    ("read_manifest", lambda s3: s3.read_manifest(NAME, Digest.of(MANIFEST)), {"GET": 1}),
    ("read_pointer", lambda s3: s3.read_pointer(NAME, TAG), {"GET": 1}),
    ("has_link", lambda s3: s3.has_link(NAME, DIGEST), {"HEAD": 1}),
    ("write_link", lambda s3: s3.write_link(NAME, DIGEST) or True, {"PUT": 1}),
    ("presign_blob", lambda s3: s3.presign_blob(DIGEST, 60), {}),
    ("check", lambda s3: s3.check(), {"GET": 1, "PUT": 1}),
    ("find_old_versions", lambda s3: s3.find_old_versions(), {"GET": 1}),
    ("abort_stale_uploads", lambda s3: s3.abort_stale_uploads(0), {"GET uploads": 1}),
]


@pytest.mark.parametrize(("operation", "expected"), [row[1:] for row in OPERATIONS], ids=[row[0] for row in OPERATIONS])
def test_operations_take_the_documented_requests(
    s3: S3Store, direct_s3: S3Store, proxy: S3Proxy, operation: Callable[[S3Store], object], expected: dict[str, int]
) -> None:
    """The table in the docstring of `dockyard.s3.store` is true."""
    publish(direct_s3)
    direct_s3.write_manifest(NAME, Digest.of(MANIFEST), MANIFEST, MANIFEST_TYPE)
    direct_s3.write_pointer(NAME, TAG, Digest.of(MANIFEST))
    direct_s3.write_link(NAME, DIGEST)
    assert operation(s3) is not None
    assert proxy.counted() == expected
    assert sum(s3.requests.values()) == sum(expected.values())


def test_a_large_blob_is_sent_in_equal_parts(s3: S3Store, proxy: S3Proxy) -> None:
    """All parts but the last have the same size, as Cloudflare R2 requires."""
    body = bytes(12 * MIB)
    publish(s3, body)
    sizes = [request.headers["content-length"] for request in proxy.requests if "partNumber" in request.target]
    assert sizes == [str(5 * MIB), str(5 * MIB), str(2 * MIB)]
    assert proxy.counted() == {"POST uploads": 1, "PUT uploadId": 3, "POST uploadId": 1, "HEAD": 1}


def test_the_signed_hash_is_the_digest(s3: S3Store, proxy: S3Proxy) -> None:
    """So the service rejects other bytes."""
    publish(s3)
    assert proxy.requests[0].headers["x-amz-content-sha256"] == DIGEST.encoded
    assert proxy.requests[0].headers["content-length"] == str(len(BODY))


def test_content_types_are_set(s3: S3Store, direct_s3: S3Store) -> None:
    """Blobs, manifests and pointers have their media types."""
    publish(s3)
    s3.write_manifest(NAME, Digest.of(MANIFEST), MANIFEST, MANIFEST_TYPE)
    s3.write_pointer(NAME, TAG, DIGEST)
    prefix = direct_s3._prefix
    found = {
        key: head.headers["Content-Type"]
        for key in (
            keys.blob_key(prefix, DIGEST),
            keys.manifest_key(prefix, NAME, Digest.of(MANIFEST)),
            keys.tag_key(prefix, NAME, TAG),
        )
        if (head := direct_s3._head(key))
    }
    assert list(found.values()) == ["application/octet-stream", MANIFEST_TYPE, "text/plain"]


def test_a_blob_is_resumed_from_the_same_object_only(s3: S3Store, proxy: S3Proxy) -> None:
    """A Range request has an If-Match header; an object with another ETag is None."""
    publish(s3)
    body = s3.open_blob(DIGEST)
    assert body is not None
    body.close()
    resumed = s3.open_blob(DIGEST, start=10, etag=body.etag)
    assert resumed is not None
    resumed.close()
    assert (resumed.start, resumed.size) == (10, len(BODY))
    assert proxy.requests[-1].headers["range"] == "bytes=10-"
    assert proxy.requests[-1].headers["if-match"] == body.etag
    assert s3.open_blob(DIGEST, start=10, etag='"another"') is None


def test_a_start_beyond_the_end_is_none(s3: S3Store) -> None:
    """The object is another one than when the download started."""
    publish(s3)
    assert s3.open_blob(DIGEST, start=len(BODY)) is None


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        (0, 1, BODY[:1]),
        (0, len(BODY), BODY),
        (1000, 70_000, BODY[1000:70_000]),
        (len(BODY) - 50, len(BODY), BODY[-50:]),
        (len(BODY) - 50, len(BODY) + 1000, BODY[-50:]),
    ],
)
def test_a_range_is_one_get(
    s3: S3Store, direct_s3: S3Store, proxy: S3Proxy, start: int, stop: int, expected: bytes
) -> None:
    """With exactly its bytes, and the size of the whole blob."""
    publish(direct_s3)
    body = s3.open_blob(DIGEST, start, stop=stop)
    assert body is not None
    assert (body.start, body.size) == (start, len(BODY))
    assert b"".join(iter(lambda: body.read(10_000), b"")) == expected
    body.close()
    (request,) = proxy.requests
    assert request.headers["range"] == f"bytes={start}-{stop - 1}"
    assert s3.open_blob(DIGEST, start, '"another"', stop) is None


def test_ranges_use_one_connection_one_after_the_other(direct_s3: S3Store, server: Server) -> None:
    """Their ends are known (versitygw itself closes some connections)."""
    publish(direct_s3)
    pool = direct_s3._client._pools.connection_from_url(f"http://{server.host}")
    assert isinstance(pool, HTTPConnectionPool)
    before = pool.num_connections
    for start in range(0, 1000, 100):
        body = direct_s3.open_blob(DIGEST, start, stop=start + 100)
        assert body is not None
        assert b"".join(iter(lambda body=body: body.read(1000), b"")) == BODY[start : start + 100]
        body.close()
    assert pool.num_connections == before or server.name == "versitygw"


@pytest.mark.parametrize("server", ["minio"], indirect=True)  # the proxy responds in its place
def test_a_service_without_ranges_has_none_of_a_blob(s3: S3Store, proxy: S3Proxy) -> None:
    """Nothing is read of the whole body, and the bucket is not taken for broken."""
    proxy.rule = lambda _: Respond(200, BODY)
    assert s3.open_blob(DIGEST, 100, stop=200) is None
    body = s3.open_blob(DIGEST, 100)
    assert body is not None
    assert body.start == 0
    body.close()


@pytest.mark.parametrize("server", ["minio"], indirect=True)  # the proxy responds in its place
@pytest.mark.parametrize(
    "content_range",
    ["bytes 100-200/1000", "bytes 99-199/1000", "bytes 100-198/1000", "bytes 100-199/*", "items 100-199/1000", ""],
)
def test_another_range_of_the_bucket_is_an_error(s3: S3Store, proxy: S3Proxy, content_range: str) -> None:
    """Its bytes would be those of another place."""
    proxy.rule = lambda _: Respond(206, bytes(100), f"Content-Range: {content_range}\r\n")
    with pytest.raises(S3Error, match="unexpected response"):
        s3.open_blob(DIGEST, 100, stop=200)


@pytest.mark.parametrize("server", ["minio"], indirect=True)  # the proxy responds in its place
@pytest.mark.parametrize("sent", [99, 101])
def test_a_range_of_another_length_is_an_error(s3: S3Store, proxy: S3Proxy, sent: int) -> None:
    """The headers contradict each other."""
    proxy.rule = lambda _: Respond(206, bytes(sent), "Content-Range: bytes 100-199/1000\r\n")
    with pytest.raises(S3Error, match="unexpected response"):
        s3.open_blob(DIGEST, 100, stop=200)


def test_a_blob_has_its_size_and_age(s3: S3Store) -> None:
    """The age is by the clock of the service."""
    publish(s3)
    body, stat = s3.open_blob(DIGEST), s3.stat_blob(DIGEST)
    assert body is not None
    assert stat is not None
    body.close()
    assert body.size == stat.size == len(BODY)
    assert 0 <= body.age_s < 60
    assert 0 <= stat.age_s < 60
    assert abs(body.last_modified - time.time()) < 60


def test_a_presigned_url_needs_no_credentials(s3: S3Store) -> None:
    """A client that is redirected there gets the blob, or a range of it."""
    publish(s3)
    request = urllib.request.Request(s3.presign_blob(DIGEST, 60), headers={"Range": "bytes=256-511"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=EVENT_TIMEOUT_S) as response:  # noqa: S310
        assert (response.status, response.read()) == (206, BODY[256:512])


def test_requests_are_sent_from_many_threads(s3: S3Store) -> None:
    """All threads of a worker use one store."""

    def write_and_read(number: int) -> bool:
        body = json.dumps({"schemaVersion": 2, "number": number}).encode()
        s3.write_manifest(NAME, Digest.of(body), body, MANIFEST_TYPE)
        found = s3.read_manifest(NAME, Digest.of(body))
        return found is not None and found.body == body

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(write_and_read, range(64)))
    assert s3.requests == Counter({"put manifest": 64, "get manifest": 64})


def test_connections_are_reused(direct_s3: S3Store, server: Server) -> None:
    """Requests without an object or with an error do not close the connection (versitygw itself closes some)."""
    pool = direct_s3._client._pools.connection_from_url(f"http://{server.host}")
    for _ in range(3):
        assert direct_s3.open_blob(DIGEST) is None
        assert direct_s3.stat_blob(DIGEST) is None
        assert direct_s3.read_pointer(NAME, TAG) is None
        publish(direct_s3)
        assert direct_s3.open_blob(DIGEST, start=len(BODY)) is None
        direct_s3._client.request("delete", "DELETE", keys.blob_key(direct_s3._prefix, DIGEST))
    assert isinstance(pool, HTTPConnectionPool)
    assert pool.num_connections == 1 or server.name == "versitygw"


def checksum(body: bytes) -> str:
    """Return the value of the header with the checksum of a body."""
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def uploads(proxy: S3Proxy) -> list[Request]:
    """Return the requests whose body becomes an object or a part."""
    return [request for request in proxy.requests if request.operation in {"PUT", "PUT uploadId"}]


def test_each_upload_has_the_checksum_of_its_body(s3: S3Store, proxy: S3Proxy) -> None:
    """Buckets with Object Lock accept no others: the check, blobs, an empty one, parts, manifests and pointers."""
    large = bytes(7 * MIB)
    s3.check()
    publish(s3)
    publish(s3, b"")
    s3.write_manifest(NAME, Digest.of(MANIFEST), MANIFEST, MANIFEST_TYPE)
    s3.write_pointer(NAME, TAG, DIGEST)
    publish(s3, large)
    first, *others = uploads(proxy)
    assert first.headers["x-amz-checksum-sha256"] != checksum(b"dockyard"), "the check sends a wrong one on purpose"
    bodies = [BODY, b"", MANIFEST, str(DIGEST).encode(), large[: 5 * MIB], large[5 * MIB :]]
    assert [request.headers["x-amz-checksum-sha256"] for request in others] == [checksum(body) for body in bodies]
    assert [request.headers["x-amz-content-sha256"] for request in others] == [
        hashlib.sha256(body).hexdigest() for body in bodies
    ]
    announced = [
        request.headers.get("x-amz-checksum-algorithm") for request in proxy.requests if request.method == "POST"
    ]
    assert announced == ["SHA256", None]


def test_copies_and_reads_have_no_checksum(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy) -> None:
    """They have no body."""
    publish(direct_s3)
    assert s3.touch(keys.blob_key(s3._prefix, DIGEST))
    assert s3.stat_blob(DIGEST) is not None
    assert not any("x-amz-checksum-sha256" in request.headers for request in proxy.requests)


@pytest.mark.parametrize("server", ["minio"], indirect=True)
@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (501, "NotImplemented", "Header 'x-amz-checksum-sha256' is not implemented"),
        (400, "InvalidArgument", "Unsupported header 'x-amz-checksum-algorithm' received for this API call."),
    ],
)
def test_a_service_that_rejects_checksums_gets_none(
    s3: S3Store, direct_s3: S3Store, proxy: S3Proxy, status: int, code: str, message: str
) -> None:
    """Some compatible services know no checksum headers: what fails for that reason is sent again without."""

    def rule(request: Request) -> Forward | Respond:
        is_rejected = any(name.startswith("x-amz-checksum-") for name in request.headers)
        return s3_error(status, code, f"<Message>{message}</Message>") if is_rejected else Forward()

    proxy.rule = rule
    s3.write_pointer(NAME, TAG, DIGEST)
    assert [("x-amz-checksum-sha256" in request.headers) for request in uploads(proxy)] == [True, False]
    publish(s3)
    large = bytes(7 * MIB)
    publish(s3, large)
    assert direct_s3.stat_blob(DIGEST) is not None
    assert direct_s3.stat_blob(Digest.of(large)) is not None

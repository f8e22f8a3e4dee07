"""What the S3 store sends: how many requests for what, and with which headers."""

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from urllib3 import HTTPConnectionPool

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3 import S3Store
from dockyard.storage import keys
from tests.s3.store.proxy import S3Proxy
from tests.s3.store.servers import MIB, Server
from tests.s3.store.store_adapters import MANIFEST_TYPE, pieces

NAME = Name.parse("docker.io/library/app")
TAG = Tag.parse("latest")
BODY = bytes(range(256)) * 4096
DIGEST = Digest.of(BODY)
MANIFEST = b'{"schemaVersion":2}'


def publish(tier: S3Store, body: bytes = BODY) -> Digest:
    """Publish a blob."""
    digest = Digest.of(body)
    tier.publish_blob(digest, len(body), iter(pieces(body)))
    return digest


def test_a_cold_blob_is_one_get_and_one_put(tier: S3Store, proxy: S3Proxy) -> None:
    """A GET that finds nothing, and a PUT: nothing is asked before or looked at after."""
    assert tier.open_blob(DIGEST) is None
    publish(tier)
    assert proxy.counted() == {"GET": 1, "PUT": 1}


OPERATIONS: list[tuple[str, Callable[[S3Store], object], dict[str, int]]] = [
    ("open_blob", lambda tier: tier.open_blob(DIGEST), {"GET": 1}),
    ("stat_blob", lambda tier: tier.stat_blob(DIGEST), {"HEAD": 1}),
    ("read_manifest", lambda tier: tier.read_manifest(NAME, Digest.of(MANIFEST)), {"GET": 1}),
    ("read_pointer", lambda tier: tier.read_pointer(NAME, TAG), {"GET": 1}),
    ("presign_blob", lambda tier: tier.presign_blob(DIGEST, 60), {}),
    ("check", lambda tier: tier.check(), {"GET": 1, "PUT": 1}),
    ("abort_stale_uploads", lambda tier: tier.abort_stale_uploads(0), {"GET uploads": 1}),
]


@pytest.mark.parametrize(("operation", "expected"), [row[1:] for row in OPERATIONS], ids=[row[0] for row in OPERATIONS])
def test_what_is_there_costs_so_many_requests(
    tier: S3Store, direct: S3Store, proxy: S3Proxy, operation: Callable[[S3Store], object], expected: dict[str, int]
) -> None:
    """The table in the module's docstring holds."""
    publish(direct)
    direct.write_manifest(NAME, Digest.of(MANIFEST), MANIFEST, MANIFEST_TYPE)
    direct.write_pointer(NAME, TAG, Digest.of(MANIFEST))
    assert operation(tier) is not None
    assert proxy.counted() == expected
    assert sum(tier.requests.values()) == sum(expected.values())


def test_a_large_blob_is_sent_in_equal_parts(tier: S3Store, proxy: S3Proxy) -> None:
    """All parts but the last have one size (R2 wants that); begin, complete and one look come beside them."""
    body = bytes(12 * MIB)
    publish(tier, body)
    sizes = [request.headers["content-length"] for request in proxy.requests if "partNumber" in request.target]
    assert sizes == [str(5 * MIB), str(5 * MIB), str(2 * MIB)]
    assert proxy.counted() == {"POST uploads": 1, "PUT uploadId": 3, "POST uploadId": 1, "HEAD": 1}


def test_the_hash_that_is_signed_is_the_digest(tier: S3Store, proxy: S3Proxy) -> None:
    """So the store itself refuses other bytes."""
    publish(tier)
    assert proxy.requests[0].headers["x-amz-content-sha256"] == DIGEST.encoded
    assert proxy.requests[0].headers["content-length"] == str(len(BODY))


def test_content_types_are_set(tier: S3Store, direct: S3Store) -> None:
    """Whoever looks into the bucket sees what is what."""
    publish(tier)
    tier.write_manifest(NAME, Digest.of(MANIFEST), MANIFEST, MANIFEST_TYPE)
    tier.write_pointer(NAME, TAG, DIGEST)
    prefix = direct._prefix
    found = {
        key: head.headers["Content-Type"]
        for key in (
            keys.blob_key(prefix, DIGEST),
            keys.manifest_key(prefix, NAME, Digest.of(MANIFEST)),
            keys.tag_key(prefix, NAME, TAG),
        )
        if (head := direct._head(key))
    }
    assert list(found.values()) == ["application/octet-stream", MANIFEST_TYPE, "text/plain"]


def test_a_resumed_blob_is_the_same_object_or_nothing(tier: S3Store, proxy: S3Proxy) -> None:
    """Range and If-Match go together; another object under the key is a miss."""
    publish(tier)
    body = tier.open_blob(DIGEST)
    assert body is not None
    body.close()
    resumed = tier.open_blob(DIGEST, start=10, etag=body.etag)
    assert resumed is not None
    resumed.close()
    assert (resumed.start, resumed.size) == (10, len(BODY))
    assert proxy.requests[-1].headers["range"] == "bytes=10-"
    assert proxy.requests[-1].headers["if-match"] == body.etag
    assert tier.open_blob(DIGEST, start=10, etag='"another"') is None


def test_a_start_behind_the_end_is_a_miss(tier: S3Store) -> None:
    """The object is not what it was when the fill began."""
    publish(tier)
    assert tier.open_blob(DIGEST, start=len(BODY)) is None


def test_a_blob_tells_its_size_and_age(tier: S3Store) -> None:
    """By the store's own clock: ours may be wrong."""
    publish(tier)
    body, stat = tier.open_blob(DIGEST), tier.stat_blob(DIGEST)
    assert body is not None
    assert stat is not None
    body.close()
    assert body.size == stat.size == len(BODY)
    assert 0 <= body.age_s < 60
    assert 0 <= stat.age_s < 60
    assert abs(body.last_modified - time.time()) < 60


def test_a_presigned_url_needs_no_credentials(tier: S3Store) -> None:
    """A client that is sent there gets the blob, whole or a range of it."""
    publish(tier)
    request = urllib.request.Request(tier.presign_blob(DIGEST, 60), headers={"Range": "bytes=256-511"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        assert (answer.status, answer.read()) == (206, BODY[256:512])


def test_reads_and_small_writes_are_sent_from_many_threads(tier: S3Store) -> None:
    """One tier serves all threads of a worker."""

    def both(number: int) -> bool:
        body = json.dumps({"schemaVersion": 2, "number": number}).encode()
        tier.write_manifest(NAME, Digest.of(body), body, MANIFEST_TYPE)
        found = tier.read_manifest(NAME, Digest.of(body))
        return found is not None and found.body == body

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(both, range(64)))
    assert tier.requests == Counter({"put manifest": 64, "get manifest": 64})


def test_connections_are_kept(direct: S3Store, server: Server) -> None:
    """Misses, refusals and looks do not cost a connection each (versitygw closes them itself)."""
    pool = direct._client._pools.connection_from_url(f"http://{server.host}")
    for _ in range(3):
        assert direct.open_blob(DIGEST) is None
        assert direct.stat_blob(DIGEST) is None
        assert direct.read_pointer(NAME, TAG) is None
        publish(direct)
        assert direct.open_blob(DIGEST, start=len(BODY)) is None
        direct._client.request("delete", "DELETE", keys.blob_key(direct._prefix, DIGEST))
    assert isinstance(pool, HTTPConnectionPool)
    assert pool.num_connections == 1 or server.name == "versitygw"

"""Touches: LastModified is renewed, and the object is otherwise unchanged."""

import threading
import time

import pytest

from dockyard.oci.reference import Digest
from dockyard.s3.errors import S3Error
from dockyard.s3.store import S3Store
from dockyard.storage import keys
from tests.s3.store.proxy import Forward, Request, S3Proxy, s3_error
from tests.s3.store.servers import Server, make_s3_store
from tests.s3.store.store_adapters import pieces, reader

SMALL = b"layer" * 1000
LARGE = bytes(range(256)) * (13 * 4096)  # 13 MiB
HEADERS = {
    "Content-Type": "application/vnd.thing",
    "Cache-Control": "max-age=60",
    "Content-Disposition": "inline",
    "x-amz-meta-written-by": "another program",
}


def publish(s3: S3Store, body: bytes) -> str:
    """Publish a blob; return its key."""
    digest = Digest.of(body)
    s3.publish_blob(digest, len(body), reader(pieces(body)))
    return keys.blob_key(s3._prefix, digest)


def last_modified(s3: S3Store, key: str) -> float:
    """Return the LastModified of an object."""
    found = s3._head(key)
    assert found is not None
    return found.last_modified


def wait_until_a_touch_is_visible(s3: S3Store, key: str) -> None:
    """Wait two seconds: LastModified is in whole seconds, and the clock of versitygw is up to one second behind."""
    written_at = last_modified(s3, key)
    deadline = time.monotonic() + 10
    while (head := s3._head(key)) and head.date < written_at + 3:
        assert time.monotonic() < deadline
        threading.Event().wait(0.2)


def test_a_touch_renews_an_object_and_keeps_its_metadata(s3: S3Store, direct_s3: S3Store) -> None:
    """The bytes, the media type and the metadata of a small, a large and an empty object do not change."""
    prefix = direct_s3._prefix
    bodies = {f"{prefix}small": SMALL, f"{prefix}empty": b"", publish(direct_s3, LARGE): LARGE}
    for key in (f"{prefix}small", f"{prefix}empty"):
        assert direct_s3._client.request("put", "PUT", key, headers=HEADERS, body=bodies[key])
    before = {key: last_modified(direct_s3, key) for key in bodies}
    wait_until_a_touch_is_visible(direct_s3, list(bodies)[-1])
    for key, body in bodies.items():
        assert s3.touch(key)
        response = direct_s3._client.request("get", "GET", key, max_bytes=2**30)
        assert response is not None
        assert response.body == body
        assert response.last_modified > before[key]
        if body != LARGE:
            assert HEADERS.items() <= {**response.headers, **_metadata(response.headers)}.items()
        else:
            assert response.headers["Content-Type"] == "application/octet-stream"
    assert direct_s3.abort_stale_uploads(0) == 0


def _metadata(headers: object) -> dict[str, str]:
    """Return the metadata headers with names in lower case."""
    return {name.lower(): value for name, value in dict(headers).items() if name.lower().startswith("x-amz-meta-")}  # type: ignore[call-overload]


@pytest.mark.parametrize("server", ["minio"], indirect=True)
def test_a_touch_is_a_head_and_a_copy(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy) -> None:
    """The service copies the bytes itself."""
    key = publish(direct_s3, SMALL)
    assert s3.touch(key)
    assert proxy.counted() == {"HEAD": 1, "PUT copy": 1}


@pytest.mark.parametrize("server", ["minio"], indirect=True)
def test_a_large_object_is_copied_in_parts(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy) -> None:
    """A single copy is limited to 5 GiB."""
    key = publish(direct_s3, LARGE)
    assert s3.touch(key)
    assert proxy.counted() == {"HEAD": 1, "POST uploads": 1, "PUT uploadId copy": 3, "POST uploadId": 1}


@pytest.mark.parametrize("server", ["versitygw"], indirect=True)
def test_a_service_that_does_not_renew_copies_is_detected(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy) -> None:
    """The first touch detects it and copies the object in parts; later touches copy in parts at once."""
    key = publish(direct_s3, SMALL)
    for expected in (
        {"HEAD": 1, "PUT copy": 1, "POST uploads": 1, "PUT uploadId copy": 1, "POST uploadId": 1},
        {"HEAD": 1, "POST uploads": 1, "PUT uploadId copy": 1, "POST uploadId": 1},
    ):
        wait_until_a_touch_is_visible(direct_s3, key)
        before = last_modified(direct_s3, key)
        proxy.requests.clear()
        assert s3.touch(key)
        assert proxy.counted() == expected
        assert last_modified(direct_s3, key) > before


def test_a_missing_object_is_not_touched(s3: S3Store, proxy: S3Proxy) -> None:
    """Nothing is copied; the caller publishes the object again."""
    assert s3.touch(f"{s3._prefix}nothing") is False
    assert "PUT copy" not in proxy.counted()


@pytest.mark.parametrize("server", ["minio"], indirect=True)
@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
def test_a_touch_does_not_overwrite_newer_bytes(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy, body: bytes) -> None:
    """An object that is replaced between the HEAD and the copy is not changed."""
    key = publish(direct_s3, body)

    def rule(request: Request) -> Forward:
        if request.operation.endswith("copy"):
            direct_s3._client.request("put", "PUT", key, body=b"newer")
        return Forward()

    proxy.rule = rule
    s3.touch(key)
    response = direct_s3._client.request("get", "GET", key)
    assert response is not None
    assert response.body == b"newer"
    assert direct_s3.abort_stale_uploads(0) == 0


@pytest.mark.parametrize("server", ["minio"], indirect=True)
def test_a_large_touch_that_fails_leaves_no_upload(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy) -> None:
    """The multipart upload is aborted."""
    key = publish(direct_s3, LARGE)
    proxy.rule = lambda request: s3_error(403, "AccessDenied") if "partNumber=2" in request.target else Forward()
    with pytest.raises(S3Error):
        s3.touch(key)
    assert direct_s3.abort_stale_uploads(0) == 0


def test_prefixes_with_special_characters_are_copied(server: Server, prefix: str) -> None:
    """A prefix may contain any characters."""
    s3 = make_s3_store(server.settings(f"{prefix}a b+c=d/é%41/"))
    key = publish(s3, SMALL)
    assert s3.touch(key)
    found = s3.open_blob(Digest.of(SMALL))
    assert found is not None
    found.close()

"""The S3 store under faults: no incomplete object, no error that is taken for a missing object, and no endless wait."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dockyard.errors import Unavailable, UpstreamTimeout
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3 import client, connections
from dockyard.s3.errors import S3Error
from dockyard.s3.store import S3Store
from dockyard.storage import keys
from tests.s3.store.proxy import Forward, Request, Respond, Rule, S3Proxy, Stall, s3_error
from tests.s3.store.servers import MIB, SECRET_KEY, Server, make_s3_store
from tests.s3.store.store_adapters import MANIFEST_TYPE, pieces, reader
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within

NAME = Name.parse("docker.io/library/app")
TAG = Tag.parse("latest")
BODY = os.urandom(3 * MIB)
DIGEST = Digest.of(BODY)
LARGE = os.urandom(12 * MIB)

OPERATIONS: dict[str, Callable[[S3Store], object]] = {
    "open_blob": lambda s3: s3.open_blob(DIGEST),
    "stat_blob": lambda s3: s3.stat_blob(DIGEST),
    "read_manifest": lambda s3: s3.read_manifest(NAME, DIGEST),
    "read_pointer": lambda s3: s3.read_pointer(NAME, TAG),
    "touch": lambda s3: s3.touch("anything"),
    "publish_blob": lambda s3: s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY))),
    "write_manifest": lambda s3: s3.write_manifest(NAME, Digest.of(b"{}"), b"{}", MANIFEST_TYPE),
    "write_pointer": lambda s3: s3.write_pointer(NAME, TAG, DIGEST),
    "abort_stale_uploads": lambda s3: s3.abort_stale_uploads(0),
}
ALL_OPERATIONS = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
ANY_SERVER = pytest.mark.parametrize("server", ["minio"], indirect=True)  # the proxy responds in its place


@pytest.fixture
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the timeouts to a second."""
    monkeypatch.setattr(connections, "STALL_TIMEOUT_S", 1.0)
    for call in (client.S3Client.request, client.S3Client.open_response):
        assert call.__kwdefaults__ is not None
        monkeypatch.setitem(call.__kwdefaults__, "read_timeout_s", 1.0)


def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry without a delay."""
    monkeypatch.setattr(client, "RETRY_DELAY_S", (0.0, 0.0))


@ANY_SERVER
@ALL_OPERATIONS
@pytest.mark.parametrize(
    "response",
    [
        s3_error(403, "AccessDenied"),
        s3_error(403, "RequestTimeTooSkewed"),
        s3_error(404, "NoSuchBucket"),
        s3_error(503, "SlowDown"),
        s3_error(500, "InternalError"),
        Respond(404, b"<html>not here</html>", "Content-Type: text/html\r\n"),
        Respond(502, b"bad gateway", "Content-Type: text/plain\r\n"),
        Respond(301, b"", "x-amz-bucket-region: eu-west-1\r\n"),
        Respond(418),
    ],
    ids=lambda response: f"{response.status}-{response.body[28:50].decode()}",
)
def test_an_error_is_not_a_missing_object(
    s3: S3Store,
    proxy: S3Proxy,
    operation: Callable[[S3Store], object],
    response: Respond,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An object is missing only when the service states that; any other error raises S3Error."""
    retry_at_once(monkeypatch)
    proxy.rule = lambda _: response
    with pytest.raises(S3Error) as caught:
        operation(s3)
    assert SECRET_KEY not in str(caught.value)
    assert "Signature" not in str(caught.value)
    assert len(proxy.requests) <= 2


@ALL_OPERATIONS
def test_a_refused_connection_is_an_error(minio: Server, operation: Callable[[S3Store], object]) -> None:
    """S3Error is raised at once."""
    s3 = make_s3_store(minio.settings(endpoint="127.0.0.1:1"))
    started_at = time.monotonic()
    with pytest.raises(S3Error, match="cannot connect to"):
        operation(s3)
    assert is_within(time.monotonic() - started_at, 0)


@ANY_SERVER
@ALL_OPERATIONS
def test_a_server_that_does_not_respond_is_an_error(
    s3: S3Store,
    proxy: S3Proxy,
    operation: Callable[[S3Store], object],
    short_timeouts: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The request times out, and is not retried."""
    monkeypatch.setattr("dockyard.s3.upload.STORE_TIMEOUT_S", 0.3)
    proxy.rule = lambda _: Stall()
    with pytest.raises(S3Error, match="did not respond in time") as caught:
        operation(s3)
    assert caught.value.code == "timeout"
    assert len(proxy.requests) == 1


@ALL_OPERATIONS
def test_a_missing_bucket_is_an_error(server: Server, operation: Callable[[S3Store], object]) -> None:
    """A missing bucket is not taken for a missing object."""
    s3 = make_s3_store(server.settings(bucket="no-such-bucket"))
    with pytest.raises(S3Error) as caught:
        operation(s3)
    assert caught.value.code in {"NoSuchBucket", ""}


@ANY_SERVER
@pytest.mark.parametrize(
    "operation", [OPERATIONS[name] for name in ("open_blob", "stat_blob", "read_manifest", "touch")]
)
def test_a_request_is_retried_after_an_overload(
    s3: S3Store, proxy: S3Proxy, operation: Callable[[S3Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt succeeds."""
    retry_at_once(monkeypatch)
    attempts = itertools.count()
    proxy.rule = lambda _: s3_error(503, "SlowDown") if next(attempts) == 0 else Forward()
    assert not operation(s3)
    assert len(proxy.requests) == 2


@pytest.mark.parametrize("by_reset", [False, True], ids=["fin", "rst"])
def test_a_request_is_retried_after_a_broken_response(
    s3: S3Store, direct_s3: S3Store, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch, *, by_reset: bool
) -> None:
    """A manifest whose response breaks is complete after the second attempt."""
    retry_at_once(monkeypatch)
    body = BODY[:100_000]
    digest = Digest.of(body)
    direct_s3.write_manifest(NAME, digest, body, MANIFEST_TYPE)
    attempts = itertools.count()
    proxy.rule = lambda _: Forward(cut_response_after=50_000, by_reset=by_reset) if next(attempts) == 0 else Forward()
    found = s3.read_manifest(NAME, digest)
    assert found is not None
    assert found.body == body
    assert len(proxy.requests) == 2


def cut_puts(after: int) -> Rule:
    """Return a rule that closes the connection of each PUT after so many bytes of its body."""
    return lambda request: Forward(cut_request_after=after if request.method == "PUT" else None)


@pytest.mark.parametrize("after", [0, 1, MIB, len(BODY) - 1])
def test_an_interrupted_put_leaves_no_object(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy, after: int) -> None:
    """No incomplete object is created."""
    proxy.rule = cut_puts(after)
    with pytest.raises(S3Error):
        s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY)))
    assert direct_s3.stat_blob(DIGEST) is None


@pytest.mark.parametrize("part", [1, 3])
def test_an_interrupted_part_leaves_no_object_and_no_upload(
    s3: S3Store, direct_s3: S3Store, proxy: S3Proxy, part: int
) -> None:
    """The multipart upload is aborted."""
    proxy.rule = lambda request: Forward(cut_request_after=1000 if f"partNumber={part}&" in request.target else None)
    digest = Digest.of(LARGE)
    with pytest.raises(S3Error):
        s3.publish_blob(digest, len(LARGE), reader(pieces(LARGE)))
    assert direct_s3.stat_blob(digest) is None
    assert direct_s3.abort_stale_uploads(0) == 0
    assert proxy.counted()["DELETE uploadId"] == 1


def test_a_failed_abort_is_made_up_for_by_the_abort_of_stale_uploads(
    s3: S3Store, direct_s3: S3Store, proxy: S3Proxy
) -> None:
    """The error of the part is raised, not that of the abort. The upload is aborted later, when it is old enough."""
    proxy.rule = lambda request: (
        s3_error(500, "InternalError") if request.method == "DELETE" or "partNumber=2" in request.target else Forward()
    )
    with pytest.raises(S3Error, match="put part"):
        s3.publish_blob(Digest.of(LARGE), len(LARGE), reader(pieces(LARGE)))
    assert direct_s3.abort_stale_uploads(3600) == 0
    assert direct_s3.abort_stale_uploads(0) == 1
    assert direct_s3.abort_stale_uploads(0) == 0


def test_uploads_of_other_prefixes_are_not_aborted(s3: S3Store, server: Server) -> None:
    """The bucket may contain more than the cache."""
    other = make_s3_store(server.settings("another-prefix/"))
    other._client.request("begin", "POST", "another-prefix/thing", query={"uploads": ""})
    assert s3.abort_stale_uploads(0) == 0
    assert other.abort_stale_uploads(0) == 1


def respond_to_completion(response: Respond) -> Rule:
    """Return a rule that responds to the completion of an upload."""

    def rule(request: Request) -> Forward | Respond:
        return response if request.operation == "POST uploadId" else Forward()

    return rule


@pytest.mark.parametrize(
    "response",
    [
        s3_error(200, "InternalError"),
        Respond(200, b"   \n"),
        Respond(200, b"<html></html>"),
        s3_error(500, "InternalError"),
    ],
)
def test_a_failed_completion_is_an_error(
    s3: S3Store, direct_s3: S3Store, proxy: S3Proxy, response: Respond, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 responds with the status 200 before the outcome is known, and reports an error in the body."""
    retry_at_once(monkeypatch)
    proxy.rule = respond_to_completion(response)
    digest = Digest.of(LARGE)
    with pytest.raises(S3Error):
        s3.publish_blob(digest, len(LARGE), reader(pieces(LARGE)))
    assert direct_s3.stat_blob(digest) is None
    assert direct_s3.abort_stale_uploads(0) == 0


def test_a_completion_whose_response_is_lost_succeeds(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy) -> None:
    """The second attempt gets NoSuchUpload, because the object was created by the first."""
    attempts = itertools.count()
    proxy.rule = lambda request: (
        Forward(cut_response_after=0) if request.operation == "POST uploadId" and next(attempts) == 0 else Forward()
    )
    digest = Digest.of(LARGE)
    s3.publish_blob(digest, len(LARGE), reader(pieces(LARGE)))
    assert proxy.counted()["POST uploadId"] == 2
    assert direct_s3.stat_blob(digest) is not None


@ANY_SERVER
def test_a_slow_copy_does_not_time_out(s3: S3Store, direct_s3: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy may take longer than other requests: S3 sends white space until it ends."""
    direct_s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY)))
    monkeypatch.setattr(client, "RESPONSE_TIMEOUT_S", -1.0)
    assert s3.touch(keys.blob_key(s3._prefix, DIGEST))


def test_a_failed_copy_is_an_error(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy) -> None:
    """As with completions, the status is 200 and the error is in the body."""
    direct_s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY)))
    proxy.rule = lambda request: s3_error(200, "InternalError") if request.operation == "PUT copy" else Forward()
    with pytest.raises(S3Error, match="InternalError"):
        s3.touch(keys.blob_key(s3._prefix, DIGEST))


def test_a_completed_blob_of_another_size_is_an_error(s3: S3Store, proxy: S3Proxy) -> None:
    """A service that responds with 200 and stores less is detected."""
    proxy.rule = lambda request: Respond(200, b"xx") if request.method == "HEAD" else Forward()
    with pytest.raises(S3Error, match="stored 2 instead of"):
        s3.publish_blob(Digest.of(LARGE), len(LARGE), reader(pieces(LARGE)))


def read_all(s3: S3Store) -> bytes:
    """Read the whole blob."""
    body = s3.open_blob(DIGEST)
    assert body is not None
    try:
        return b"".join(iter(lambda: body.read(64 * 1024), b""))
    finally:
        body.close()


@pytest.mark.parametrize("after", [1000, MIB, len(BODY) + 100])
def test_an_interrupted_body_is_an_error(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy, after: int) -> None:
    """A read is empty only at the end of the body; before that it raises, so that the download is resumed."""
    direct_s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY)))
    proxy.rule = lambda _: Forward(cut_response_after=after)
    with pytest.raises(Unavailable):
        read_all(s3)


def test_a_stalled_body_times_out(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy, short_timeouts: None) -> None:
    """The read raises after the timeout."""
    direct_s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY)))
    proxy.rule = lambda _: Forward(stall_response_after=MIB)
    with pytest.raises(UpstreamTimeout):
        read_all(s3)


def test_a_blocked_read_can_be_aborted(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy) -> None:
    """A worker that shuts down does not wait for the S3 service."""
    direct_s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY)))
    proxy.rule = lambda _: Forward(stall_response_after=MIB)
    body = s3.open_blob(DIGEST)
    assert body is not None
    started_at = time.monotonic()
    threading.Timer(0.1, body.abort).start()
    with pytest.raises(Unavailable):
        b"".join(iter(lambda: body.read(64 * 1024), b""))
    body.close()
    assert is_within(time.monotonic() - started_at, 4)


def test_a_late_abort_does_not_affect_another_request(direct_s3: S3Store) -> None:
    """The connection may be used by another request already."""
    direct_s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY)))
    first = direct_s3.open_blob(DIGEST)
    assert first is not None
    while first.read(64 * 1024):
        pass
    second = direct_s3.open_blob(DIGEST)
    first.abort()
    assert second is not None
    assert b"".join(iter(lambda: second.read(64 * 1024), b"")) == BODY


def test_an_object_that_was_deleted_is_none(s3: S3Store, direct_s3: S3Store) -> None:
    """A lifecycle rule may delete it at any time: before it is read, and before it is resumed."""
    direct_s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY)))
    body = s3.open_blob(DIGEST)
    assert body is not None
    body.close()
    key = keys.blob_key(direct_s3._prefix, DIGEST)
    direct_s3._client.request("delete", "DELETE", key)
    assert s3.open_blob(DIGEST) is None
    assert s3.open_blob(DIGEST, start=100, etag=body.etag) is None
    assert s3.stat_blob(DIGEST) is None
    assert s3.touch(key) is False


def test_an_object_that_is_deleted_before_its_copy_is_not_touched(
    s3: S3Store, direct_s3: S3Store, proxy: S3Proxy
) -> None:
    """It is deleted between the HEAD and the copy."""
    direct_s3.publish_blob(DIGEST, len(BODY), reader(pieces(BODY)))
    key = keys.blob_key(direct_s3._prefix, DIGEST)

    def rule(request: Request) -> Forward:
        if request.operation == "PUT copy":
            direct_s3._client.request("delete", "DELETE", key)
        return Forward()

    proxy.rule = rule
    assert s3.touch(key) is False


def test_an_exception_of_the_chunks_is_raised(s3: S3Store, direct_s3: S3Store) -> None:
    """Also an exception that urllib3 would take for an error of the connection."""

    def breaking() -> Iterator[bytes]:
        yield BODY[:MIB]
        raise BrokenPipeError("of the disk")

    with pytest.raises(BrokenPipeError, match="of the disk"):
        s3.publish_blob(DIGEST, len(BODY), reader(breaking()))
    assert direct_s3.stat_blob(DIGEST) is None


def test_slow_chunks_do_not_time_out(s3: S3Store, direct_s3: S3Store, short_timeouts: None) -> None:
    """A blob is uploaded at the speed of its download."""
    go_on = threading.Event()
    threading.Timer(1.5, go_on.set).start()

    def slow() -> Iterator[bytes]:
        yield BODY[:MIB]
        assert go_on.wait(EVENT_TIMEOUT_S)
        yield BODY[MIB:]

    s3.publish_blob(DIGEST, len(BODY), reader(slow()))
    assert direct_s3.stat_blob(DIGEST) is not None


def test_a_manifest_that_is_too_large_is_not_read(s3: S3Store, direct_s3: S3Store) -> None:
    """A large object does not exhaust the memory."""
    key = keys.manifest_key(direct_s3._prefix, NAME, DIGEST)
    direct_s3._client.request("put", "PUT", key, body=bytes(5 * MIB))
    assert s3.read_manifest(NAME, DIGEST) is None

"""The S3 store in trouble: nothing half is stored, nothing is called missing that is not, and every wait ends."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dockyard.errors import Unavailable, UpstreamTimeout
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3 import S3Error, S3Store, client, connections
from dockyard.storage import keys
from tests.s3.store.proxy import Forward, Request, Respond, Rule, S3Proxy, Stall, s3_error
from tests.s3.store.servers import MIB, SECRET_KEY, Server, make_tier
from tests.s3.store.store_adapters import MANIFEST_TYPE, pieces

NAME = Name.parse("docker.io/library/app")
TAG = Tag.parse("latest")
BODY = os.urandom(3 * MIB)
DIGEST = Digest.of(BODY)
LARGE = os.urandom(12 * MIB)

QUESTIONS: dict[str, Callable[[S3Store], object]] = {
    "open_blob": lambda tier: tier.open_blob(DIGEST),
    "stat_blob": lambda tier: tier.stat_blob(DIGEST),
    "read_manifest": lambda tier: tier.read_manifest(NAME, DIGEST),
    "read_pointer": lambda tier: tier.read_pointer(NAME, TAG),
    "touch": lambda tier: tier.touch("anything"),
    "publish_blob": lambda tier: tier.publish_blob(DIGEST, len(BODY), iter(pieces(BODY))),
    "write_manifest": lambda tier: tier.write_manifest(NAME, Digest.of(b"{}"), b"{}", MANIFEST_TYPE),
    "write_pointer": lambda tier: tier.write_pointer(NAME, TAG, DIGEST),
    "abort_stale_uploads": lambda tier: tier.abort_stale_uploads(0),
}
ALL_QUESTIONS = pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
ANY_SERVER = pytest.mark.parametrize("server", ["minio"], indirect=True)  # the proxy answers in its place


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds become tenths."""
    monkeypatch.setattr(connections, "STALL_TIMEOUT_S", 0.3)
    for call in (client.S3Client.request, client.S3Client.open_response):
        assert call.__kwdefaults__ is not None
        monkeypatch.setitem(call.__kwdefaults__, "read_timeout_s", 0.3)


def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(client, "RETRY_DELAY_S", (0.0, 0.0))


@ANY_SERVER
@ALL_QUESTIONS
@pytest.mark.parametrize(
    "answer",
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
    ids=lambda answer: f"{answer.status}-{answer.body[28:50].decode()}",
)
def test_trouble_is_never_a_miss(
    tier: S3Store, proxy: S3Proxy, ask: Callable[[S3Store], object], answer: Respond, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the store's own word for it means that an object is not there."""
    no_pause(monkeypatch)
    proxy.rule = lambda _: answer
    with pytest.raises(S3Error) as caught:
        ask(tier)
    assert SECRET_KEY not in str(caught.value)
    assert "Signature" not in str(caught.value)
    assert len(proxy.requests) <= 2


@ALL_QUESTIONS
def test_a_server_that_is_gone_is_trouble(minio: Server, ask: Callable[[S3Store], object]) -> None:
    """Refused is not missing; and it is told at once."""
    tier = make_tier(minio.settings(endpoint="127.0.0.1:1"))
    begun = time.monotonic()
    with pytest.raises(S3Error, match="cannot connect to"):
        ask(tier)
    assert time.monotonic() - begun < 1


@ANY_SERVER
@ALL_QUESTIONS
def test_a_silent_server_is_trouble(
    tier: S3Store, proxy: S3Proxy, ask: Callable[[S3Store], object], short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every wait ends, and is not begun again."""
    monkeypatch.setattr("dockyard.s3.upload.STORE_TIMEOUT_S", 0.3)
    proxy.rule = lambda _: Stall()
    with pytest.raises(S3Error, match="did not respond in time") as caught:
        ask(tier)
    assert caught.value.code == "timeout"
    assert len(proxy.requests) == 1


@ALL_QUESTIONS
def test_a_bucket_that_is_missing_is_trouble(server: Server, ask: Callable[[S3Store], object]) -> None:
    """Nothing is found in it, and yet nothing is missing from it."""
    tier = make_tier(server.settings(bucket="no-such-bucket"))
    with pytest.raises(S3Error) as caught:
        ask(tier)
    assert caught.value.code in {"NoSuchBucket", ""}


@ANY_SERVER
@pytest.mark.parametrize("ask", [QUESTIONS[name] for name in ("open_blob", "stat_blob", "read_manifest", "touch")])
def test_one_refusal_for_being_busy_is_not_seen(
    tier: S3Store, proxy: S3Proxy, ask: Callable[[S3Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be asked again is asked twice."""
    no_pause(monkeypatch)
    times = itertools.count()
    proxy.rule = lambda _: s3_error(503, "SlowDown") if next(times) == 0 else Forward()
    assert not ask(tier)
    assert len(proxy.requests) == 2


@pytest.mark.parametrize("by_reset", [False, True], ids=["fin", "rst"])
def test_a_small_answer_that_breaks_is_asked_for_again(
    tier: S3Store, direct: S3Store, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch, *, by_reset: bool
) -> None:
    """A manifest whose answer ends in its middle comes whole with the second try."""
    no_pause(monkeypatch)
    body = BODY[:100_000]
    digest = Digest.of(body)
    direct.write_manifest(NAME, digest, body, MANIFEST_TYPE)
    times = itertools.count()
    proxy.rule = lambda _: Forward(cut_response_after=50_000, by_reset=by_reset) if next(times) == 0 else Forward()
    found = tier.read_manifest(NAME, digest)
    assert found is not None
    assert found.body == body
    assert len(proxy.requests) == 2


def cut_request_after(after: int) -> Rule:
    """Cut every body that is sent."""
    return lambda request: Forward(cut_request_after=after if request.method == "PUT" else None)


@pytest.mark.parametrize("after", [0, 1, MIB, len(BODY) - 1])
def test_a_cut_put_leaves_nothing(tier: S3Store, direct: S3Store, proxy: S3Proxy, after: int) -> None:
    """The object is there whole, or not at all."""
    proxy.rule = cut_request_after(after)
    with pytest.raises(S3Error):
        tier.publish_blob(DIGEST, len(BODY), iter(pieces(BODY)))
    assert direct.stat_blob(DIGEST) is None


@pytest.mark.parametrize("part", [1, 3])
def test_a_cut_part_leaves_no_object_and_no_upload(tier: S3Store, direct: S3Store, proxy: S3Proxy, part: int) -> None:
    """What was begun is aborted."""
    proxy.rule = lambda request: Forward(cut_request_after=1000 if f"partNumber={part}&" in request.target else None)
    digest = Digest.of(LARGE)
    with pytest.raises(S3Error):
        tier.publish_blob(digest, len(LARGE), iter(pieces(LARGE)))
    assert direct.stat_blob(digest) is None
    assert direct.abort_stale_uploads(0) == 0
    assert proxy.counted()["DELETE uploadId"] == 1


def test_an_abort_that_fails_is_made_up_for_later(tier: S3Store, direct: S3Store, proxy: S3Proxy) -> None:
    """The error that is seen is the first one; the sweep finds the upload, when it is old enough."""
    proxy.rule = lambda request: (
        s3_error(500, "InternalError") if request.method == "DELETE" or "partNumber=2" in request.target else Forward()
    )
    with pytest.raises(S3Error, match="put part"):
        tier.publish_blob(Digest.of(LARGE), len(LARGE), iter(pieces(LARGE)))
    assert direct.abort_stale_uploads(3600) == 0
    assert direct.abort_stale_uploads(0) == 1
    assert direct.abort_stale_uploads(0) == 0


def test_uploads_of_others_are_left_alone(tier: S3Store, server: Server) -> None:
    """The bucket may hold more than the cache."""
    other = make_tier(server.settings("of-somebody-else/"))
    other._client.request("begin", "POST", "of-somebody-else/thing", query={"uploads": ""})
    assert tier.abort_stale_uploads(0) == 0
    assert other.abort_stale_uploads(0) == 1


def completed_with(answer: Respond) -> Rule:
    """Answer the completion of an upload."""

    def rule(request: Request) -> Forward | Respond:
        return answer if request.operation == "POST uploadId" else Forward()

    return rule


@pytest.mark.parametrize(
    "answer",
    [
        s3_error(200, "InternalError"),
        Respond(200, b"   \n"),
        Respond(200, b"<html></html>"),
        s3_error(500, "InternalError"),
    ],
)
def test_a_completion_that_failed_is_not_believed(
    tier: S3Store, direct: S3Store, proxy: S3Proxy, answer: Respond, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 answers 200 before it knows, and tells the error in the body."""
    no_pause(monkeypatch)
    proxy.rule = completed_with(answer)
    digest = Digest.of(LARGE)
    with pytest.raises(S3Error):
        tier.publish_blob(digest, len(LARGE), iter(pieces(LARGE)))
    assert direct.stat_blob(digest) is None
    assert direct.abort_stale_uploads(0) == 0


def test_a_completion_whose_answer_is_lost_is_found_out(tier: S3Store, direct: S3Store, proxy: S3Proxy) -> None:
    """Asked again, the store knows no such upload: the object is there."""
    times = itertools.count()
    proxy.rule = lambda request: (
        Forward(cut_response_after=0) if request.operation == "POST uploadId" and next(times) == 0 else Forward()
    )
    digest = Digest.of(LARGE)
    tier.publish_blob(digest, len(LARGE), iter(pieces(LARGE)))
    assert proxy.counted()["POST uploadId"] == 2
    assert direct.stat_blob(digest) is not None


@ANY_SERVER
def test_a_store_that_copies_slowly_is_waited_for(
    tier: S3Store, direct: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 sends white space while it copies: longer than other answers may take."""
    direct.publish_blob(DIGEST, len(BODY), iter(pieces(BODY)))
    monkeypatch.setattr(client, "RESPONSE_TIMEOUT_S", -1.0)
    assert tier.touch(keys.blob_key(tier._prefix, DIGEST))


def test_a_copy_that_failed_is_not_believed(tier: S3Store, direct: S3Store, proxy: S3Proxy) -> None:
    """As with completions."""
    direct.publish_blob(DIGEST, len(BODY), iter(pieces(BODY)))
    proxy.rule = lambda request: s3_error(200, "InternalError") if request.operation == "PUT copy" else Forward()
    with pytest.raises(S3Error, match="InternalError"):
        tier.touch(keys.blob_key(tier._prefix, DIGEST))


def test_a_completed_blob_of_another_size_is_not_believed(tier: S3Store, proxy: S3Proxy) -> None:
    """A store that says 200 and kept less is found out."""
    proxy.rule = lambda request: Respond(200, b"xx") if request.method == "HEAD" else Forward()
    with pytest.raises(S3Error, match="stored 2 instead of"):
        tier.publish_blob(Digest.of(LARGE), len(LARGE), iter(pieces(LARGE)))


def read_all(tier: S3Store) -> bytes:
    """Read the blob through the tier."""
    body = tier.open_blob(DIGEST)
    assert body is not None
    try:
        return b"".join(iter(lambda: body.read(64 * 1024), b""))
    finally:
        body.close()


@pytest.mark.parametrize("after", [1000, MIB, len(BODY) + 100])
def test_a_cut_body_does_not_end_well(tier: S3Store, direct: S3Store, proxy: S3Proxy, after: int) -> None:
    """The end of a body is empty at its right place only; before it, whoever fills is told and resumes."""
    direct.publish_blob(DIGEST, len(BODY), iter(pieces(BODY)))
    proxy.rule = lambda _: Forward(cut_response_after=after)
    with pytest.raises(Unavailable):
        read_all(tier)


def test_a_stalled_body_is_late(tier: S3Store, direct: S3Store, proxy: S3Proxy, short_waits: None) -> None:
    """It is not waited for longer than the limit."""
    direct.publish_blob(DIGEST, len(BODY), iter(pieces(BODY)))
    proxy.rule = lambda _: Forward(stall_response_after=MIB)
    with pytest.raises(UpstreamTimeout):
        read_all(tier)


def test_a_read_that_waits_can_be_aborted(tier: S3Store, direct: S3Store, proxy: S3Proxy) -> None:
    """A worker that shuts down does not wait for its store."""
    direct.publish_blob(DIGEST, len(BODY), iter(pieces(BODY)))
    proxy.rule = lambda _: Forward(stall_response_after=MIB)
    body = tier.open_blob(DIGEST)
    assert body is not None
    begun = time.monotonic()
    threading.Timer(0.1, body.abort).start()
    with pytest.raises(Unavailable):
        b"".join(iter(lambda: body.read(64 * 1024), b""))
    body.close()
    assert time.monotonic() - begun < 5


def test_an_abort_that_comes_late_hurts_nobody(direct: S3Store) -> None:
    """The connection may serve another request by then."""
    direct.publish_blob(DIGEST, len(BODY), iter(pieces(BODY)))
    first = direct.open_blob(DIGEST)
    assert first is not None
    while first.read(64 * 1024):
        pass
    second = direct.open_blob(DIGEST)
    first.abort()
    assert second is not None
    assert b"".join(iter(lambda: second.read(64 * 1024), b"")) == BODY


def test_an_object_that_vanishes_is_a_miss(tier: S3Store, direct: S3Store) -> None:
    """A lifecycle rule may take it at any moment: before it is read, and between two reads."""
    direct.publish_blob(DIGEST, len(BODY), iter(pieces(BODY)))
    body = tier.open_blob(DIGEST)
    assert body is not None
    body.close()
    key = keys.blob_key(direct._prefix, DIGEST)
    direct._client.request("delete", "DELETE", key)
    assert tier.open_blob(DIGEST) is None
    assert tier.open_blob(DIGEST, start=100, etag=body.etag) is None
    assert tier.stat_blob(DIGEST) is None
    assert tier.touch(key) is False


def test_an_object_that_vanishes_before_its_copy_is_a_miss(tier: S3Store, direct: S3Store, proxy: S3Proxy) -> None:
    """Between the look and the copy there is time."""
    direct.publish_blob(DIGEST, len(BODY), iter(pieces(BODY)))
    key = keys.blob_key(direct._prefix, DIGEST)

    def rule(request: Request) -> Forward:
        if request.operation == "PUT copy":
            direct._client.request("delete", "DELETE", key)
        return Forward()

    proxy.rule = rule
    assert tier.touch(key) is False


def test_what_the_chunks_raise_comes_out(tier: S3Store, direct: S3Store) -> None:
    """Also what urllib3 would take for the store's fault, and go on."""

    def breaking() -> Iterator[bytes]:
        yield BODY[:MIB]
        raise BrokenPipeError("of the disk")

    with pytest.raises(BrokenPipeError, match="of the disk"):
        tier.publish_blob(DIGEST, len(BODY), breaking())
    assert direct.stat_blob(DIGEST) is None


def test_chunks_that_come_slowly_are_waited_for(tier: S3Store, direct: S3Store, short_waits: None) -> None:
    """A blob is published at the pace of its upstream, not ours."""
    gate = threading.Event()
    threading.Timer(0.5, gate.set).start()

    def slow() -> Iterator[bytes]:
        yield BODY[:MIB]
        assert gate.wait(5)
        yield BODY[MIB:]

    tier.publish_blob(DIGEST, len(BODY), slow())
    assert direct.stat_blob(DIGEST) is not None


def test_a_manifest_that_is_too_large_is_not_read(tier: S3Store, direct: S3Store) -> None:
    """Nobody fills our memory."""
    key = keys.manifest_key(direct._prefix, NAME, DIGEST)
    direct._client.request("put", "PUT", key, body=bytes(5 * MIB))
    assert tier.read_manifest(NAME, DIGEST) is None

"""Ranges of blobs: the right bytes, or a clear answer that ranges cannot be used, whatever the server does."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest
from structlog.testing import capture_logs

from dockyard.errors import BadUpstream, BlobUnknown, Denied, RegistryError, TooManyRequests, Unavailable
from dockyard.oci.login import Login
from dockyard.oci.reference import Digest
from dockyard.upstream.blob_location import MAX_WASTED_REDIRECTS, BlobLocation
from dockyard.upstream.client import RegistryClient
from dockyard.upstream.errors import RangesUnsupported
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.responses import UpstreamBlob
from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.fake_auth import FakeTokenService
from tests.support.fake_registry import Change, basic
from tests.support.range_habits import RANGE_HABITS, RangeHabit, hidden_size, moved, only_ranges
from tests.support.raw_http import Request, ScriptedResponse
from tests.support.upstreams import BASIC, LATEST, LIMITS, MODERATE, SHORT, Ward, error_text, pretend, together

BLOB = bytes(range(256)) * 8
START, STOP = 1000, 1100
RANGE = f"bytes={START}-{STOP - 1}"


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """Give a fake registry and what asks it."""
    with Ward(tmp_path) as ward:
        yield ward


@pytest.fixture
def digest(ward: Ward) -> Digest:
    """Give the digest of BLOB, which the fake registry has."""
    return Digest.parse(ward.fake_registry.add_blob(BLOB))


def read(body: UpstreamBlob, amount: int = 1000) -> bytes:
    """All bytes of a body, which is closed."""
    pieces = []
    try:
        while piece := body.read(amount):
            pieces.append(piece)
    finally:
        body.close()
    return b"".join(pieces)


@attrs.define
class OneDownload:
    """A download that reads ranges of BLOB."""

    registry: RegistryClient
    digest: Digest
    location: BlobLocation = attrs.field(factory=BlobLocation)

    def open(self, start: int = START, stop: int | None = STOP) -> UpstreamBlob:
        return self.registry.open_blob("lib/app", self.digest, start, stop, self.location)

    def read(self, start: int = START, stop: int | None = STOP) -> bytes:
        return read(self.open(start, stop))


def ranges(ward: Ward, kind: str = "blob") -> list[str | None]:
    """The Range headers that reached the fake registry."""
    return [each.request.header("Range") for each in ward.fake_registry.received(kind)]


def redirect_to_cdn(ward: Ward, digest: Digest, *, uses: Callable[[], int | None] = lambda: None) -> None:
    """Redirect each request for the blob to a URL of its own on another host, valid for a number of requests."""
    ward.fake_registry.listen("cdn")
    ward.fake_registry.on(
        "blob",
        faults.redirected(lambda request: ward.fake_registry.presign(str(digest), listener="cdn", uses=uses())),
    )


def redirect_host(ward: Ward) -> str:
    """The host and port of the URLs that `redirect_to_cdn` makes."""
    return ward.fake_registry.listeners["cdn"].authority


# Right bytes


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, len(BLOB)), (1000, 1100), (len(BLOB) - 1, len(BLOB)), (2000, len(BLOB))]
)
@pytest.mark.parametrize("amount", [1, 7, 100, 10_000])
def test_a_range_has_exactly_its_bytes(ward: Ward, digest: Digest, start: int, stop: int, amount: int) -> None:
    """It costs one request, knows the size of the blob, and sends no condition."""
    download = OneDownload(ward.registry(), digest)
    body = download.open(start, stop)
    assert (body.size, body.start) == (len(BLOB), start)
    assert read(body, amount) == BLOB[start:stop]
    (seen,) = ward.fake_registry.received()
    assert seen.request.header("Range") == f"bytes={start}-{stop - 1}"
    assert seen.request.header("If-Range") is None
    assert seen.request.header("If-Match") is None


def test_a_range_beyond_the_end_ends_with_the_blob(ward: Ward, digest: Digest) -> None:
    """The size of the blob need not be known before."""
    body = OneDownload(ward.registry(), digest).open(2000, 10_000)
    assert body.size == len(BLOB)
    assert read(body) == BLOB[2000:]


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (6, 5), (-1, 5)])
def test_what_is_no_range_is_not_requested(ward: Ward, digest: Digest, start: int, stop: int) -> None:
    """A server would send the whole blob."""
    with pytest.raises(ValueError, match="no range"):
        OneDownload(ward.registry(), digest).open(start, stop)
    assert ward.fake_registry.count() == 0


def test_ranges_use_one_connection_one_after_the_other(ward: Ward, digest: Digest) -> None:
    """Also when the end of a body was not read, only its last byte."""
    download = OneDownload(ward.registry(), digest)
    for start in range(0, 1000, 100):
        body = download.open(start, start + 100)
        assert body.read(100) == BLOB[start : start + 100]
        body.close()
    assert ward.fake_registry.listener.connections == 1


def test_ranges_are_read_by_several_threads(ward: Ward, digest: Digest) -> None:
    """Each gets its own."""
    download = OneDownload(ward.registry(), digest)
    starts = iter(range(0, 2048, 128))
    lock = threading.Lock()

    def one() -> tuple[int, bytes]:
        with lock:
            start = next(starts)
        return start, download.read(start, start + 128)

    assert dict(together(16, one)) == {start: BLOB[start : start + 128] for start in range(0, 2048, 128)}
    assert ward.fake_registry.count("blob") == 16


# What servers do


@pytest.mark.parametrize("habit", [habit for habit in RANGE_HABITS if habit.is_usable], ids=str)
def test_usable_ranges_give_the_right_bytes(ward: Ward, digest: Digest, habit: RangeHabit) -> None:
    """A range that ends early is an outage at its end, and is continued from there."""
    ward.fake_registry.on("blob", habit.change)
    download = OneDownload(ward.registry(), digest)
    received = b""
    for _ in range(10):
        try:
            body = download.open(START + len(received))
            while piece := body.read(30):
                received += piece
            break
        except Unavailable:
            body.close()
        if len(received) == STOP - START:
            break
    assert received == BLOB[START:STOP]


@pytest.mark.parametrize("habit", [habit for habit in RANGE_HABITS if not habit.is_usable], ids=str)
def test_other_ranges_are_not_used(ward: Ward, digest: Digest, habit: RangeHabit) -> None:
    """One request; and the whole blob can be had."""
    ward.fake_registry.on("blob", habit.change)
    download = OneDownload(ward.registry(), digest)
    with pytest.raises(RangesUnsupported) as caught:
        download.open()
    assert caught.value.concerns_all_blobs == habit.concerns_all_blobs
    assert ward.fake_registry.count() == 1
    assert download.read(0, None) == BLOB


@pytest.mark.parametrize("habit", [habit for habit in RANGE_HABITS if not habit.is_usable], ids=str)
def test_a_server_that_has_sent_ranges_is_asked_once_more(ward: Ward, digest: Digest, habit: RangeHabit) -> None:
    """One response of another kind proves nothing, two do."""
    registry = ward.registry()
    first = OneDownload(registry, digest)
    assert first.read(0, 10) == BLOB[:10]
    rule = ward.fake_registry.on("blob", habit.change, times=1)
    assert first.read() == BLOB[START:STOP]
    assert ward.fake_registry.count() == 3
    rule.times = None
    with pytest.raises(RangesUnsupported):
        first.open()
    assert ward.fake_registry.count() == 5


@pytest.mark.parametrize(("start", "count"), [(0, 2), (500, 3)])
def test_a_blob_that_was_resumed_has_ranges(ward: Ward, digest: Digest, start: int, count: int) -> None:
    """A download that a range has continued asks once more, one that began with the whole blob does not."""
    download = OneDownload(ward.registry(), digest)
    assert download.read(start, None) == BLOB[start:]
    ward.fake_registry.on("blob", faults.ignoring_range())
    with pytest.raises(RangesUnsupported):
        download.open()
    assert ward.fake_registry.count() == count


def test_nothing_is_read_of_a_body_that_is_not_a_range(ward: Ward) -> None:
    """The connection is closed instead: the blob may be large."""
    large = bytes(64 * 2**20)
    digest = Digest.parse(ward.fake_registry.add_blob(large))
    ward.fake_registry.on("blob", faults.ignoring_range())
    with pytest.raises(RangesUnsupported):
        OneDownload(ward.registry(), digest).open()
    ward.fake_registry.wait_for(lambda: ward.fake_registry.received()[0].ended == "gone", "the connection is closed")
    assert ward.fake_registry.sent_bytes("blob") < len(large) / 2


def test_not_more_than_the_range_is_read(ward: Ward, digest: Digest) -> None:
    """Of a body that goes on without end."""
    ward.fake_registry.on(
        "blob",
        lambda request, response: attrs.evolve(
            faults.endless(BLOB)(request, response),
            start=START,  # of the pieces, which are all alike
        ),
    )
    body = OneDownload(ward.registry(), digest).open()
    received = read(body)
    assert len(received) == STOP - START


def test_a_slow_range_is_read_to_its_end(ward: Ward, digest: Digest) -> None:
    """Only its headers must come within the time limit, and then a byte now and then."""
    ward.fake_registry.on("blob", faults.slow(40))
    assert OneDownload(ward.registry(limits=SHORT), digest).read() == BLOB[START:STOP]


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_range_that_breaks_off_is_an_outage_after_its_bytes(ward: Ward, digest: Digest, how: str) -> None:
    """None of them is lost."""
    ward.fake_registry.on("blob", faults.cut(30, "fin" if how == "fin" else "rst"))
    body = OneDownload(ward.registry(), digest).open()
    received = b""
    with pytest.raises(Unavailable):  # noqa: PT012 - reads until it fails
        while piece := body.read(10):
            received += piece
    assert received == BLOB[START : START + len(received)]
    if how == "fin":
        assert len(received) == 30


def test_a_read_of_a_range_can_be_aborted(ward: Ward, digest: Digest) -> None:
    """By another thread, while nothing comes."""
    held = threading.Event()
    ward.fake_registry.on("blob", faults.stalled(10, held))
    body = OneDownload(ward.registry(), digest).open()
    assert body.read(10)
    threading.Timer(0.05, body.abort).start()
    with pytest.raises(Unavailable):
        body.read(10)
    held.set()


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, BlobUnknown), (429, TooManyRequests), (500, Unavailable), (503, Unavailable), (418, BadUpstream)],
)
def test_other_statuses_have_their_errors(ward: Ward, digest: Digest, status: int, error: type[RegistryError]) -> None:
    """They do not say that there are no ranges."""
    ward.fake_registry.on("blob", faults.error_response(status))
    with pytest.raises(error):
        OneDownload(ward.registry(), digest).open()
    assert ward.fake_registry.count() == 1


def test_a_blob_that_is_unknown_is_not_requested_twice(ward: Ward) -> None:
    """It is no matter of ranges."""
    with pytest.raises(BlobUnknown):
        OneDownload(ward.registry(), Digest.parse(digest_of(b"nothing"))).open()
    assert ward.fake_registry.count() == 1


# One blob, several responses


@pytest.mark.parametrize("first_is_whole", [False, True])
def test_another_size_than_before_is_not_believed(ward: Ward, digest: Digest, first_is_whole: bool) -> None:  # noqa: FBT001
    """Of this blob; other blobs may be right."""
    registry = ward.registry()
    download = OneDownload(registry, digest)
    assert download.read(0, None if first_is_whole else 10) == (BLOB if first_is_whole else BLOB[:10])
    ward.fake_registry.on("blob", moved(total=1))
    with pytest.raises(RangesUnsupported, match="two different sizes") as caught:
        download.open()
    assert not caught.value.concerns_all_blobs
    assert OneDownload(registry, digest).open().size == len(BLOB) + 1


def test_a_hidden_size_is_that_of_another_response(ward: Ward, digest: Digest) -> None:
    """None if there was none."""
    registry = ward.registry()
    ward.fake_registry.on("blob", only_ranges(hidden_size()))
    download = OneDownload(registry, digest)
    body = download.open()
    assert body.size is None
    assert read(body) == BLOB[START:STOP]
    assert download.read(0, None) == BLOB
    body = download.open()
    assert body.size == len(BLOB)
    assert read(body) == BLOB[START:STOP]


DAYS = ("Sat, 28 Nov 2026 10:00:00 GMT", "Sat, 28 Nov 2026 11:00:00 GMT")


def described(etag: str | None, modified: str | None = None) -> Change:
    """A response with these validators."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        response = response.with_header("ETag", *([etag] if etag else []))
        return response.with_header("Last-Modified", *([modified] if modified else []))

    return change


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        (('"a"', None), ('"a"', None), True),
        (('"a"', None), ('"b"', None), False),
        (('W/"a"', None), ('W/"b"', None), False),
        (('W/"a"', None), ('W/"a"', None), True),
        ((None, DAYS[0]), (None, DAYS[0]), True),
        ((None, DAYS[0]), (None, DAYS[1]), False),
        (('"a"', DAYS[0]), ('"a"', DAYS[1]), True),  # two servers with one file
        (('"a"', DAYS[0]), ('"b"', DAYS[0]), False),
        (('"a"', DAYS[0]), (None, DAYS[1]), False),
        (('"a"', None), (None, DAYS[1]), True),
        ((None, None), ('"b"', DAYS[1]), True),
    ],
)
@pytest.mark.parametrize("first_is_whole", [False, True])
def test_an_entity_tag_that_changes_ends_the_use_of_ranges(
    ward: Ward,
    digest: Digest,
    first: tuple[str | None, str | None],
    second: tuple[str | None, str | None],
    is_same: bool,  # noqa: FBT001
    first_is_whole: bool,  # noqa: FBT001
) -> None:
    """Without one, the time of modification; for this blob, after a second request."""
    rule = ward.fake_registry.on("blob", described(*first))
    download = OneDownload(ward.registry(), digest)
    download.read(0, None if first_is_whole else 10)
    ward.fake_registry.remove_rules(rule)
    ward.fake_registry.on("blob", described(*second))
    if is_same:
        assert download.read() == BLOB[START:STOP]
        return
    with pytest.raises(RangesUnsupported, match="describes one blob in two ways") as caught:
        download.open()
    assert not caught.value.concerns_all_blobs
    assert ranges(ward)[1:] == [RANGE] * (1 if first_is_whole else 2)


def test_an_entity_tag_is_compared_with_the_first_one(ward: Ward, digest: Digest) -> None:
    """One response of another server in between changes nothing."""
    ward.fake_registry.on("blob", described('"a"'))
    ward.fake_registry.on("blob", described('"b"'), when=lambda request: ward.fake_registry.count() == 2)
    download = OneDownload(ward.registry(), digest)
    for start in (0, 100, 200):
        assert download.read(start, start + 10) == BLOB[start : start + 10]
    assert ward.fake_registry.count() == 4


def test_an_entity_tag_is_compared_whatever_the_signature_is(ward: Ward, digest: Digest) -> None:
    """A storage service has one object, with many signed URLs."""
    redirect_to_cdn(ward, digest, uses=lambda: 1)
    rule = ward.fake_registry.on("cdn", described('"a"'))
    download = OneDownload(ward.registry(), digest)
    assert download.read(0, 10) == BLOB[:10]
    ward.fake_registry.remove_rules(rule)
    ward.fake_registry.on("cdn", described('"b"'))
    with pytest.raises(RangesUnsupported, match="describes one blob in two ways"):
        download.open()


def test_different_hosts_may_describe_a_blob_differently(ward: Ward, digest: Digest) -> None:
    """A registry and its storage, or two edges of a network."""
    for listener in ("cdn", "other"):
        ward.fake_registry.listen(listener)
        ward.fake_registry.on("cdn", described(f'"{listener}"'), listener=listener)
    hosts = iter(["cdn", "other"])
    ward.fake_registry.on(
        "blob",
        faults.redirected(
            lambda request: ward.fake_registry.presign(str(digest), listener=next(hosts), uses=1),
        ),
    )
    download = OneDownload(ward.registry(), digest)
    assert download.read(0, 10) == BLOB[:10]
    assert download.read() == BLOB[START:STOP]


# Redirects


@pytest.mark.parametrize("first_is_whole", [False, True])
def test_a_url_that_the_registry_redirected_to_is_used_again(ward: Ward, digest: Digest, first_is_whole: bool) -> None:  # noqa: FBT001
    """For all ranges of a download: one request each. Another download asks for itself."""
    redirect_to_cdn(ward, digest)
    registry = ward.registry()
    download = OneDownload(registry, digest)
    download.read(0, None if first_is_whole else 10)
    for start in range(100, 500, 100):
        assert download.read(start, start + 10) == BLOB[start : start + 10]
    assert (ward.fake_registry.count("blob"), ward.fake_registry.count("cdn")) == (1, 5)
    assert OneDownload(registry, digest).read() == BLOB[START:STOP]
    assert ward.fake_registry.count("blob") == 2


def test_a_whole_blob_is_always_requested_from_the_registry(ward: Ward, digest: Digest) -> None:
    """As a download without ranges does."""
    redirect_to_cdn(ward, digest)
    download = OneDownload(ward.registry(), digest)
    for start in (0, 1000):
        assert download.read(start, None) == BLOB[start:]
    assert ward.fake_registry.count("blob") == 2


def test_a_redirect_within_the_registry_is_used_again_with_its_login(ward: Ward, digest: Digest) -> None:
    """Another path of the same server requires the token too."""
    FakeTokenService(ward.fake_registry, login=basic("ann", "s3cret-pass"))
    repo_path = f"/v2/other/app/blobs/{digest}"
    ward.fake_registry.on("blob", faults.redirected(repo_path), repo="lib/app")
    download = OneDownload(ward.registry(auth=BASIC), digest)
    for start in (0, 100, 200):
        assert download.read(start, start + 10) == BLOB[start : start + 10]
    asked = [each for each in ward.fake_registry.received("blob", repo="lib/app") if each.status == 307]
    assert len(asked) == 1


def test_a_login_is_not_sent_to_the_host_of_a_url_that_is_used_again(ward: Ward, digest: Digest) -> None:
    """As with each redirect."""
    FakeTokenService(ward.fake_registry, login=basic("ann", "s3cret-pass"))
    ward.fake_registry.listen("cdn")
    place = ward.fake_registry.presign(str(digest), listener="cdn")
    ward.fake_registry.on(
        "blob",
        lambda request, response: faults.redirected(place)(request, response) if response.status < 400 else response,
    )
    download = OneDownload(ward.registry(auth=BASIC), digest)
    for start in (0, 100):
        assert download.read(start, start + 10) == BLOB[start : start + 10]
    assert [each.request.header("Authorization") for each in ward.fake_registry.received("cdn")] == [None, None]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_url_that_has_expired_is_requested_anew_once(ward: Ward, digest: Digest, status: int) -> None:
    """Whatever status says so: S3 403, Google 400, others 404 or 410."""
    redirect_to_cdn(ward, digest)
    download = OneDownload(ward.registry(), digest)
    for start in (0, 100):  # it is valid for more than one request
        assert download.read(start, start + 10) == BLOB[start : start + 10]
    old = ward.fake_registry.received("cdn")[0].request.target
    ward.fake_registry.on("cdn", faults.error_response(status), when=lambda request: request.target == old)
    assert download.read() == BLOB[START:STOP]
    assert (ward.fake_registry.count("blob"), ward.fake_registry.count("cdn")) == (2, 4)
    assert download.read() == BLOB[START:STOP]
    assert (ward.fake_registry.count("blob"), ward.fake_registry.count("cdn")) == (2, 5)


def test_a_url_that_expires_is_requested_anew_by_one_of_many_threads(ward: Ward, digest: Digest) -> None:
    """The others wait for it, at the first request and after it has expired."""
    redirect_to_cdn(ward, digest)
    download = OneDownload(ward.registry(), digest)
    for expected in (1, 2):
        assert together(8, download.read) == [BLOB[START:STOP]] * 8
        assert ward.fake_registry.count("blob") == expected
        ward.fake_registry.expire_presigned()


def test_urls_that_are_valid_once_are_soon_taken_as_such(ward: Ward, digest: Digest) -> None:
    """After two of them, the registry is asked for each range, and no request is in vain."""
    redirect_to_cdn(ward, digest, uses=lambda: 1)
    download = OneDownload(ward.registry(), digest)
    for start in range(0, 1000, 100):
        assert download.read(start, start + 10) == BLOB[start : start + 10]
    assert ward.fake_registry.count("blob") == 10
    refused = [each for each in ward.fake_registry.received("cdn") if each.status == 403]
    assert len(refused) == MAX_WASTED_REDIRECTS


def test_urls_that_were_used_again_may_expire_often(ward: Ward, digest: Digest) -> None:
    """They are not taken as valid once: the next ones are used again too."""
    redirect_to_cdn(ward, digest)
    download = OneDownload(ward.registry(), digest)
    for number in range(1, 2 * MAX_WASTED_REDIRECTS + 2):
        for start in (0, 100, 200):
            assert download.read(start, start + 10) == BLOB[start : start + 10]
        assert ward.fake_registry.count("blob") == number
        ward.fake_registry.expire_presigned()


@pytest.mark.parametrize("is_redirected", [True, False])
def test_ranges_that_the_registry_is_asked_for_do_not_wait_for_each_other(
    ward: Ward,
    digest: Digest,
    is_redirected: bool,  # noqa: FBT001
) -> None:
    """Once it is known that it sends them itself, or redirects to URLs that are valid once."""
    if is_redirected:
        redirect_to_cdn(ward, digest, uses=lambda: 1)
    download = OneDownload(ward.registry(limits=attrs.evolve(LIMITS, stall_timeout=60.0)), digest)
    for start in range(0, 500, 100):
        assert download.read(start, start + 10) == BLOB[start : start + 10]
    released = threading.Event()
    asked = ward.fake_registry.count("blob")
    ward.fake_registry.on("blob", faults.silent(released), times=1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(download.read)
        ward.fake_registry.wait_for(lambda: ward.fake_registry.count("blob") == asked + 1, "the first request")
        assert download.read(0, 10) == BLOB[:10]
        assert not waiting.done()
        released.set()
        assert waiting.result() == BLOB[START:STOP]


def test_a_registry_that_hangs_for_one_range_does_not_hold_up_others(
    ward: Ward, digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait for its answer, which they could use too, for a moment only."""
    monkeypatch.setattr("dockyard.upstream.blob_location.MAX_LOOKUP_WAIT_S", 0.05)
    redirect_to_cdn(ward, digest)
    download = OneDownload(ward.registry(limits=attrs.evolve(LIMITS, stall_timeout=60.0)), digest)
    released = threading.Event()
    ward.fake_registry.on("blob", faults.silent(released), times=1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(download.read)
        ward.fake_registry.wait_for(lambda: ward.fake_registry.count("blob") == 1, "the first request")
        for start in (0, 100):
            assert download.read(start, start + 10) == BLOB[start : start + 10]
        assert not waiting.done()
        released.set()
        assert waiting.result() == BLOB[START:STOP]
    assert ward.fake_registry.count("blob") == 2


def test_urls_that_are_valid_once_serve_many_threads(ward: Ward, digest: Digest) -> None:
    """With the right bytes for all."""
    redirect_to_cdn(ward, digest, uses=lambda: 1)
    download = OneDownload(ward.registry(), digest)
    for _ in range(3):
        assert together(8, download.read) == [BLOB[START:STOP]] * 8


def test_a_url_that_never_works_is_an_outage(ward: Ward, digest: Digest) -> None:
    """The registry is asked twice, as for a whole blob; its signature is in no error."""
    redirect_to_cdn(ward, digest, uses=lambda: 0)
    registry = ward.registry()
    with pytest.raises(Unavailable, match="status 403") as caught:
        OneDownload(registry, digest).open()
    assert "Signature" not in error_text(caught.value)
    assert ward.fake_registry.count("blob") == 2
    assert not registry.is_breaker_open


def test_a_blob_that_vanishes_is_unknown(ward: Ward, digest: Digest) -> None:
    """The registry says so when it is asked anew."""
    redirect_to_cdn(ward, digest)
    download = OneDownload(ward.registry(), digest)
    assert download.read() == BLOB[START:STOP]
    ward.fake_registry.remove_rules()
    ward.fake_registry.expire_presigned()
    ward.fake_registry.on("blob", faults.error_response(404, "BLOB_UNKNOWN"))
    with pytest.raises(BlobUnknown):
        download.open()


def test_access_that_was_withdrawn_is_denied(ward: Ward, digest: Digest) -> None:
    """When the URL has expired."""
    redirect_to_cdn(ward, digest)
    download = OneDownload(ward.registry(auth=BASIC), digest)
    assert download.read() == BLOB[START:STOP]
    ward.fake_registry.expire_presigned()
    ward.fake_registry.on("blob", faults.error_response(403, "DENIED"))
    with pytest.raises(Denied):
        download.open()


@pytest.mark.parametrize("how", ["refused", "silent", "broken", "200"])
def test_a_host_that_fails_is_replaced_by_another_one(ward: Ward, digest: Digest, how: str) -> None:
    """The registry is asked anew, and redirects to it."""
    for listener in ("cdn", "other"):
        ward.fake_registry.listen(listener)
    hosts = iter(["cdn", "other"])
    ward.fake_registry.on(
        "blob", faults.redirected(lambda request: ward.fake_registry.presign(str(digest), listener=next(hosts)))
    )
    download = OneDownload(ward.registry(limits=MODERATE), digest)
    assert download.read(0, 10) == BLOB[:10]
    match how:
        case "refused":
            ward.fake_registry.listeners["cdn"].close()
        case "silent":
            ward.fake_registry.on("cdn", faults.silent(), listener="cdn")
        case "broken":
            ward.fake_registry.on("cdn", faults.disconnected(), listener="cdn")
        case "200":
            ward.fake_registry.on("cdn", faults.ignoring_range(), listener="cdn")
    assert download.read() == BLOB[START:STOP]
    assert ward.fake_registry.count("blob") == 2
    assert download.read(0, 10) == BLOB[:10]
    assert ward.fake_registry.count("blob") == 2


@pytest.mark.parametrize(("status", "error"), [(429, TooManyRequests), (500, Unavailable), (503, Unavailable)])
def test_a_host_that_is_overloaded_is_not_asked_twice(
    ward: Ward, digest: Digest, status: int, error: type[RegistryError]
) -> None:
    """Nor the registry, which would redirect to it; and the circuit breaker stays closed."""
    redirect_to_cdn(ward, digest)
    registry = ward.registry()
    download = OneDownload(registry, digest)
    assert download.read(0, 10) == BLOB[:10]
    ward.fake_registry.on("cdn", faults.error_response(status))
    with pytest.raises(error):
        download.open()
    assert (ward.fake_registry.count("blob"), ward.fake_registry.count("cdn")) == (1, 2)
    assert not registry.is_breaker_open
    image = ward.fake_registry.add_image("lib/app", "latest")
    assert str(registry.head_manifest("lib/app", LATEST).digest) == image.digest


def test_an_address_that_is_not_allowed_stays_so(ward: Ward, digest: Digest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads inside when the URL is used again: its zone is checked with that of the registry."""
    zones = {"127.0.0.2": NetworkZone.PRIVATE, "127.0.0.3": NetworkZone.PRIVATE}
    pretend(monkeypatch, zones)
    at = ward.fake_registry.listen("inside", "127.0.0.2").url
    ward.fake_registry.listen("cdn", "127.0.0.3")
    ward.fake_registry.on("blob", faults.redirected(ward.fake_registry.presign(str(digest), listener="cdn")))
    download = OneDownload(ward.registry(at=at), digest)
    assert download.read(0, 10) == BLOB[:10]
    zones["127.0.0.3"] = NetworkZone.FORBIDDEN
    with pytest.raises(BadUpstream, match="not allowed"):
        download.open()
    assert ward.fake_registry.count("cdn") == 1


def test_a_url_is_in_no_log(ward: Ward, digest: Digest, caplog: pytest.LogCaptureFixture) -> None:
    """Nor in a repr."""
    redirect_to_cdn(ward, digest)
    download = OneDownload(ward.registry(), digest)
    assert download.read(0, 10) == BLOB[:10]
    ward.fake_registry.expire_presigned()
    with caplog.at_level("DEBUG"), capture_logs() as logs:
        assert download.read() == BLOB[START:STOP]
    assert "redirect is not used any more: the registry is asked anew" in [line["event"] for line in logs]
    assert "Signature" not in repr(logs)
    assert str(digest) not in repr([line for line in logs if line.get("host") == redirect_host(ward)])
    assert "Signature" not in repr(download.location.redirect)


# Outages and logins


def test_a_running_download_is_not_stopped_by_the_circuit_breaker(ward: Ward, digest: Digest) -> None:
    """But a new one is."""
    registry = ward.registry()
    running = OneDownload(registry, digest)
    assert running.read(0, 10) == BLOB[:10]
    ward.fake_registry.listener.close()
    with pytest.raises(Unavailable):
        running.open()
    ward.fake_registry.listener.open()
    with pytest.raises(Unavailable) as caught:
        OneDownload(registry, digest).open()
    assert caught.value.remembered
    assert running.read() == BLOB[START:STOP]


def test_ranges_that_are_not_supported_are_no_outage(ward: Ward, digest: Digest) -> None:
    """The registry responds."""
    registry = ward.registry()
    ward.fake_registry.on("blob", faults.error_response(501))
    for _ in range(10):
        with pytest.raises(RangesUnsupported):
            OneDownload(registry, digest).open()
    assert not registry.is_breaker_open
    assert ward.fake_registry.count("blob") == 10


def test_a_response_without_a_range_ends_a_series_of_failures(ward: Ward, digest: Digest) -> None:
    """It shows that the registry is up, as any valid response."""
    registry = ward.registry()
    for _ in range(3):
        rule = ward.fake_registry.on("blob", faults.error_response(500), times=4)
        for _ in range(4):
            with pytest.raises(Unavailable) as caught:
                OneDownload(registry, digest).open()
            assert not caught.value.remembered
        ward.fake_registry.remove_rules(rule)
        ward.fake_registry.on("blob", faults.ignoring_range(), times=1)
        with pytest.raises(RangesUnsupported):
            OneDownload(registry, digest).open()


def test_the_login_of_a_client_gets_ranges(ward: Ward, digest: Digest) -> None:
    """Where the registry decides who may pull."""
    FakeTokenService(ward.fake_registry, login=basic("ann", "s3cret-pass"))
    client = ward.registry(access="upstream").with_login(Login("ann", "s3cret-pass"))
    location = BlobLocation()
    for start in (0, 100):
        body = client.open_blob("lib/app", digest, start, start + 10, location)
        assert (body.size, read(body)) == (len(BLOB), BLOB[start : start + 10])

"""The sources of a blob for one download: the bucket, the upstream, ranges of both, and what is remembered of them."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from dockyard.cache.blob_sources import (
    WITHOUT_RANGES_FOR_S,
    BlobBody,
    BlobSources,
    RangesUnsupported,
    UpstreamsWithoutRanges,
)
from dockyard.cache.stores import Stores
from dockyard.config.settings import Auth, Upstream
from dockyard.errors import AccessDenied, BlobUnknown, LoginRequired, Outage, RegistryError, Unavailable
from dockyard.oci.login import Login
from dockyard.oci.reference import Digest, Name
from dockyard.routing import Target
from dockyard.s3.bucket import Bucket
from dockyard.s3.errors import S3Error
from dockyard.s3.outbox import Outbox
from dockyard.s3.publisher import Publisher
from dockyard.storage.local import LocalStore
from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.fake_registry import Image
from tests.support.range_habits import RANGE_HABITS, RangeHabit, hidden_size, moved, only_ranges
from tests.support.upstreams import Ward, together

BLOB = bytes(range(256)) * 8
START, STOP = 1000, 1100
RANGE = BLOB[START:STOP]


class FakeS3Body:
    """A body of the fake bucket, which breaks off before the byte `cut`."""

    is_web_page = False
    encoding = ""
    details = None
    age_s = 60.0

    def __init__(self, content: bytes, start: int, stop: int | None, etag: str, cut: int | None) -> None:
        self.size: int | None = len(content)
        self.start = start
        self.etag = etag
        self.is_closed = False
        self._at, self._cut = start, cut
        self._content = content[:stop]
        self._aborted = threading.Event()

    def read(self, amount: int) -> bytes:
        if self._aborted.is_set() or self._at == self._cut:
            raise Unavailable("the storage closed the connection")
        end = self._at + amount if self._cut is None else min(self._at + amount, self._cut)
        data = self._content[self._at : end]
        self._at += len(data)
        return data

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self._aborted.set()


class FakeS3:
    """A bucket; `opened` are the ranges that were requested of it. Its bodies break off before the byte `cut`."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.etag = '"1"'
        self.cut: int | None = None
        self.is_down = False
        self.heeds_conditions = True
        self.opened: list[tuple[int, int | None]] = []
        self.bodies: list[FakeS3Body] = []

    def open_blob(self, digest: Digest, start: int = 0, etag: str = "", stop: int | None = None) -> FakeS3Body | None:
        self.opened.append((start, stop))
        if self.is_down:
            raise S3Error("down", "broken")
        if self.content is None or (self.heeds_conditions and etag not in ("", self.etag)):
            return None
        self.bodies.append(FakeS3Body(self.content, start, stop, self.etag, self.cut))
        return self.bodies[-1]

    def stat_blob(self, digest: Digest) -> None:
        raise S3Error("down", "broken")  # probes of the circuit breaker: it stays open


@attrs.define
class Place:
    """A fake registry with BLOB, a bucket without it, and the stores of a worker."""

    ward: Ward
    s3: FakeS3
    stores: Stores
    digest: Digest
    damaged: set[Digest] = attrs.field(factory=set)
    without_ranges: UpstreamsWithoutRanges = attrs.field(factory=UpstreamsWithoutRanges)
    upstreams: dict[str, Any] = attrs.field(factory=dict)

    def sources(self, *targets: Target, digest: Digest | None = None) -> BlobSources:
        """The sources for another download."""
        if "up.test" not in self.upstreams:
            self.upstreams["up.test"] = self.ward.registry()
        return BlobSources(
            targets or [target()], digest or self.digest, self.upstreams, self.stores, self.damaged, self.without_ranges
        )

    @property
    def requests(self) -> list[str]:
        """The Range headers of the requests for blobs that reached the registry; `all` without one."""
        return [each.request.header("Range") or "all" for each in self.ward.fake_registry.received("blob", "GET")]


def target(login: Login | None = None, prefix: str = "up.test", **upstream: Any) -> Target:
    """The repository lib/app of the upstream."""
    return Target(
        Upstream(prefix, prefix, Auth("anonymous"), **upstream), "lib/app", Name.parse(f"{prefix}/lib/app"), login
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Give all that a download needs."""
    store = LocalStore(tmp_path / "store", "cache/", 0)
    store.create_directories()
    s3 = FakeS3()
    bucket = Bucket(s3)  # type: ignore[arg-type]
    publisher = Publisher(store, None, Outbox(tmp_path / "unpublished"), 0, lambda _: True)
    with Ward(tmp_path) as ward:
        digest = Digest.parse(ward.fake_registry.add_blob(BLOB))
        yield Place(ward, s3, Stores(store, bucket, publisher), digest)
        bucket.close()


def read(body: BlobBody) -> bytes:
    """All bytes of a body, which is closed."""
    pieces = []
    try:
        while piece := body.read(1000):
            pieces.append(piece)
    finally:
        body.close()
    return b"".join(pieces)


def read_range(sources: BlobSources, start: int = START, stop: int = STOP) -> bytes:
    """The bytes of a range."""
    body = sources.open_range(start, stop)
    assert (body.size, body.start) == (len(BLOB), start)
    return read(body)


# The upstream


def test_a_range_comes_from_the_upstream(place: Place) -> None:
    """If the bucket does not have the blob: it is asked once."""
    sources = place.sources()
    assert sources.supports_ranges
    for start in (0, 100, 200):
        assert read_range(sources, start, start + 10) == BLOB[start : start + 10]
    assert place.requests == ["bytes=0-9", "bytes=100-109", "bytes=200-209"]
    assert len(place.s3.opened) == 1
    assert (sources.used_upstream, sources.used_bucket) == (True, False)
    assert sources.details is not None


def test_ranges_are_read_by_several_threads(place: Place) -> None:
    """While another one reads the whole blob."""
    sources = place.sources()
    whole = sources.open(0)
    starts = iter(range(0, 2048, 128))
    lock = threading.Lock()

    def one() -> bool:
        with lock:
            start = next(starts)
        return read_range(sources, start, start + 128) == BLOB[start : start + 128]

    assert together(16, one) == [True] * 16
    assert read(whole) == BLOB
    assert len(place.requests) == 17


def test_the_url_of_the_whole_blob_serves_the_ranges(place: Place) -> None:
    """A range of a running download costs one request, at the storage of the registry."""
    fake_registry = place.ward.fake_registry
    fake_registry.listen("cdn")
    fake_registry.on("blob", faults.redirected(lambda _: fake_registry.presign(str(place.digest), listener="cdn")))
    sources = place.sources()
    whole = sources.open(0)
    assert read_range(sources) == RANGE
    assert read(whole) == BLOB
    assert (fake_registry.count("blob"), fake_registry.count("cdn")) == (1, 2)


@pytest.mark.parametrize("habit", [habit for habit in RANGE_HABITS if not habit.is_usable], ids=str)
def test_what_a_server_does_with_ranges_is_remembered(place: Place, habit: RangeHabit) -> None:
    """For all its blobs, or for the download of this one. The whole blob can be had."""
    other = Digest.parse(place.ward.fake_registry.add_blob(BLOB[::-1]))
    place.ward.fake_registry.on("blob", habit.change)
    sources = place.sources()
    with pytest.raises(RangesUnsupported):
        sources.open_range(START, STOP)
    assert not sources.supports_ranges
    with pytest.raises(RangesUnsupported):
        sources.open_range(START, STOP)
    assert place.requests == ["bytes=1000-1099"]
    assert read(sources.open(0)) == BLOB
    assert place.sources(digest=other).supports_ranges != habit.concerns_all_blobs
    assert (sources.used_upstream, place.requests) == (True, ["bytes=1000-1099", "all"])


def test_nothing_was_used_of_a_source_without_ranges(place: Place) -> None:
    """So the blob is not taken for one that came from the upstream."""
    place.ward.fake_registry.on("blob", faults.ignoring_range())
    sources = place.sources()
    with pytest.raises(RangesUnsupported):
        sources.open_range(START, STOP)
    assert not sources.used_upstream


def test_an_upstream_is_asked_for_ranges_again_later() -> None:
    """After ten minutes; each upstream on its own."""
    now = 0.0
    without_ranges = UpstreamsWithoutRanges(lambda: now)
    without_ranges.add("a.test", "status 200")
    now = WITHOUT_RANGES_FOR_S - 1
    assert "a.test" in without_ranges
    assert "b.test" not in without_ranges
    now = WITHOUT_RANGES_FOR_S + 1
    assert "a.test" not in without_ranges


def test_one_upstream_without_ranges_does_not_concern_another_one(place: Place) -> None:
    """Also for the same blob."""
    place.upstreams["other.test"] = place.ward.registry(at=place.ward.fake_registry.listen("other").url)
    place.ward.fake_registry.on("blob", faults.ignoring_range(), listener="registry")
    with pytest.raises(RangesUnsupported):
        place.sources().open_range(START, STOP)
    assert read_range(place.sources(target(prefix="other.test"))) == RANGE


@pytest.mark.parametrize("how", ["whole blob", "manifest", "HEAD"])
def test_a_size_that_ranges_hide_is_found_elsewhere(place: Place, how: str) -> None:
    """In another response, in a stored manifest, or by HEAD."""
    place.ward.fake_registry.on("blob", only_ranges(hidden_size()))
    sources = place.sources()
    if how == "whole blob":
        sources.open(0).close()
    if how == "manifest":
        store_manifest(place, place.ward.fake_registry.add_image("lib/app", "latest", [BLOB]))
    assert read_range(sources) == RANGE
    assert place.ward.fake_registry.count("blob", "HEAD") == (1 if how == "HEAD" else 0)


def test_without_a_size_there_are_no_ranges(place: Place) -> None:
    """Nobody could say where the blob ends."""
    place.ward.fake_registry.on("blob", only_ranges(hidden_size()))
    place.ward.fake_registry.on("blob", faults.error_response(500), method="HEAD")
    sources = place.sources()
    with pytest.raises(RangesUnsupported):
        sources.open_range(START, STOP)
    assert read(sources.open(0)) == BLOB


def store_manifest(place: Place, image: Image) -> None:
    """Store the manifest of an image locally."""
    place.stores.local.write_manifest(target().name, Digest.parse(image.digest), image.body)


@pytest.mark.parametrize("is_size_known", [True, False])
def test_a_range_that_is_labelled_as_encoded_needs_the_size_of_the_manifest(place: Place, is_size_known: bool) -> None:  # noqa: FBT001
    """A server that encodes what it sends has another size; a wrong label does not matter."""
    if is_size_known:
        store_manifest(place, place.ward.fake_registry.add_image("lib/app", "latest", [BLOB]))
    place.ward.fake_registry.on("blob", faults.header("Content-Encoding", "gzip"))
    sources = place.sources()
    if is_size_known:
        assert read_range(sources) == RANGE
        return
    with pytest.raises(RangesUnsupported, match="encoded"):
        sources.open_range(START, STOP)
    assert read(sources.open(0)) == BLOB
    assert place.sources().supports_ranges


@pytest.mark.parametrize("hides_size", [True, False])
def test_ranges_of_encoded_bytes_are_not_used(place: Place, hides_size: bool) -> None:  # noqa: FBT001
    """Their size is not that of the blob, or it is not known."""
    store_manifest(place, place.ward.fake_registry.add_image("lib/app", "latest", [BLOB]))
    place.ward.fake_registry.on("blob", only_ranges(faults.header("Content-Encoding", "gzip")))
    place.ward.fake_registry.on("blob", only_ranges(hidden_size() if hides_size else moved(total=-100)))
    with pytest.raises(RangesUnsupported, match="encoded"):
        place.sources().open_range(START, STOP)


def test_an_outage_is_an_outage(place: Place) -> None:
    """And says nothing about ranges."""
    rule = place.ward.fake_registry.on("blob", faults.error_response(503))
    sources = place.sources()
    with pytest.raises(Unavailable):
        sources.open_range(START, STOP)
    assert sources.supports_ranges
    place.ward.fake_registry.remove_rules(rule)
    assert read_range(sources) == RANGE


def test_a_blob_that_is_unknown_is_unknown(place: Place) -> None:
    """As with `open`."""
    with pytest.raises(BlobUnknown):
        place.sources(digest=Digest.parse(digest_of(b"nothing"))).open_range(START, STOP)


# Logins


ANN, BOB = Login("ann", "a"), Login("bob", "b")


class DecidingUpstream:
    """An upstream that refuses some logins. `asked` are the logins with which blobs were opened."""

    def __init__(self, opener: Any) -> None:
        self.opener = opener
        self.refused: dict[Login | None, RegistryError] = {}
        self.asked: list[Login | None] = []
        self.locations: list[object] = []

    def with_login(self, login: Login | None) -> "LoginOpener":
        return LoginOpener(self, login)


@attrs.frozen
class LoginOpener:
    """The upstream, used with one login."""

    upstream: DecidingUpstream
    login: Login | None

    def open_blob(self, repository: str, digest: Digest, start: int, stop: int | None, location: Any) -> Any:
        self.upstream.asked.append(self.login)
        if error := self.upstream.refused.get(self.login):
            raise error.copy()
        self.upstream.locations.append(location)
        return self.upstream.opener.open_blob(repository, digest, start, stop, location)


@pytest.mark.parametrize("error", [AccessDenied("no"), LoginRequired("no"), BlobUnknown("no")], ids=repr)
def test_a_refused_login_is_replaced_by_that_of_another_reader(place: Place, error: RegistryError) -> None:
    """And that one is used from then on. What one login was shown is not used with another one."""
    upstream = DecidingUpstream(place.ward.registry())
    place.upstreams["up.test"] = upstream
    targets = [target(login, access="upstream") for login in (ANN, BOB)]
    sources = place.sources(*targets)
    assert read_range(sources) == RANGE
    upstream.refused[ANN] = error
    for _ in range(2):
        assert read_range(sources) == RANGE
    assert upstream.asked == [ANN, ANN, BOB, BOB]
    first, second, third = upstream.locations
    assert first is not second
    assert second is third
    upstream.refused[BOB] = error
    with pytest.raises(type(error)):
        sources.open_range(START, STOP)
    assert sources.target is targets[1]


# The bucket


def test_a_range_comes_from_the_bucket_if_that_has_the_blob(place: Place) -> None:
    """However many there are; the upstream is not asked, and need not support ranges."""
    place.s3.content = BLOB
    place.without_ranges.add("up.test", "status 200")
    sources = place.sources()
    for start in range(0, 500, 100):
        assert read_range(sources, start, start + 10) == BLOB[start : start + 10]
    assert place.s3.opened == [(start, start + 10) for start in range(0, 500, 100)]
    assert sources.supports_ranges
    assert (sources.used_upstream, sources.used_bucket, sources.bucket_age_s) == (False, True, 60.0)
    assert all(body.is_closed for body in place.s3.bodies)
    assert place.requests == []


def test_a_bucket_that_breaks_off_twice_is_given_up(place: Place) -> None:
    """The upstream continues."""
    place.s3.content, place.s3.cut = BLOB, 1050
    sources = place.sources()
    for _ in range(2):
        body = sources.open_range(START, STOP)
        assert body.read(1000) == BLOB[1000:1050]
        with pytest.raises(Outage):
            body.read(1000)
        body.close()
    assert read_range(sources) == RANGE
    assert (len(place.s3.opened), place.requests) == (2, ["bytes=1000-1099"])
    assert (sources.used_upstream, sources.used_bucket) == (True, True)


def test_ranges_of_the_bucket_that_are_aborted_do_not_count(place: Place) -> None:
    """The download itself has ended them."""
    place.s3.content = BLOB
    sources = place.sources()
    for _ in range(5):
        body = sources.open_range(START, STOP)
        body.abort()
        with pytest.raises(Outage):
            body.read(10)
        body.close()
    assert read_range(sources) == RANGE
    assert place.requests == []


@pytest.mark.parametrize(
    "change", [{"content": BLOB + b"x"}, {"etag": '"2"'}, {"etag": '"2"', "heeds_conditions": False}]
)
def test_an_object_that_has_changed_is_not_used(place: Place, change: dict[str, Any]) -> None:
    """Its ranges may be those of other bytes."""
    place.s3.content = BLOB
    sources = place.sources()
    assert read_range(sources) == RANGE
    for name, value in change.items():
        setattr(place.s3, name, value)
    for _ in range(2):
        assert read_range(sources) == RANGE
    assert (len(place.s3.opened), len(place.requests)) == (2, 2)
    assert all(body.is_closed for body in place.s3.bodies)


def test_an_object_of_another_size_than_the_upstream_announced_is_not_used(place: Place) -> None:
    """The bucket has it since the download began."""
    sources = place.sources()
    place.s3.is_down = True
    sources.open(0).close()
    place.s3.is_down, place.s3.content = False, BLOB + b"x"
    place.stores.bucket._is_open = False  # it is available again
    assert read_range(sources) == RANGE


def test_the_upstream_may_contradict_the_bucket(place: Place) -> None:
    """Then the blob is read as a whole, and its digest decides."""
    place.s3.content = BLOB + b"x"
    sources = place.sources()
    body = sources.open_range(START, STOP)
    assert body.size == len(BLOB) + 1
    body.close()
    sources._bucket_attempts = 0
    with pytest.raises(RangesUnsupported):
        sources.open_range(START, STOP)
    sources.exclude_bucket()
    assert read(sources.open(0)) == BLOB


def test_a_bucket_with_wrong_bytes_is_not_used_for_ranges(place: Place) -> None:
    """In this download and the next ones."""
    place.s3.content = BLOB + b"x"
    sources = place.sources()
    sources.open_range(START, STOP).close()
    sources.exclude_bucket()
    assert read_range(sources) == RANGE
    assert read_range(place.sources()) == RANGE
    assert len(place.s3.opened) == 1


@pytest.mark.parametrize("break_upstream", [faults.error_response(503), faults.error_response(429)])
def test_a_bucket_that_was_unavailable_is_tried_if_the_upstream_fails(
    place: Place, break_upstream: Callable[..., Any]
) -> None:
    """As for a whole blob."""
    place.s3.is_down = True
    sources = place.sources()
    assert read_range(sources) == RANGE
    place.s3.is_down, place.s3.content = False, BLOB
    place.ward.fake_registry.on("blob", break_upstream)
    assert read_range(sources) == RANGE
    assert sources.used_bucket
    assert len(place.s3.opened) == 2

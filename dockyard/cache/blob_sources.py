"""Where a download reads a blob from: the bucket if it has the blob, else the upstream.

A response of the bucket that breaks off is requested once more where it broke; after that the upstream continues. A
bucket whose copy of a blob had a wrong digest is not asked for that blob again, until a download of it has succeeded.

A download may also read ranges, several at the same time. If an upstream sends no ranges, or others than requested,
this is remembered for all blobs of this upstream (`UpstreamsWithoutRanges`); if what it sends for one blob contradicts
itself, for the download of this blob. The blob is then read from one response.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import structlog
from cachetools import TTLCache

from dockyard.cache.client_logins import find_client, may_be_due_to_login
from dockyard.cache.stores import Stores
from dockyard.errors import FailureDetails, Outage, RegistryError, TooManyRequests
from dockyard.oci.manifest import find_blob_size
from dockyard.oci.reference import Digest
from dockyard.routing import Target
from dockyard.s3.blob_stream import S3BlobStream
from dockyard.upstream.blob_location import BlobLocation
from dockyard.upstream.errors import RangesUnsupported

__all__ = ["BlobBody", "BlobOpener", "BlobSources", "RangesUnsupported", "UpstreamsWithoutRanges"]

MAX_BUCKET_ATTEMPTS = 2
WITHOUT_RANGES_FOR_S = 600.0
MAX_UPSTREAMS_WITHOUT_RANGES = 1024

log = structlog.get_logger()


class BlobBody(Protocol):
    """The body of a blob that is being received.

    `start` is the offset of its first byte, `size` the size of the whole blob; None when the source does not say.
    `is_web_page`: it may be a login form.
    `encoding` is the Content-Encoding that the source declares, which is ignored; empty for none.
    """

    size: int | None
    is_web_page: bool
    start: int
    encoding: str

    @property
    def details(self) -> FailureDetails | None:
        """What the log says if its bytes are wrong; None if there is nothing to say."""

    def read(self, max_bytes: int, /) -> bytes:
        """Read up to `max_bytes`; empty only at the correct end. Raises Outage when it breaks off or stalls."""

    def close(self) -> None:
        """Release the connection."""

    def abort(self) -> None:
        """Make a `read` in another thread fail."""


class BlobOpener(Protocol):
    """The part of an upstream's client that opens blobs and finds their sizes."""

    def open_blob(
        self,
        repository: str,
        digest: Digest,
        start: int = 0,
        stop: int | None = None,
        location: BlobLocation | None = None,
    ) -> BlobBody:
        """Open a blob at a byte, to before `stop` if it is given. `location` is what the download knows of the blob.

        Raises RegistryError; with `stop` also RangesUnsupported.
        """

    def head_blob(self, repository: str, digest: Digest) -> int:
        """The size of a blob in bytes. Raises RegistryError."""


class UpstreamsWithoutRanges:
    """The prefixes of upstreams that were found not to support ranges, each for WITHOUT_RANGES_FOR_S. For threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._prefixes: TTLCache[str, bool] = TTLCache(MAX_UPSTREAMS_WITHOUT_RANGES, WITHOUT_RANGES_FOR_S, clock)

    def add(self, prefix: str, reason: str) -> None:
        with self._lock:
            is_new = prefix not in self._prefixes
            self._prefixes[prefix] = True
        if is_new:
            log.info(
                "an upstream does not support ranges: each of its blobs is downloaded over one connection",
                upstream=prefix,
                reason=reason,
            )

    def __contains__(self, prefix: str) -> bool:
        with self._lock:
            return prefix in self._prefixes


class BlobSources:
    """The sources of one blob, in their order, for one download. `open_range` is for several threads.

    `targets` are those of the readers of the download, of which more may come. The first one is used until its upstream
    refuses it, then another one. `upstreams` are the clients of the upstreams, by prefix. `damaged` are the blobs, of
    all downloads of this worker, whose copy in the bucket had a wrong digest; `without_ranges` are the upstreams that
    do not support ranges. `used_bucket` and `used_upstream` say afterwards what was read; `bucket_age_s` is the age of
    the bucket's copy. `encoding` is the Content-Encoding that the upstream declared, `details` what the log says of its
    response. `tried_targets`: how many targets there were when the upstream had refused the last one.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        digest: Digest,
        upstreams: Mapping[str, BlobOpener],
        stores: Stores,
        damaged: set[Digest],
        without_ranges: UpstreamsWithoutRanges | None = None,
    ) -> None:
        self.digest = digest
        self.used_bucket = False
        self.used_upstream = False
        self.bucket_age_s = 0.0
        self.encoding = ""
        self.details: FailureDetails | None = None
        self.tried_targets = 0
        self._targets = targets
        self._target_number = 0
        self._upstreams = upstreams
        self._bucket = stores.bucket
        self._local = stores.local
        self._damaged = damaged
        self._bucket_attempts = 0 if digest in damaged else MAX_BUCKET_ATTEMPTS
        self._etag = ""
        self._lock = threading.Lock()
        self._without_ranges = without_ranges or UpstreamsWithoutRanges()
        self._is_without_ranges = False
        self._locations: dict[int, BlobLocation] = {}  # by the number of the target
        self._size: int | None = None

    @property
    def target(self) -> Target:
        """The target with which the upstream is asked."""
        return self._targets[self._target_number]

    def open(self, start: int) -> BlobBody:
        """Open the blob at a byte. Raises RegistryError."""
        if body := self._open_in_bucket(start):
            return body
        try:
            body = self._open_upstream(start)
        except (Outage, TooManyRequests):
            if self._bucket.is_open and (body := self._open_in_bucket(start, even_if_open=True)):
                return body
            raise
        self._size = body.size or self._size
        self._record_use(body)
        return body

    @property
    def supports_ranges(self) -> bool:
        """Whether `open_range` may succeed, as far as is known."""
        if self.used_bucket and self._bucket_attempts:
            return True
        return not self._is_without_ranges and self.target.upstream.prefix not in self._without_ranges

    def open_range(self, start: int, stop: int) -> BlobBody:
        """Open the bytes of the blob from `start` to before `stop`, or to its end. For several threads.

        `size` of the body is that of the blob. A body that is too short raises an Outage at its end. Raises
        RangesUnsupported if the blob must be read with `open`, and RegistryError.
        """
        if range_ := self._open_range_in_bucket(start, stop):
            return range_
        if not self.supports_ranges:
            raise RangesUnsupported(f"{self.target.upstream.prefix} sent no range before")
        try:
            body = self._open_upstream(start, stop)
            self._check_range(body)
        except RangesUnsupported:
            self._is_without_ranges = True
            raise
        except (Outage, TooManyRequests):
            if self._bucket.is_open and (range_ := self._open_range_in_bucket(start, stop, even_if_open=True)):
                return range_
            raise
        self._record_use(body)
        return body

    def _record_use(self, body: BlobBody) -> None:
        """A body of the upstream is read."""
        self.used_upstream = True
        self.encoding, self.details = body.encoding, body.details

    def _check_range(self, body: BlobBody) -> None:
        """Complete the size of a range, and check it. Raises RangesUnsupported, with the body closed.

        A range of encoded bytes is not one of the blob. Registries that say so of files that are archives send them as
        they are, and thus with the size that the manifest announces.
        """
        is_encoded = body.encoding and (body.size is None or body.size != self._find_size_in_manifests())
        if body.size is None and not is_encoded:
            body.size = self._size or self.find_size()
        if is_encoded or body.size is None or self._size not in (None, body.size):
            body.close()
            problem = "declares a blob to be encoded" if is_encoded else "announces no size of a blob, or two"
            raise RangesUnsupported(f"the upstream {problem}")
        self._size = body.size

    def _open_upstream(self, start: int, stop: int | None = None) -> BlobBody:
        """Open the blob with the present target, else with the first other one that works.

        Raises RegistryError; with `stop` also RangesUnsupported.
        """
        number, tried = self._target_number, set[int]()
        while True:
            target = self._targets[number]
            tried.add(number)
            try:
                client = find_client(self._upstreams, target)
                body = client.open_blob(target.repository, self.digest, start, stop, self._location(number))
            except RangesUnsupported as exc:
                if exc.concerns_all_blobs:
                    self._without_ranges.add(target.upstream.prefix, str(exc))
                raise
            except RegistryError as exc:
                self.tried_targets = len(self._targets)
                untried = [other for other in range(self.tried_targets) if other not in tried]
                if not untried or not may_be_due_to_login(exc):
                    raise
                number = untried[0]
            else:
                self._target_number = number
                return body

    def _location(self, number: int) -> BlobLocation:
        """What is known of the blob with a target: what one login was shown is not used with another one."""
        with self._lock:
            return self._locations.setdefault(number, BlobLocation())

    def find_size(self) -> int | None:
        """The size of the blob, if its body does not tell: from a stored manifest, from the bucket, else by HEAD."""
        if (size := self._find_size_in_manifests()) is not None:
            return size
        found = self._bucket.read(lambda s3: s3.stat_blob(self.digest)) if self._bucket_attempts else None
        if found is not None and found.size:
            return found.size
        try:
            return find_client(self._upstreams, self.target).head_blob(self.target.repository, self.digest)
        except RegistryError:
            return None  # no manifest and no source tells it

    def _find_size_in_manifests(self) -> int | None:
        sizes = (find_blob_size(body, self.digest) for body in self._local.manifests_of(self.target.name))
        return next((size for size in sizes if size is not None), None)

    def exclude_bucket(self) -> None:
        """The bucket's copy is damaged: use the upstream only, from the first byte."""
        self._damaged.add(self.digest)
        with self._lock:
            self._bucket_attempts = 0
            self.used_bucket = False
            self._size = None

    def mark_verified(self) -> None:
        """The bytes that were read have the right digest."""
        self._damaged.discard(self.digest)

    def _open_in_bucket(self, start: int, *, even_if_open: bool = False) -> BlobBody | None:
        if not self._bucket_attempts:
            return None
        body = self._bucket.read(lambda s3: s3.open_blob(self.digest, start, self._etag), even_if_open=even_if_open)
        if body is None:
            if not self._bucket.is_open:
                self._bucket_attempts = 0  # the bucket does not have it
            return None
        with self._lock:
            self._bucket_attempts -= 1
            self._record_use_of_bucket(body)
        return body

    def _record_use_of_bucket(self, body: S3BlobStream) -> None:
        self._etag, self.bucket_age_s, self.used_bucket = body.etag, body.age_s, True
        self._size = body.size

    def _open_range_in_bucket(self, start: int, stop: int, *, even_if_open: bool = False) -> BlobBody | None:
        """Open a range in the bucket. Only a range that breaks off counts as an attempt."""
        if not self._bucket_attempts:
            return None
        body = self._bucket.read(
            lambda s3: s3.open_blob(self.digest, start, self._etag, stop), even_if_open=even_if_open
        )
        with self._lock:
            is_same = body is not None and self._etag in ("", body.etag) and self._size in (None, body.size)
            if body is not None and is_same and self._bucket_attempts:
                self._record_use_of_bucket(body)
                return _BucketRange(body, self._count_bucket_failure)
            if body is not None or not self._bucket.is_open:
                self._bucket_attempts = 0  # the bucket does not have it, or has something else
        if body is not None:
            body.close()
        return None

    def _count_bucket_failure(self) -> None:
        with self._lock:
            self._bucket_attempts = max(self._bucket_attempts - 1, 0)


class _BucketRange:
    """A range that is read from the bucket. `on_failure` is called if it breaks off, unless it is aborted."""

    is_web_page = False
    encoding = ""
    details: FailureDetails | None = None

    def __init__(self, body: S3BlobStream, on_failure: Callable[[], object]) -> None:
        self.size = body.size
        self.start = body.start
        self._body = body
        self._on_failure = on_failure
        self._is_aborted = False

    def read(self, max_bytes: int) -> bytes:
        try:
            return self._body.read(max_bytes)
        except Outage:
            if not self._is_aborted:
                self._on_failure()
            raise

    def close(self) -> None:
        self._body.close()

    def abort(self) -> None:
        self._is_aborted = True
        self._body.abort()

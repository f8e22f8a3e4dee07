"""The thread of a download: fetch one blob into its partial file, verify it, keep it, and have it published.

A source that breaks off is opened again at the byte reached (`cache.retries`). The job reports its progress, and that
what it received is verified.

Most blobs are received in one response, in order. Two kinds are received in ranges (`cache.ranged_fetch`): blobs above
MIN_PARALLEL_BYTES, over `upstream.connections` connections, and those of upstreams with `lazy`, so that readers may
request what is ahead. Where the source has no ranges, or the disk is full, the blob is received in order after all.

A download that ends early, because the source is unavailable or the server stops, leaves its partial file. The next
download of the blob, in any worker and also after a restart, hashes what is there and requests the rest.

A source may not send the size. For a blob of more than 1 MiB it is then looked up elsewhere, so that readers need not
wait for the last byte. The digest decides: a blob that is right but has another size is kept, and only the readers that
got the wrong size get an error.
"""

import threading
from collections.abc import Callable

import attrs
import structlog

from dockyard import metrics
from dockyard.cache.blob_sources import BlobBody, BlobSources, RangesUnsupported
from dockyard.cache.download import MAX_SMALL_BYTES
from dockyard.cache.ranged_fetch import (
    LARGE_SEGMENT_BYTES,
    SMALL_SEGMENT_BYTES,
    CannotWriteAhead,
    Ended,
    RangedFetch,
)
from dockyard.cache.retries import Retries
from dockyard.cache.stores import Stores
from dockyard.errors import (
    AccessDenied,
    BadUpstream,
    FailureDetails,
    LoginRequired,
    RegistryError,
    TooManyRequests,
    Unavailable,
    UpstreamTimeout,
)
from dockyard.http1.encoding import describe
from dockyard.log import is_debug
from dockyard.oci.ranges import ByteRange
from dockyard.storage.items import BlobItem
from dockyard.storage.partial_file import UNREADABLE, NoReadersLeft, OverflowFull, PartialFile

CHUNK_BYTES = 256 * 1024
MIN_PARALLEL_BYTES = 1024 * 1024 * 1024
# Below MIN_PARALLEL_BYTES, a blob that is received in ranges needs two connections, so that none waits for the next.
LAZY_CONNECTIONS = 2
MAX_REQUEST_BYTES = 2 * SMALL_SEGMENT_BYTES
MAX_EARLY_REQUESTS = 64
TOO_LARGE = "a layer is too large to be kept: it is passed through, and nothing is evicted for it"

log = structlog.get_logger()


class Stopped(Exception):
    """The server is shutting down."""


class _NotInRanges(Exception):
    """The rest of the blob must be received in order."""


class _TooLargeToKeep(Exception):
    """More was received than may be kept, and the size is unknown: it cannot be passed through either."""


@attrs.frozen
class RangeSettings:
    """How blobs are received in ranges.

    `connections` to the upstream for one blob. `is_lazy`: readers may request what is ahead; `is_on_demand`: then
    nothing else is received. `is_for_range`: the first reader is about to do so.
    """

    connections: int = 1
    is_lazy: bool = False
    is_on_demand: bool = False
    is_for_range: bool = False


class DownloadJob:
    """Fetches the blob of `sources` into `partial_file`.

    The callbacks run in threads of the job: `on_start()` first; `on_progress()` when the size becomes known and when
    bytes were received; `on_verified(size)` when size and digest are right, before the blob is kept.
    """

    def __init__(
        self,
        partial_file: PartialFile,
        sources: BlobSources,
        stores: Stores,
        ranges: RangeSettings,
        *,
        on_start: Callable[[], object],
        on_progress: Callable[[], object],
        on_verified: Callable[[int], object],
    ) -> None:
        self._partial_file = partial_file
        self._sources = sources
        self._stores = stores
        self._ranges = ranges
        self._on_start = on_start
        self._on_progress = on_progress
        self._on_verified = on_verified
        self._retries = Retries()
        self._body: BlobBody | None = None
        self._is_streaming_to_bucket = False
        self._expected_size: int | None = None  # from elsewhere
        self._was_size_sought = False
        self._is_web_page = False
        self._left_bytes = partial_file.present_bytes  # by a former download
        self._stop = threading.Event()
        self._mutex = threading.Lock()
        self._ranged_fetch: RangedFetch | None = None
        self._early_requests: list[ByteRange] = []
        self._is_requested = False
        self._is_all_requested = False
        self.has_sent_wrong_ranges = False

    def run(self) -> None:
        """Fetch, verify, keep, publish. Blocks.

        Raises RegistryError when the blob cannot be had, is wrong, or cannot be read back; Stopped; NoReadersLeft.
        """
        with metrics.fills_running.track_inprogress():
            self._on_start()
            try:
                try:
                    self._fetch()
                except BadUpstream as exc:
                    self._exclude_damaged(exc)
                    self._fetch()
            except OverflowFull as exc:
                self._give_up(exc)
                raise Unavailable(
                    "there is no disk space for this layer, and no memory to pass it through without", retry_after_s=5
                ) from exc
            except _TooLargeToKeep as exc:
                self._give_up(exc)
                raise BadUpstream("the layer is larger than this cache keeps, and the upstream sends no size") from exc
            except OSError as exc:
                self._give_up(exc)
                log.warning(
                    "cannot read back what was received of a blob: it is discarded",
                    digest=str(self._sources.digest),
                    error=exc.strerror,
                )
                raise Unavailable(
                    "what was received of it cannot be read back",
                    retry_after_s=1,
                    details=FailureDetails(error=str(exc)),
                ) from exc
            except Exception as exc:
                self._give_up(exc)
                raise
            self._keep(self._partial_file.received_bytes)

    def stop(self) -> None:
        """End the job, from another thread."""
        self._stop.set()
        if body := self._body:
            body.abort()
        with self._mutex:
            if self._ranged_fetch:
                self._ranged_fetch.end()

    def request(self, part: ByteRange) -> None:
        """Receive these bytes before others, if that is possible; from another thread. Does not block.

        A part of more than MAX_REQUEST_BYTES is a request for all: then the whole blob is received in any case.
        """
        with self._mutex:
            if part.length > MAX_REQUEST_BYTES:
                self._is_all_requested = True
                if self._ranged_fetch:
                    self._ranged_fetch.request_all(self._connections)
                return
            self._is_requested = True
            if self._ranged_fetch:
                self._ranged_fetch.request(part)
            elif len(self._early_requests) < MAX_EARLY_REQUESTS and part not in self._early_requests:
                self._early_requests.append(part)

    # Fetch and verify

    def _exclude_damaged(self, exc: BadUpstream) -> None:
        """Prepare to fetch again without the bucket, or without the bytes that were left, if these may be wrong.

        Else raises the error, and also when readers may have got some of the bytes.
        """
        if not self._sources.used_bucket and not self._left_bytes:
            raise exc
        digest = str(self._sources.digest)
        if self._sources.used_bucket:
            log.warning("damaged blob in the bucket: it is fetched from the upstream", digest=digest)
            self._sources.exclude_bucket()
        if self._may_have_been_read():
            raise exc
        self._left_bytes = 0
        self._expected_size = None
        self._partial_file.restart()
        self._is_streaming_to_bucket = False

    def _may_have_been_read(self) -> bool:
        """Whether readers may have got some of the bytes; nothing of a small blob is released before it is verified."""
        size = self._partial_file.size
        return bool(self._partial_file.present_bytes) and size is not None and size > MAX_SMALL_BYTES

    def _fetch(self) -> None:
        """Fetch until size and digest are right."""
        written_before = self._partial_file.written_bytes
        self._partial_file.begin()
        try:
            self._partial_file.wait_for_memory()
            self._hash_left_bytes()
            if not self._is_left_complete():
                self._receive_all()
            self._verify()
        except Exception as exc:
            metrics.fills.labels(type(exc).__name__).inc()
            raise
        finally:
            source = "upstream" if self._sources.used_upstream else "bucket"
            metrics.received_bytes.labels(source).inc(self._partial_file.written_bytes - written_before)
        self._sources.mark_verified()

    def _hash_left_bytes(self) -> None:
        """Hash what a former download has left. What cannot be read back is received again."""
        try:
            self._partial_file.hash_existing_bytes()
        except OSError as exc:
            log.warning(UNREADABLE, digest=str(self._sources.digest), error=exc.strerror)
            self._left_bytes = 0
            self._partial_file.restart()

    def _is_left_complete(self) -> bool:
        """Whether a former download has received everything, and ended just before it was stored."""
        return bool(self._left_bytes) and self._partial_file.has_correct_digest()

    def _verify(self) -> None:
        if not self._partial_file.has_correct_digest():
            event = "wrong digest: the blob is discarded"
            if self._left_bytes:
                event = "a partial file of a former download was damaged: it is discarded"
            if self._is_requested:
                event = "wrong digest: the blob is discarded, of which clients were sent ranges before it was verified"
                metrics.wrong_ranges.inc()
                self.has_sent_wrong_ranges = True
            server = {"host": self._sources.details.host} if self._sources.details else {}
            report = log.error if self._is_requested else log.warning
            report(event, digest=str(self._sources.digest), **server)
            sent = "a web page instead of" if self._is_web_page else "wrong bytes for"
            note = describe(self._sources.encoding)
            message = f"the upstream sent {sent} {self._sources.digest}{note}"
            raise BadUpstream(message, details=self._explain_digest())

    def _explain_digest(self) -> FailureDetails | None:
        """The details of the source whose bytes have another digest, for the log."""
        details = self._sources.details
        if details is None:
            return None
        error = f"{self._partial_file.received_bytes} bytes with another digest than {self._sources.digest}"
        cure = "compare with a pull from there directly; if that is right, a proxy in between is not: change `proxy`"
        return attrs.evolve(details, error=error, cure=cure)

    def _receive_all(self) -> None:
        """Receive until the source has ended, opening it again at the byte reached when it breaks off."""
        retries = self._retries = Retries()
        while True:
            received_before, attempt = self._partial_file.received_bytes, retries.begin()
            try:
                if not (self._ranges.is_lazy and self._receive_lazily()):
                    self._receive()
                return
            except _NotInRanges:
                self._ranges = RangeSettings()
            except RegistryError as exc:
                if self._stop.is_set():
                    raise Stopped from exc
                if self._is_complete_without_end():
                    return
                received_bytes = self._partial_file.received_bytes
                wait_s = retries.find_wait_s(
                    exc,
                    attempt=attempt,
                    brought_bytes=received_bytes - received_before,
                    has_bytes=bool(received_bytes),
                )
                if wait_s is None:
                    raise
                if is_debug():
                    self._log_resume(exc)
                if self._stop.wait(wait_s):
                    raise Stopped from exc
                metrics.fills_resumed.inc()

    # In ranges

    def _receive_lazily(self) -> bool:
        """Receive what readers request, and the rest; False if the blob must be received in order.

        Raises _NotInRanges if that turns out later.
        """
        size = self._expected_size or self._sources.find_size()  # known if this is not the first attempt
        if size is None or size <= SMALL_SEGMENT_BYTES or size < self._partial_file.received_bytes:
            return False
        self._was_size_sought = True
        self._expected_size = size
        self._use_size(size)
        self._report_progress()
        return self._receive_ranges(SMALL_SEGMENT_BYTES, None)

    def _receive_in_parallel(self, body: BlobBody) -> bool:
        """Receive a large blob over several connections, one of which has `body` open already.

        False if `body` is to be read to its end. Raises _NotInRanges.
        """
        size = self._partial_file.size or 0
        is_possible = self._ranges.connections > 1 and self._sources.used_upstream and not self._sources.used_bucket
        if size <= MIN_PARALLEL_BYTES or not is_possible or body.start != self._partial_file.received_bytes:
            return False
        return self._receive_ranges(LARGE_SEGMENT_BYTES, body)

    def _receive_ranges(self, segment_bytes: int, first_body: BlobBody | None) -> bool:
        """Receive the blob in ranges; False if that is impossible. Raises _NotInRanges if it has become impossible."""
        partial_file = self._partial_file
        if not self._sources.supports_ranges or not partial_file.begin_pieces():
            return False
        fetch = RangedFetch(
            partial_file,
            self._sources,
            retries=self._retries,
            connections=0 if self._ranges.is_on_demand and not self._is_all_requested else self._connections,
            segment_bytes=segment_bytes,
            is_delayed=self._ranges.is_for_range,
            on_progress=self._on_progress,
            on_advance=self._report_progress,
        )
        self._use_ranged_fetch(fetch)
        try:
            fetch.run(first_body)
        except (RangesUnsupported, CannotWriteAhead) as exc:
            log.info("a blob is received in order", digest=str(self._sources.digest), reason=str(exc))
            partial_file.forget_ahead()
            raise _NotInRanges from exc
        except Ended as exc:
            raise Stopped from exc
        finally:
            with self._mutex:
                self._ranged_fetch = None
        return True

    def _use_ranged_fetch(self, fetch: RangedFetch) -> None:
        with self._mutex:
            self._ranged_fetch = fetch
            for part in self._early_requests:
                fetch.request(part)
            self._early_requests.clear()
            if self._stop.is_set():
                fetch.end()

    @property
    def _connections(self) -> int:
        is_large = (self._partial_file.size or 0) > MIN_PARALLEL_BYTES
        return self._ranges.connections if is_large else min(self._ranges.connections, LAZY_CONNECTIONS)

    # In order

    def _log_resume(self, exc: RegistryError) -> None:
        fields = exc.log_fields() | {"digest": str(self._sources.digest), "start": self._partial_file.received_bytes}
        log.debug("download broke off: it is continued", **fields)

    def _is_complete_without_end(self) -> bool:
        """Whether a body broke off after its last byte: the digest decides."""
        received_bytes = self._partial_file.received_bytes
        is_possible = received_bytes and self._partial_file.size in {None, received_bytes}
        return bool(is_possible) and self._partial_file.has_correct_digest()

    def _receive(self) -> None:
        """Read one source to its end. One that starts before the bytes that are here is skipped up to them."""
        partial_file, digest = self._partial_file, self._sources.digest
        start = partial_file.received_bytes
        if partial_file.size == start:
            return
        body = self._body = self._sources.open(start)
        self._is_web_page = body.is_web_page
        if is_debug():
            log.debug(
                "download opened",
                name=str(self._sources.target.name),
                digest=str(digest),
                source="upstream" if self._sources.used_upstream else "bucket",
                start=start,
                size=body.size,
                is_range=body.start > 0,
            )
        try:
            self._set_size(body.size)
            if self._receive_in_parallel(body):
                return
            self._read(body, start - body.start)
            if self._expected_size is not None:
                self._check_expected_end()
            elif partial_file.size not in {None, partial_file.received_bytes}:
                raise BadUpstream(
                    f"the upstream sent {partial_file.received_bytes} of {partial_file.size} bytes of {digest}",
                    details=self._sources.details,
                )
        finally:
            self._body = None
            body.close()

    def _read(self, body: BlobBody, skip: int) -> None:
        """Append a body to its end, without its first `skip` bytes."""
        partial_file = self._partial_file
        while chunk := body.read(CHUNK_BYTES):
            if self._stop.is_set():
                raise Stopped
            if skip:
                chunk, skip = chunk[skip:], max(skip - len(chunk), 0)
            if chunk:
                partial_file.append(chunk)
                self._report_progress()
            if partial_file.size is None and partial_file.received_bytes > MAX_SMALL_BYTES:
                self._seek_size()
                self._check_unknown_size()

    def _set_size(self, size: int | None) -> None:
        """Use the size that the source announces. It is reported with the first bytes: that wakes readers once."""
        if size is None:
            if self._partial_file.is_overflowing:
                self._seek_size()
            if self._partial_file.is_overflowing and self._partial_file.size is None:
                raise Unavailable(
                    "there is no disk space for this layer, and the upstream sends no size", retry_after_s=30
                )
            return
        if self._expected_size is not None:
            return  # the digest decides
        if size < self._partial_file.received_bytes or self._partial_file.size not in {None, size}:
            message = f"the upstream announced two different sizes for {self._sources.digest}"
            raise BadUpstream(message, details=self._sources.details)
        self._use_size(size)
        if self._partial_file.received_bytes:
            self._report_progress()

    def _seek_size(self) -> None:
        """Look for the size elsewhere, once. Of a web page nothing is released before it is verified."""
        if self._was_size_sought or self._is_web_page:
            return
        self._was_size_sought = True
        size = self._sources.find_size()
        if size is not None and size >= self._partial_file.received_bytes:
            self._expected_size = size
            self._use_size(size)
            self._report_progress()

    def _use_size(self, size: int) -> None:
        """The size is known now. A blob that is too large to be kept is passed through to its readers."""
        partial_file = self._partial_file
        size_cap, received_bytes = self._stores.local.size_cap, partial_file.received_bytes
        if partial_file.is_overflowing and size > size_cap.max_kept_bytes:
            partial_file.pass_through()
        elif (
            partial_file.size is None
            and not partial_file.is_overflowing
            and (reason := size_cap.find_reason_not_to_keep(size, size - received_bytes))
        ):
            log.warning(TOO_LARGE, digest=str(self._sources.digest), size=size, reason=reason)
            partial_file.pass_through()
            partial_file.wait_for_memory()
        partial_file.size = size

    def _check_unknown_size(self) -> None:
        """Raise _TooLargeToKeep for a blob that others would be evicted for, and whose size is still unknown."""
        partial_file, largest = self._partial_file, self._stores.local.size_cap.max_kept_bytes
        if partial_file.size is None and partial_file.received_bytes > largest:
            log.warning(
                "a layer is too large to be kept, and the upstream sends no size to pass it through with: it is not "
                "served; raise storage.max_size",
                digest=str(self._sources.digest),
                received=partial_file.received_bytes,
            )
            raise _TooLargeToKeep

    def _check_expected_end(self) -> None:
        """The body has ended: it may have broken off without notice, but not if the digest is right."""
        received, digest = self._partial_file.received_bytes, self._sources.digest
        if received < (self._expected_size or 0) and not self._partial_file.has_correct_digest():
            message = f"the upstream sent {received} of {self._expected_size} bytes of {digest}"
            raise Unavailable(message, details=self._sources.details)

    def _report_progress(self) -> None:
        if not self._is_streaming_to_bucket and self._sources.used_upstream and not self._sources.used_bucket:
            self._is_streaming_to_bucket = self._stores.publisher.start_upload(self._partial_file)
        self._on_progress()

    # The end

    def _keep(self, size: int) -> None:
        """Keep the blob in the local store, and have it published or touched.

        It is in the outbox before it is kept, so that a crash in between publishes it later. The job also evicts other
        blobs: downloads that are faster than the eviction of old blobs wait for it.
        """
        local, publisher, item = self._stores.local, self._stores.publisher, BlobItem(self._sources.digest)
        is_new = self._sources.used_upstream or not self._sources.used_bucket
        if is_new:
            publisher.add_to_outbox(item)
        self._partial_file.finish(is_verified=True)
        is_size_right = self._expected_size in {None, size}
        if is_size_right:
            self._on_verified(size)
        local.commit(self._partial_file, self._sources.bucket_age_s)
        local.size_cap.enforce_if_due()
        metrics.fills.labels("done").inc()
        if is_new and not self._is_streaming_to_bucket:
            publisher.publish(item)
        if self._sources.used_bucket:
            publisher.touch_if_due(item)
        if not is_size_right:
            raise BadUpstream(
                f"{item.digest} has {size} bytes, not {self._expected_size} as its manifest or the upstream said: "
                "it is stored now, try again",
                details=self._sources.details,
            )

    def _give_up(self, exc: Exception) -> None:
        """After an outage, a refused login, or when the server stops, leave what was received for the next download."""
        partial_file = self._partial_file
        partial_file.finish(is_verified=False)
        is_interrupted = isinstance(
            exc,
            Stopped | NoReadersLeft | Unavailable | UpstreamTimeout | TooManyRequests | LoginRequired | AccessDenied,
        )
        if is_interrupted and partial_file.present_bytes and not partial_file.is_overflowing:
            partial_file.close()  # and its lock: the next download may be another worker's
        else:
            partial_file.discard()

"""The thread of a download: fetch one blob into its partial file, verify it, keep it, and have it published.

A source that breaks off is opened again at the byte reached. MAX_FRUITLESS_ATTEMPTS in a row that each brought less
than PROGRESS_BYTES end the download. Nothing here depends on clients: the job reports its progress, and that what it
received is verified.

A download that ends early, because the source is unavailable or the server stops, leaves its partial file. The next
download of the blob, in any worker and also after a restart, hashes what is there and requests the rest.

A source may not send the size. For a blob of more than 1 MiB it is then looked up elsewhere, so that readers need not
wait for the last byte. The digest decides: a blob that is right but has another size is kept, and only the readers that
got the wrong size get an error.
"""

import random
import threading
from collections.abc import Callable

import attrs
import structlog

from dockyard import metrics
from dockyard.cache.blob_sources import BlobBody, BlobSources
from dockyard.cache.download import MAX_SMALL_BYTES
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
from dockyard.storage.items import BlobItem
from dockyard.storage.partial_file import OverflowFull, PartialFile

CHUNK_BYTES = 256 * 1024
PROGRESS_BYTES = 1024 * 1024
MAX_FRUITLESS_ATTEMPTS = 4
MAX_ATTEMPTS_WITHOUT_A_BYTE = 2
BACKOFF_S = (0.2, 3.0)
MAX_RATE_LIMIT_WAIT_S = 10.0
TOO_LARGE = "a layer is too large to be kept: it is passed through, and nothing is evicted for it"

log = structlog.get_logger()


class Stopped(Exception):
    """The server is shutting down."""


class _TooLargeToKeep(Exception):
    """More was received than may be kept, and the size is unknown: it cannot be passed through either."""


class DownloadJob:
    """Fetches the blob of `sources` into `partial_file`.

    The callbacks run in the thread of the job: `on_start()` first; `on_progress()` when the size becomes known and when
    bytes were received; `on_verified(size)` when size and digest are right, before the blob is kept.
    """

    def __init__(
        self,
        partial_file: PartialFile,
        sources: BlobSources,
        stores: Stores,
        *,
        on_start: Callable[[], object],
        on_progress: Callable[[], object],
        on_verified: Callable[[int], object],
    ) -> None:
        self._partial_file = partial_file
        self._sources = sources
        self._stores = stores
        self._on_start = on_start
        self._on_progress = on_progress
        self._on_verified = on_verified
        self._body: BlobBody | None = None
        self._is_streaming_to_bucket = False
        self._expected_size: int | None = None  # from elsewhere
        self._was_size_sought = False
        self._is_web_page = False
        self._left_bytes = partial_file.received_bytes  # by a former download
        self._stop = threading.Event()

    def run(self) -> None:
        """Fetch, verify, keep, publish. Blocks.

        Raises RegistryError when the blob cannot be had, or is wrong; Stopped; NoReadersLeft; OSError when the partial
        file cannot be read back.
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
            except Exception as exc:
                self._give_up(exc)
                raise
            self._keep(self._partial_file.received_bytes)

    def stop(self) -> None:
        """End the job, from another thread."""
        self._stop.set()
        if body := self._body:
            body.abort()

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
        return bool(self._partial_file.received_bytes) and size is not None and size > MAX_SMALL_BYTES

    def _fetch(self) -> None:
        """Fetch until size and digest are right."""
        received_before = self._partial_file.received_bytes
        self._partial_file.begin()
        try:
            self._partial_file.wait_for_memory()
            self._partial_file.hash_existing_bytes()
            if not self._is_left_complete():
                self._receive_all()
            self._verify()
        except Exception as exc:
            metrics.fills.labels(type(exc).__name__).inc()
            raise
        finally:
            source = "upstream" if self._sources.used_upstream else "bucket"
            metrics.received_bytes.labels(source).inc(self._partial_file.received_bytes - received_before)
        self._sources.mark_verified()

    def _is_left_complete(self) -> bool:
        """Whether a former download has received everything, and ended just before it was stored."""
        return bool(self._left_bytes) and self._partial_file.has_correct_digest()

    def _verify(self) -> None:
        if not self._partial_file.has_correct_digest():
            event = "wrong digest: the blob is discarded"
            if self._left_bytes:
                event = "a partial file of a former download was damaged: it is discarded"
            server = {"host": self._sources.details.host} if self._sources.details else {}
            log.warning(event, digest=str(self._sources.digest), **server)
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
        fruitless_attempts = 0
        while True:
            received_before = self._partial_file.received_bytes
            try:
                self._receive()
                return
            except RegistryError as exc:
                if self._stop.is_set():
                    raise Stopped from exc
                if self._is_complete_without_end():
                    return
                has_progress = self._partial_file.received_bytes - received_before >= PROGRESS_BYTES
                fruitless_attempts = 0 if has_progress else fruitless_attempts + 1
                if not self._is_retryable(exc, fruitless_attempts):
                    raise
                if is_debug():
                    self._log_resume(exc)
                self._wait_before_retry(exc, fruitless_attempts)
                metrics.fills_resumed.inc()

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
            skip = start - body.start
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

    def _set_size(self, size: int | None) -> None:
        if size is None:
            if self._partial_file.is_overflowing:
                self._seek_size()
            if self._partial_file.is_overflowing and self._partial_file.size is None:
                raise Unavailable(
                    "there is no disk space for this layer, and the upstream sends no size", retry_after_s=30
                )
            return
        if size < self._partial_file.received_bytes or self._partial_file.size not in {None, size}:
            message = f"the upstream announced two different sizes for {self._sources.digest}"
            raise BadUpstream(message, details=self._sources.details)
        self._use_size(size)

    def _seek_size(self) -> None:
        """Look for the size elsewhere, once. Of a web page nothing is released before it is verified."""
        if self._was_size_sought or self._is_web_page:
            return
        self._was_size_sought = True
        size = self._sources.find_size()
        if size is not None and size >= self._partial_file.received_bytes:
            self._expected_size = size
            self._use_size(size)

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
        self._report_progress()

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

    def _is_retryable(self, exc: RegistryError, fruitless_attempts: int) -> bool:
        if exc.remembered and isinstance(exc, Unavailable):
            return False
        if self._partial_file.received_bytes:
            is_outage = isinstance(exc, Unavailable | BadUpstream | TooManyRequests | UpstreamTimeout)
            return is_outage and fruitless_attempts < MAX_FRUITLESS_ATTEMPTS
        return isinstance(exc, Unavailable) and fruitless_attempts < MAX_ATTEMPTS_WITHOUT_A_BYTE

    def _wait_before_retry(self, exc: RegistryError, fruitless_attempts: int) -> None:
        if isinstance(exc, TooManyRequests):
            wait_s = min(exc.retry_after_s or 1.0, MAX_RATE_LIMIT_WAIT_S)
        elif fruitless_attempts == 0:
            wait_s = 0.0
        else:
            wait_s = random.uniform(BACKOFF_S[0], min(BACKOFF_S[1], BACKOFF_S[0] * 2**fruitless_attempts))
        if self._stop.wait(wait_s):
            raise Stopped

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
            exc, Stopped | Unavailable | UpstreamTimeout | TooManyRequests | LoginRequired | AccessDenied
        )
        if is_interrupted and partial_file.received_bytes and not partial_file.is_overflowing:
            partial_file.close()  # and its lock: the next download may be another worker's
        else:
            partial_file.discard()

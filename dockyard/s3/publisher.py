"""The publisher: uploads to the bucket what was downloaded, and touches what is in use. Readers do not wait for it.

A blob is uploaded while it is downloaded: one PUT reads the partial file at its own pace, and the last bytes are sent
only when the digest was verified. If the upload fails, or too many are running, the item stays in the outbox and is
uploaded from the local store later. After a failure no upload starts for some seconds; if the service was overloaded,
half as many run at the same time.

An object that is served, and whose copy in the bucket is older than the touch threshold, is *touched*: copied onto
itself, so that lifecycle rules do not expire it. The age of the copy is recorded in the local store (`TouchTimes`). A
touched manifest causes a touch of everything that it names, so that an image is kept or expires as a whole.

With restricted access, a manifest has *links* in the bucket: for each blob that it names, an empty object that says so.
They are written before the manifest is published or touched: a replica that finds the manifest finds its links. If that
fails, the manifest stays in the outbox.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

import structlog
from cachetools import TTLCache

from dockyard import metrics
from dockyard.errors import BadUpstream
from dockyard.oci.manifest import Manifest
from dockyard.oci.reference import Digest, Name
from dockyard.s3.concurrency_limit import ConcurrencyLimit
from dockyard.s3.errors import S3Error
from dockyard.s3.outbox import Outbox
from dockyard.storage.items import BlobItem, Item, ManifestItem, TagItem
from dockyard.storage.local import LocalStore
from dockyard.storage.partial_file import PartialFile

if TYPE_CHECKING:
    from dockyard.s3.store import S3Store

MAX_STREAMED_UPLOADS = 8
MAX_TASKS = 4
RETRY_INTERVAL_S = 3.0
PAUSE_AFTER_FAILURE_S = 4.0
# How often an item that is in use is checked for a touch: a quarter of the touch threshold, but at least this often.
MAX_TOUCH_CHECK_INTERVAL_S = 600.0
MAX_CHECKED_ITEMS = 50_000
MAX_RECENT_LINKS = 16_384
CHUNK_BYTES = 256 * 1024

Task = Callable[["S3Store", Item], None]
Chunks = Callable[[int], Iterator[bytes]]

log = structlog.get_logger()


class SourceEnded(Exception):
    """The bytes of an upload ended early: the download failed, or a file is shorter than the blob."""


class Publisher:
    """Uploads items from `local` to `s3`; with None it does nothing. For many threads.

    `owns(item)` returns whether this worker uploads an item of the outbox that is overdue. Items are touched when they
    are older than `touch_threshold_s`; 0 means never. `writes_links`: access is restricted.
    """

    def __init__(
        self,
        local: LocalStore,
        s3: "S3Store | None",
        outbox: Outbox,
        touch_threshold_s: float,
        owns: Callable[[Item], bool],
        *,
        writes_links: bool = False,
    ) -> None:
        self._local = local
        self._s3 = s3
        self._outbox = outbox
        self._touch_threshold_s = touch_threshold_s
        self._owns = owns
        self._writes_links = writes_links
        # A streamed upload takes as long as its download. Tasks upload from the local store, or touch.
        self._streamed_uploads = ThreadPoolExecutor(MAX_STREAMED_UPLOADS, "streamed-upload")
        self._streamed_upload_limit = ConcurrencyLimit(MAX_STREAMED_UPLOADS)
        self._tasks = ThreadPoolExecutor(MAX_TASKS, "s3-task")
        self._task_limit = ConcurrencyLimit(MAX_TASKS)
        self._mutex = threading.Lock()
        self._running: set[Item] = set()
        check_interval_s = min(touch_threshold_s / 4, MAX_TOUCH_CHECK_INTERVAL_S)
        self._checked: TTLCache[Item, bool] = TTLCache(MAX_CHECKED_ITEMS, check_interval_s)
        # The links that were written or renewed a moment ago: many images of a repository have the same base.
        self._linked: TTLCache[tuple[Name, Digest], bool] = TTLCache(MAX_RECENT_LINKS, check_interval_s)
        self._paused_until = float("-inf")
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the thread that uploads overdue items of the outbox. Does not block."""
        if self._s3:
            threading.Thread(target=self._retry, args=(self._s3,), name="outbox", daemon=True).start()

    def stop(self) -> None:
        """Start no more uploads and touches. What is running and does not end stays in the outbox. Does not block."""
        self._stop.set()
        for pool in (self._streamed_uploads, self._tasks):
            pool.shutdown(wait=False, cancel_futures=True)

    # Uploads

    def start_upload(self, partial_file: PartialFile) -> bool:
        """Upload a blob while it is downloaded. False when too many are running: then call `publish` when it is stored.

        Does not block.
        """
        if self._s3 is None or partial_file.size is None:
            return False
        digest, size, is_in_memory = partial_file.digest, partial_file.size, partial_file.is_passed_through
        is_possible = not is_in_memory or self._s3.fits_one_put(digest, size)
        if not is_possible or not self._begin(BlobItem(digest)):
            return False
        is_possible = not is_in_memory or partial_file.begin_upload()
        if is_possible and self._streamed_upload_limit.acquire(blocking=False):
            fd = -1
            try:
                fd = -1 if is_in_memory else os.dup(partial_file.fd)
                in_file, in_memory = partial(_read_partial_file, partial_file, fd), partial(_read_window, partial_file)
                chunks = partial(in_memory if is_in_memory else in_file, size)
                self._streamed_uploads.submit(self._stream, self._s3, partial_file, chunks, fd)
            except (RuntimeError, OSError):  # shutting down, or the partial file is in memory
                self._streamed_upload_limit.release()
                if fd >= 0:
                    os.close(fd)
            else:
                return True
        partial_file.end_upload()
        self._end(BlobItem(digest))
        return False

    def add_to_outbox(self, item: Item) -> None:
        """Record that an item must be uploaded, before it is in the local store. Blocks: writes a file."""
        if self._s3:
            self._outbox.add(item)

    def publish(self, item: Item) -> None:
        """Upload an item of the local store soon, in another thread. Blocks: writes a file."""
        self.add_to_outbox(item)
        if self._s3 and not self._is_paused:
            self._submit(item, self._upload)

    def _stream(self, s3: "S3Store", partial_file: PartialFile, chunks: Chunks, fd: int) -> None:
        item = BlobItem(partial_file.digest)
        assert partial_file.size is not None  # noqa: S101  for mypy: nothing is submitted before
        try:
            s3.publish_blob(partial_file.digest, partial_file.size, chunks)
            self._mark_published(item)
        except SourceEnded:
            pass
        except OSError as exc:
            log.warning(
                "cannot read a partial file: its blob is uploaded when it is stored",
                digest=str(partial_file.digest),
                error=exc.strerror,
            )
        except S3Error as exc:
            self._pause(item, exc)
        except Exception:
            log.exception("internal error: uploading a blob failed", digest=str(partial_file.digest))
        finally:
            partial_file.end_upload()
            self._streamed_upload_limit.release()
            self._end(item)
            if fd >= 0:
                os.close(fd)

    def _upload(self, s3: "S3Store", item: Item) -> None:
        """Upload an item from the local store, or remove it from the outbox when it is not there or cannot be read."""
        began_at = time.time()
        match item:
            case BlobItem(digest) if blob := self._local.blobs.open_verified(digest):
                try:
                    s3.publish_blob(digest, blob.size, partial(_read_file, blob.fd, blob.size))
                except OSError as exc:  # it stays in the outbox, and is verified at the next attempt
                    self._local.blobs.report_unreadable(blob, exc)
                    return
                finally:
                    os.close(blob.fd)
            case ManifestItem(name, digest) if manifest := self._read_manifest(item):
                if self._writes_links:
                    self._write_links(s3, name, manifest)
                s3.write_manifest(name, digest, manifest.body, manifest.media_type)
            case TagItem(name, tag) if pointer := self._local.read_pointer(name, tag):
                s3.write_pointer(name, tag, pointer.digest)
                self._mark_published(item)
                # After that: who moves the tag from now on adds it to the outbox again.
                now = self._local.read_pointer(name, tag)
                if now and now.digest != pointer.digest:  # moved meanwhile: this write may have replaced a newer one
                    self.add_to_outbox(item)
                    self._upload(s3, item)
                return
            case BlobItem(digest) if self._local.blobs.exists(digest):  # unreadable: the next fetch adds it again
                self._outbox.remove_added_before(item, began_at)
                return
            case _:
                self._outbox.remove_missing(item)
                return
        self._mark_published(item)

    def _mark_published(self, item: Item) -> None:
        metrics.published.labels("done").inc()
        self._streamed_upload_limit.increase()
        self._task_limit.increase()
        self._local.touch_times.mark_published(item)
        self._outbox.remove(item)

    def _retry(self, s3: "S3Store") -> None:
        """Upload overdue items: after a restart, after an outage, or when too many uploads were running."""
        delay_s = 0.0
        while not self._stop.wait(delay_s):
            delay_s = RETRY_INTERVAL_S
            if self._is_paused:
                continue
            for item in self._outbox.overdue():
                if self._owns(item):
                    self._submit(item, self._upload)
            with contextlib.suppress(S3Error):
                s3.retry_aborts()

    # Touches

    def touch_if_due(self, item: Item) -> None:
        """Touch an item that is in use if it is due, in another thread. Does not block.

        Cheap for an item that was checked recently.
        """
        if self._s3 is None or not self._touch_threshold_s:
            return
        with self._mutex:
            if item in self._checked:
                return
            self._checked[item] = True
        self._submit(item, self._touch)

    def _touch(self, s3: "S3Store", item: Item) -> None:
        """Touch an item if it is due and no other worker does, and then what it names."""
        if item in self._outbox or not self._local.touch_times.claim_touch(item, self._touch_threshold_s):
            return
        try:
            if self._writes_links and isinstance(item, ManifestItem) and (manifest := self._find_manifest(s3, item)):
                self._write_links(s3, item.name, manifest)
            if s3.touch(self._local.key(item)):
                metrics.touched.inc()
            else:
                self.publish(item)
        except S3Error:
            self._local.touch_times.release_touch(item, self._touch_threshold_s)
            raise
        if isinstance(item, ManifestItem) and (manifest := self._find_manifest(s3, item)):
            for digest in manifest.children:
                self.touch_if_due(ManifestItem(item.name, digest))
            for digest in manifest.blobs:
                self.touch_if_due(BlobItem(digest))

    def _write_links(self, s3: "S3Store", name: Name, manifest: Manifest) -> None:
        """Write or renew the links of a manifest. Raises S3Error."""
        for digest in manifest.named_blobs:
            with self._mutex:
                if (name, digest) in self._linked:
                    continue
            s3.write_link(name, digest)
            with self._mutex:
                self._linked[name, digest] = True

    def _find_manifest(self, s3: "S3Store", item: ManifestItem) -> Manifest | None:
        return self._read_manifest(item) or _read_from_bucket(s3, item)

    def _read_manifest(self, item: ManifestItem) -> Manifest | None:
        body = self._local.read_manifest(item.name, item.digest)
        try:
            if body is None:
                return None
            return Manifest.stored(body, item.digest, self._local.read_media_type(item.name, item.digest))
        except BadUpstream:
            return None  # damaged: fetched again when it is next requested

    # Tasks

    @property
    def _is_paused(self) -> bool:
        return time.monotonic() < self._paused_until

    def _pause(self, item: Item, exc: S3Error) -> None:
        """Start no uploads for a while, and fewer at the same time after an overload. Logs the first failure only."""
        with self._mutex:
            is_first = not self._is_paused
            self._paused_until = time.monotonic() + PAUSE_AFTER_FAILURE_S
        if is_first:
            log.warning("cannot publish, trying again later", item=str(item), error=exc.explanation)
        if is_first and exc.is_overload:
            self._streamed_upload_limit.halve()
            self._task_limit.halve()
        metrics.published.labels("failed").inc()

    def _submit(self, item: Item, task: Task) -> None:
        if not self._begin(item):
            return
        try:
            self._tasks.submit(self._run, item, task)
        except RuntimeError:  # shutting down
            self._end(item)

    def _begin(self, item: Item) -> bool:
        """Reserve an item for one upload or touch at a time; False when it is reserved. `_end` releases it."""
        with self._mutex:
            if item in self._running or self._stop.is_set():
                return False
            self._running.add(item)
            return True

    def _end(self, item: Item) -> None:
        with self._mutex:
            self._running.discard(item)

    def _run(self, item: Item, task: Task) -> None:
        assert self._s3 is not None  # noqa: S101  for mypy: nothing is submitted without S3
        self._task_limit.acquire(blocking=True)
        try:
            task(self._s3, item)
        except SourceEnded:
            pass  # the file has changed: it is verified at the next attempt
        except S3Error as exc:
            self._pause(item, exc)
        except Exception:
            log.exception("internal error: an upload or touch failed", item=str(item))
        finally:
            self._task_limit.release()
            self._end(item)


def _read_from_bucket(s3: "S3Store", item: ManifestItem) -> Manifest | None:
    found = s3.read_manifest(item.name, item.digest)
    try:
        return Manifest.stored(found.body, item.digest, found.media_type) if found else None
    except BadUpstream:
        return None


def _read_partial_file(partial_file: PartialFile, fd: int, size: int, position: int) -> Iterator[bytes]:
    """Yield the bytes of a partial file from `position` on as they are received; the last one after verification.

    Raises SourceEnded.
    """
    while position < size:
        end = partial_file.wait_for_bytes_after(position)
        if end is None:
            raise SourceEnded
        yield from _read_file(fd, end, position)
        position = end


def _read_window(partial_file: PartialFile, size: int, position: int) -> Iterator[bytes]:
    """Yield the bytes of a blob that is not kept, while they are in the memory of its download. Raises SourceEnded."""
    while position < size:
        chunk = partial_file.read_for_upload(position, CHUNK_BYTES)
        if not chunk:
            raise SourceEnded
        yield chunk
        position += len(chunk)


def _read_file(fd: int, end: int, position: int) -> Iterator[bytes]:
    """Yield the bytes of a file from `position` to `end`. Raises SourceEnded when the file is shorter."""
    while position < end:
        chunk = os.pread(fd, min(CHUNK_BYTES, end - position), position)
        if not chunk:
            raise SourceEnded
        yield chunk
        position += len(chunk)

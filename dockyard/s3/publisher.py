"""The publisher: brings to S3 what was fetched, and keeps alive there what is in use. Readers never wait for it.

A blob is published while it is being fetched: one PUT reads the partial file at its own pace, and the last bytes are
held back until the digest is right. What fails, or finds no place, is left in the directory of publications and brought
from the local store later, for as long as it takes. After a failure the store is given a pause, and if it was too busy,
half as much at once.

An object that is served and older in the bucket than the touch threshold is *touched*: copied onto itself, so that a
lifecycle rule spares it. How old it is there, the local store knows by the file's modification time. A manifest that is
touched takes along what it names, so that an image lives or expires as a whole.
"""

import contextlib
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import structlog

from dockyard import metrics
from dockyard.errors import BadUpstream
from dockyard.oci.manifest import Manifest
from dockyard.s3 import S3Error, S3Store
from dockyard.s3.concurrency_limit import ConcurrencyLimit
from dockyard.s3.outbox import Outbox
from dockyard.storage.items import BlobItem, Item, ManifestItem, TagItem
from dockyard.storage.local import LocalStore
from dockyard.storage.partial_file import PartialFile

STREAMS = 8
ERRANDS = 4
RETRY_EVERY_S = 3.0
RETRY_DELAY_S = 4.0
MAX_TOUCH_CHECK_INTERVAL_S = 600.0
REMEMBERED_ITEMS = 50_000
CHUNK_BYTES = 256 * 1024

log = structlog.get_logger()


class SourceEnded(Exception):
    """The fill that a stream followed did not end well: no object may appear."""


class Publisher:
    """Brings items from `local` to `s3`; with no S3 store it does nothing.

    `owns(item)` says whether this worker looks after an item that was left over. `touch_threshold_s` 0 touches nothing.
    """

    def __init__(
        self,
        local: LocalStore,
        s3: S3Store | None,
        outbox: Outbox,
        touch_threshold_s: float,
        owns: Callable[[Item], bool],
    ) -> None:
        self._local = local
        self._s3 = s3
        self._outbox = outbox
        self._touch_threshold_s = touch_threshold_s
        self._owns = owns
        self._streams = ThreadPoolExecutor(STREAMS, "stream")
        self._errands = ThreadPoolExecutor(ERRANDS, "errand")
        self._running: set[Item] = set()
        self._streaming = ConcurrencyLimit(STREAMS)
        self._running_errands = ConcurrencyLimit(ERRANDS)
        self._look_again: OrderedDict[Item, float] = OrderedDict()
        self._mutex = threading.Lock()
        self._paused_until = float("-inf")
        self._stop = threading.Event()

    def start(self) -> None:
        """Look after what was left over, from now on."""
        if self._s3:
            threading.Thread(target=self._retry, args=(self._s3,), name="publications", daemon=True).start()

    def stop(self) -> None:
        """Begin nothing new. What is under way and not done is left over."""
        self._stop.set()
        for pool in (self._streams, self._errands):
            pool.shutdown(wait=False, cancel_futures=True)

    # Publishing

    def start_upload(self, partial_file: PartialFile) -> bool:
        """Publish a blob while it is being fetched. False: no place is free, publish it when it is kept."""
        if self._s3 is None or partial_file.size is None or not self._begin(BlobItem(partial_file.digest)):
            return False
        if self._streaming.acquire(blocking=False):
            try:
                self._streams.submit(self._stream, self._s3, partial_file, partial_file.size, os.dup(partial_file.fd))
            except (RuntimeError, OSError):  # shutting down, or a partial file without a file
                self._streaming.release()
            else:
                return True
        self._end(BlobItem(partial_file.digest))
        return False

    def add_to_outbox(self, item: Item) -> None:
        """The item is about to be in the local store and is not in the bucket."""
        if self._s3:
            self._outbox.add(item)

    def publish(self, item: Item) -> None:
        """Bring an item of the local store to the bucket soon."""
        self.add_to_outbox(item)
        if self._s3 and not self._must_wait():
            self._submit(item, self._publish)

    def _stream(self, s3: S3Store, partial_file: PartialFile, size: int, fd: int) -> None:
        item = BlobItem(partial_file.digest)
        try:
            s3.publish_blob(partial_file.digest, size, _follow(partial_file, fd, size))
            self._is_there(item)
        except SourceEnded:
            pass
        except S3Error as exc:
            self._pause(item, exc)
        except Exception:
            log.exception("publishing a blob ended in a fault of our own", digest=str(partial_file.digest))
        finally:
            self._streaming.release()
            self._end(item)
            os.close(fd)

    def _publish(self, s3: S3Store, item: Item) -> None:
        """Bring an item from the local store; one that is not there any more is forgotten."""
        match item:
            case BlobItem(digest) if stored := self._local.open_blob(digest):
                try:
                    s3.publish_blob(digest, stored.size, _read(stored.fd, stored.size))
                finally:
                    os.close(stored.fd)
            case ManifestItem(name, digest) if manifest := self._read_manifest(item):
                s3.write_manifest(name, digest, manifest.body, manifest.media_type)
            case TagItem(name, tag) if pointer := self._local.read_pointer(name, tag):
                s3.write_pointer(name, tag, pointer.digest)
                now = self._local.read_pointer(name, tag)
                if now and now.digest != pointer.digest:  # moved meanwhile, and perhaps published before ours arrived
                    self._publish(s3, item)
                    return
            case _:
                self._outbox.remove_if_stale(item)
                return
        self._is_there(item)

    def _is_there(self, item: Item) -> None:
        metrics.published.labels("done").inc()
        self._streaming.increase()
        self._running_errands.increase()
        self._local.touch_times.mark_published(item)
        self._outbox.remove(item)

    def _retry(self, s3: S3Store) -> None:
        """Bring what is left over: after a restart, an outage of S3, or a rush."""
        pause = 0.0
        while not self._stop.wait(pause):
            pause = RETRY_EVERY_S
            if self._must_wait():
                continue
            for item in self._outbox.overdue():
                if self._owns(item):
                    self._submit(item, self._publish)
            with contextlib.suppress(S3Error):
                s3.retry_aborts()

    # Touching

    def touch_if_due(self, item: Item) -> None:
        """The item was served: touch it if that is due. Cheap for one that was looked at lately."""
        if self._s3 is None or not self._touch_threshold_s:
            return
        now = time.monotonic()
        with self._mutex:
            if self._look_again.get(item, 0.0) > now:
                return
            self._look_again[item] = now + min(self._touch_threshold_s / 4, MAX_TOUCH_CHECK_INTERVAL_S)
            self._look_again.move_to_end(item)
            if len(self._look_again) > REMEMBERED_ITEMS:
                self._look_again.popitem(last=False)
        self._submit(item, self._touch)

    def _touch(self, s3: S3Store, item: Item) -> None:
        """Touch an item, if it is due and no other worker does, and then what it names."""
        if item in self._outbox or not self._local.touch_times.claim_touch(item, self._touch_threshold_s):
            return
        try:
            if s3.touch(self._local.key(item)):
                metrics.touched.inc()
            else:
                self.publish(item)
        except S3Error:
            self._local.touch_times.release_touch(item, self._touch_threshold_s)
            raise
        if isinstance(item, ManifestItem) and (manifest := self._read_manifest(item) or _read_in_bucket(s3, item)):
            for digest in manifest.children:
                self.touch_if_due(ManifestItem(item.name, digest))
            for digest in manifest.blobs:
                self.touch_if_due(BlobItem(digest))

    def _read_manifest(self, item: ManifestItem) -> Manifest | None:
        body = self._local.read_manifest(item.name, item.digest)
        try:
            return Manifest.stored(body, item.digest) if body is not None else None
        except BadUpstream:
            return None  # damaged: fetched again when it is asked for

    # Errands

    def _must_wait(self) -> bool:
        return time.monotonic() < self._paused_until

    def _pause(self, item: Item, fault: S3Error) -> None:
        """Leave what there is to bring for a while; say so once, and bring less at once to a store that is busy."""
        metrics.published.labels("failed").inc()
        with self._mutex:
            is_first = not self._must_wait()
            self._paused_until = time.monotonic() + RETRY_DELAY_S
        if is_first:
            log.warning("cannot publish, trying again later", item=str(item), error=str(fault))
        if is_first and fault.is_busy:
            self._streaming.halve()
            self._running_errands.halve()

    def _submit(self, item: Item, errand: Callable[[S3Store, Item], None]) -> None:
        if not self._begin(item):
            return
        try:
            self._errands.submit(self._run, item, errand)
        except RuntimeError:  # shutting down
            self._end(item)

    def _begin(self, item: Item) -> bool:
        """Whether nobody brings or touches the item, so that the caller may; `_end` when done."""
        with self._mutex:
            if item in self._running or self._stop.is_set():
                return False
            self._running.add(item)
            return True

    def _end(self, item: Item) -> None:
        with self._mutex:
            self._running.discard(item)

    def _run(self, item: Item, errand: Callable[[S3Store, Item], None]) -> None:
        assert self._s3 is not None  # noqa: S101  for mypy: nothing is submitted without
        self._running_errands.acquire(blocking=True)
        try:
            errand(self._s3, item)
        except S3Error as exc:
            self._pause(item, exc)
        except Exception:
            log.exception("an errand to S3 ended in a fault of our own", item=str(item))
        finally:
            self._running_errands.release()
            self._end(item)


def _read_in_bucket(s3: S3Store, item: ManifestItem) -> Manifest | None:
    found = s3.read_manifest(item.name, item.digest)
    try:
        return Manifest.stored(found.body, item.digest) if found else None
    except BadUpstream:
        return None


def _follow(partial_file: PartialFile, fd: int, size: int) -> Iterator[bytes]:
    """The bytes of a growing partial file; the last of them once the digest was verified. Raises Interrupted."""
    position = 0
    while position < size:
        available = partial_file.wait_for_bytes_after(position)
        if available is None:
            raise SourceEnded
        while position < available:
            chunk = os.pread(fd, min(CHUNK_BYTES, available - position), position)
            if not chunk:
                raise SourceEnded
            yield chunk
            position += len(chunk)


def _read(fd: int, size: int) -> Iterator[bytes]:
    position = 0
    while position < size:
        chunk = os.pread(fd, CHUNK_BYTES, position)
        if not chunk:
            raise SourceEnded
        yield chunk
        position += len(chunk)

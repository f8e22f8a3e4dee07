"""The bucket as the cache reads it: a fault of S3 is a miss, and an S3 in trouble is left alone for a while.

While it is left alone a thread asks it now and then whether it is well again, so that no client pays for finding out.
A caller may `insist`: when the upstream is away too, a slow answer is better than none.
"""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from dockyard import metrics
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3 import ObjectInfo, S3BlobStream, S3Error, S3Object, S3Store
from dockyard.storage.local import Pointer

SLOW_S = 1.0
ASK_AGAIN_EVERY_S = 3.0
NOTHING = Digest.of(b"")

T = TypeVar("T")

log = structlog.get_logger()


class Bucket:
    """Reads from the S3 store; with none it is empty. Methods block and do not raise."""

    def __init__(self, s3: S3Store | None) -> None:
        self._s3 = s3
        self._mutex = threading.Lock()
        self._is_left_alone = False
        self._stop = threading.Event()

    @property
    def is_left_alone(self) -> bool:
        """Whether only those who insist are served."""
        return self._is_left_alone

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()

    def open_blob(self, digest: Digest, start: int = 0, etag: str = "", *, insist: bool = False) -> S3BlobStream | None:
        """A blob from byte `start` on."""
        return self._ask(lambda s3: s3.open_blob(digest, start, etag), insist=insist)

    def stat_blob(self, digest: Digest, *, insist: bool = False) -> ObjectInfo | None:
        """The size and age of a blob. One that is empty and should not be is not there."""
        found = self._ask(lambda s3: s3.stat_blob(digest), insist=insist)
        return found if found and (found.size or digest == Digest.of(b"", digest.algorithm)) else None

    def read_manifest(self, name: Name, digest: Digest, *, insist: bool = False) -> S3Object | None:
        """A manifest, not verified."""
        return self._ask(lambda s3: s3.read_manifest(name, digest), insist=insist)

    def read_pointer(self, name: Name, tag: Tag, *, insist: bool = False) -> Pointer | None:
        """What a tag pointed to when it was last published."""
        return self._ask(lambda s3: s3.read_pointer(name, tag), insist=insist)

    def presign_blob(self, digest: Digest, expires_s: int) -> str | None:
        """A URL of the bucket for a blob, valid for so long."""
        return self._ask(lambda s3: s3.presign_blob(digest, expires_s), insist=False)

    def _ask(self, question: Callable[[S3Store], T | None], *, insist: bool) -> T | None:
        if self._s3 is None or (self.is_left_alone and not insist):
            return None
        begun = time.monotonic()
        try:
            answer = question(self._s3)
        except S3Error as exc:
            metrics.bucket_faults.inc()
            self._leave_alone(self._s3, str(exc))
            return None
        if (took := time.monotonic() - begun) > SLOW_S:
            self._leave_alone(self._s3, f"it took {took:.1f} s to answer")
        return answer

    def _leave_alone(self, s3: S3Store, reason: str) -> None:
        with self._mutex:
            if self._is_left_alone or self._stop.is_set():
                return
            self._is_left_alone = True
        log.warning("S3 is in trouble, going without it", reason=reason)
        threading.Thread(target=self._wait_until_well, args=(s3,), name="bucket", daemon=True).start()

    def _wait_until_well(self, s3: S3Store) -> None:
        while not self._stop.wait(ASK_AGAIN_EVERY_S):
            begun = time.monotonic()
            try:
                s3.stat_blob(NOTHING)
            except S3Error:
                continue
            if time.monotonic() - begun <= SLOW_S:
                self._is_left_alone = False
                log.info("S3 is well again")
                return

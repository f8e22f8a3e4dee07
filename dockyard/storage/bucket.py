"""The bucket as the cache reads it: a fault of S3 is a miss, and an S3 in trouble is left alone for a while.

While it is left alone a caller may `insist`: when the upstream is away too, a slow answer is better than none.
"""

import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from dockyard import metrics
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage.local import Pointer
from dockyard.storage.s3 import S3Body, S3Tier, Stat, StorageFault, StoredObject

SLOW_S = 1.0
LEFT_ALONE_S = 10.0

T = TypeVar("T")

log = structlog.get_logger()


class Bucket:
    """Reads from the S3 tier; with none it is empty. Methods block and do not raise."""

    def __init__(self, s3: S3Tier | None) -> None:
        self._s3 = s3
        self._left_alone_until = float("-inf")

    @property
    def is_left_alone(self) -> bool:
        """Whether only those who insist are served."""
        return time.monotonic() < self._left_alone_until

    def open_blob(self, digest: Digest, start: int = 0, etag: str = "", *, insist: bool = False) -> S3Body | None:
        """A blob from byte `start` on."""
        return self._ask(lambda s3: s3.open_blob(digest, start, etag), insist=insist)

    def stat_blob(self, digest: Digest, *, insist: bool = False) -> Stat | None:
        """The size and age of a blob."""
        return self._ask(lambda s3: s3.stat_blob(digest), insist=insist)

    def read_manifest(self, name: Name, digest: Digest, *, insist: bool = False) -> StoredObject | None:
        """A manifest, not verified."""
        return self._ask(lambda s3: s3.read_manifest(name, digest), insist=insist)

    def read_pointer(self, name: Name, tag: Tag, *, insist: bool = False) -> Pointer | None:
        """What a tag pointed to when it was last published."""
        found = self._ask(lambda s3: s3.read_pointer(name, tag), insist=insist)
        return Pointer(found[0], found[1]) if found else None

    def presign_blob(self, digest: Digest, expires_s: int) -> str | None:
        """A URL of the bucket for a blob, valid for so long."""
        return self._ask(lambda s3: s3.presign_blob(digest, expires_s), insist=False)

    def _ask(self, question: Callable[[S3Tier], T | None], *, insist: bool) -> T | None:
        if self._s3 is None or (self.is_left_alone and not insist):
            return None
        begun = time.monotonic()
        try:
            answer = question(self._s3)
        except StorageFault as exc:
            metrics.bucket_faults.inc()
            log.warning("S3 is in trouble, going without it", seconds=LEFT_ALONE_S, error=str(exc))
            self._left_alone_until = time.monotonic() + LEFT_ALONE_S
            return None
        took = time.monotonic() - begun
        if took > SLOW_S:
            log.warning("S3 is slow, going without it", seconds=LEFT_ALONE_S, took=round(took, 1))
            self._left_alone_until = time.monotonic() + LEFT_ALONE_S
        return answer

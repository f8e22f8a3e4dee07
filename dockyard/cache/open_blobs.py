"""Blobs of the local store that were opened a moment ago and are still open: a hit on one of them needs no thread."""

import asyncio
import os
import resource

from dockyard.cache.threads import Threads
from dockyard.oci.reference import Digest
from dockyard.storage.blob_files import BlobFiles, StoredBlob

MIN_OPEN_BLOBS = 64
# Of the limit of open files, so much is for them, if it is large: the descriptors for clients are reserved before.
DESCRIPTORS_PER_OPEN_BLOB = 64
KEPT_OPEN_S = 2.0


class OpenBlobs:
    """Opens blobs of the local store.

    A blob stays open for KEPT_OPEN_S after it was opened, so that its use is still recorded, and so that the disk space
    of an evicted blob is soon free.
    """

    def __init__(self, files: BlobFiles, threads: Threads) -> None:
        self._files = files
        self._threads = threads
        self._open: dict[Digest, StoredBlob] = {}
        self._max_open = max(MIN_OPEN_BLOBS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // DESCRIPTORS_PER_OPEN_BLOB)

    async def open(self, digest: Digest) -> StoredBlob | None:
        """Open a complete blob; None when it is not in the local store. The caller closes the descriptor."""
        if (kept := self._open.get(digest)) and self._files.is_current(kept):
            return _duplicate(kept)
        blob = await self._threads.disk(self._files.open, digest)
        if blob and blob.is_verified and digest not in self._open and len(self._open) < self._max_open:
            self._open[digest] = kept = _duplicate(blob)
            asyncio.get_running_loop().call_later(KEPT_OPEN_S, self._close, digest, kept)
        return blob

    def close(self) -> None:
        """Close all."""
        for digest, blob in list(self._open.items()):
            self._close(digest, blob)

    def _close(self, digest: Digest, blob: StoredBlob) -> None:
        if self._open.get(digest) is blob:
            del self._open[digest]
            os.close(blob.fd)


def _duplicate(blob: StoredBlob) -> StoredBlob:
    return StoredBlob(blob.digest, os.dup(blob.fd), blob.fingerprint, blob.is_verified)

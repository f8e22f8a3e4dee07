"""Blobs of the local store that were opened a moment ago and are still open: a hit on one of them needs no thread."""

import asyncio
import os

from dockyard.cache.threads import Threads
from dockyard.oci.reference import Digest
from dockyard.storage.local import LocalStore, StoredBlob

MAX_OPEN_BLOBS = 64
KEPT_OPEN_S = 2.0


class OpenBlobs:
    """Opens blobs of the local store.

    A blob stays open for KEPT_OPEN_S after it was opened, so that its use is still recorded, and so that the disk space
    of an evicted blob is soon free.
    """

    def __init__(self, store: LocalStore, threads: Threads) -> None:
        self._store = store
        self._threads = threads
        self._open: dict[Digest, StoredBlob] = {}

    async def open(self, digest: Digest) -> StoredBlob | None:
        """Open a complete blob; None when it is not in the local store. The caller closes the descriptor."""
        blob = self._open.get(digest)
        if blob and os.fstat(blob.fd).st_nlink:  # it was not deleted
            return StoredBlob(os.dup(blob.fd), blob.size)
        blob = await self._threads.disk(self._store.open_blob, digest)
        if blob and digest not in self._open and len(self._open) < MAX_OPEN_BLOBS:
            self._open[digest] = kept = StoredBlob(os.dup(blob.fd), blob.size)
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

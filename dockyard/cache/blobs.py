"""The blob path, top to bottom: a running download, the local store, a redirect to the bucket, a new download."""

import time
from collections.abc import Mapping
from typing import Protocol

import attrs

from dockyard.cache.downloads import Downloads
from dockyard.cache.readers import DownloadReader, FileReader, Reader
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.oci.reference import Digest
from dockyard.routing import Target
from dockyard.s3 import ObjectInfo
from dockyard.storage.items import BlobItem
from dockyard.storage.local import StoredBlob

URL_VALID_S = 1200
OPENED_LATELY_S = 10.0
REMEMBERED_BLOBS = 1000


class Heads(Protocol):
    """What a HEAD of a blob needs of a registry."""

    def head_blob(self, repository: str, digest: Digest) -> int:
        """The size of a blob in bytes. Raises RegistryError."""


@attrs.frozen
class OpenedBlob:
    """A blob ready to be read, and how the request was answered: hit, miss or joined. It cannot change."""

    reader: Reader
    how: str
    checked_at: None = None
    error: None = None


@attrs.frozen
class FoundSize:
    """The size of a blob in bytes, and how it was found: hit, joined, or asked (of the upstream)."""

    size: int
    how: str
    checked_at: None = None
    error: None = None


@attrs.frozen
class RedirectedBlob:
    """A blob that is only in the bucket, and the URL at which the client can have it."""

    url: str


class Blobs:
    """Blobs by digest. With `redirects`, clients are sent to the bucket for blobs that are nowhere else."""

    def __init__(
        self,
        stores: Stores,
        downloads: Downloads,
        registries: Mapping[str, Heads],
        threads: Threads,
        *,
        redirects: bool,
    ) -> None:
        self._stores = stores
        self._downloads = downloads
        self._registries = registries
        self._threads = threads
        self._redirects = redirects
        self._opened_at: dict[Digest, float] = {}

    async def open(self, target: Target, digest: Digest) -> OpenedBlob | RedirectedBlob:
        """Open a blob for reading, fetched if need be. Whoever gets it closes the reader. Raises RegistryError."""
        running = self._downloads.find(digest)
        is_on_its_way = running is not None and not running.is_done  # then it is not in the tier: no need to look
        if not is_on_its_way and (stored := await self._open_stored(digest)):
            return OpenedBlob(FileReader(stored, self._threads), "hit")
        if not is_on_its_way and self._redirects and (url := await self._find_url(digest)):
            return RedirectedBlob(url)
        download, was_running = self._downloads.join(target, digest)
        reader = DownloadReader(download, self._threads)
        try:
            await reader.open()
        except BaseException:
            reader.close()
            raise
        return OpenedBlob(reader, "joined" if was_running else "miss")

    async def find_size(self, target: Target, digest: Digest) -> FoundSize:
        """Find the size of a blob without fetching it. Raises RegistryError."""
        if stored := await self._open_stored(digest):
            FileReader(stored, self._threads).close()
            return FoundSize(stored.size, "hit")
        download = self._downloads.find(digest)
        if download and download.size is not None and not download.error:
            return FoundSize(download.size, "joined")
        if found := await self._stat_in_bucket(digest):
            return FoundSize(found.size, "hit")
        registry = self._registries[target.upstream.prefix]
        size = await self._threads.upstream(registry.head_blob, target.repository, digest)
        return FoundSize(size, "asked")

    async def _open_stored(self, digest: Digest) -> StoredBlob | None:
        """Open a blob of the local store. One that was opened a moment ago takes no thread."""
        now = time.monotonic()
        if now - self._opened_at.pop(digest, float("-inf")) < OPENED_LATELY_S:
            stored = self._stores.local.open_blob(digest)
        else:
            stored = await self._threads.disk(self._stores.local.open_blob, digest)
        if stored:
            self._opened_at[digest] = now
            if len(self._opened_at) > REMEMBERED_BLOBS:
                del self._opened_at[next(iter(self._opened_at))]
            self._stores.publisher.touch_if_due(BlobItem(digest))
        return stored

    async def _find_url(self, digest: Digest) -> str | None:
        if not await self._stat_in_bucket(digest):
            return None
        return await self._threads.bucket(self._stores.bucket.presign_blob, digest, URL_VALID_S)

    async def _stat_in_bucket(self, digest: Digest) -> ObjectInfo | None:
        found = await self._threads.bucket(self._stores.bucket.stat_blob, digest)
        if found:
            await self._threads.disk(self._stores.local.touch_times.mark_published, BlobItem(digest), found.age_s)
            self._stores.publisher.touch_if_due(BlobItem(digest))
        return found

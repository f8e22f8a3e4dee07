"""Blobs by digest. A request is answered by the first of these that applies:

1. a download of the blob is running here: read from it                    joined
2. the local store has it: read the file, which is verified if necessary   hit
3. redirects are on and the bucket has it: the URL of it there             redirected
4. start a download: fetch it, or follow the worker that does              miss

The size of a blob that is not here is asked for by the worker that owns the digest, once for all requests that wait.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import attrs
from cachetools import TTLCache

from dockyard import metrics
from dockyard.cache.client_logins import find_client
from dockyard.cache.client_turns import ClientTurns
from dockyard.cache.downloads import Downloads
from dockyard.cache.open_blobs import OpenBlobs
from dockyard.cache.readers import BlobReader, DownloadReader, FileReader
from dockyard.cache.singleflight import Singleflight
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.errors import RegistryError
from dockyard.oci.reference import Digest, Name
from dockyard.routing import Target
from dockyard.storage.blob_files import StoredBlob
from dockyard.storage.items import BlobItem
from dockyard.workers.messages import SizeReply, SizeRequest, error_reply
from dockyard.workers.peers import PeerConnection, Peers

if TYPE_CHECKING:
    from dockyard.s3.store import ObjectInfo

REDIRECT_VALID_S = 1200
# A client that gets the URL may pull the blob; whoever it gives the URL to, and whatever right it has lost since, not.
RESTRICTED_REDIRECT_VALID_S = 60
SIZE_REMEMBERED_S = 30.0
MAX_REMEMBERED_SIZES = 4096


class BlobSizes(Protocol):
    """The part of an upstream's client that finds sizes."""

    def head_blob(self, repository: str, digest: Digest) -> int:
        """The size of a blob in bytes. Raises RegistryError."""


@attrs.frozen
class OpenedBlob:
    """A blob that is ready to be read. `how`: hit, miss or joined. It is immutable, so it has no `checked_at`."""

    reader: BlobReader
    how: str
    checked_at: None = None
    error: None = None


@attrs.frozen
class FoundSize:
    """The size of a blob in bytes. `how`: hit, joined, or asked (the upstream was asked)."""

    size: int
    how: str
    checked_at: None = None
    error: None = None


@attrs.frozen
class RedirectedBlob:
    """A blob that only the bucket has, and the URL at which the client can get it."""

    url: str


class Blobs:
    """Blobs by digest. With `redirects`, clients are sent to the bucket for blobs that only the bucket has."""

    def __init__(
        self,
        stores: Stores,
        downloads: Downloads,
        peers: Peers,
        upstreams: Mapping[str, BlobSizes],
        threads: Threads,
        *,
        redirects: bool,
        redirect_valid_s: int = REDIRECT_VALID_S,
    ) -> None:
        self._stores = stores
        self._downloads = downloads
        self._peers = peers
        self._upstreams = upstreams
        self._threads = threads
        self._redirects = redirects
        self._redirect_valid_s = redirect_valid_s
        self._open_blobs = OpenBlobs(stores.local.blobs, threads)
        self._client_turns = ClientTurns()
        self._singleflight = Singleflight()
        self._sizes: TTLCache[tuple[Name, Digest], int] = TTLCache(MAX_REMEMBERED_SIZES, SIZE_REMEMBERED_S)

    async def open(
        self, target: Target, digest: Digest, *, is_range: bool = False, client: str = ""
    ) -> OpenedBlob | RedirectedBlob:
        """Open a blob, fetching it if necessary. The caller closes the reader. Raises RegistryError.

        `is_range`: the response may end before the end of the blob, so that it must not start before a blob that is in
        the local store is verified. `client` is the address of the client, for its turns (`cache.client_turns`).
        """
        is_stored = False
        running = self._downloads.find(digest)
        if running is None or running.is_complete:  # a running download is not in the local store yet
            blob = await self._open_stored(digest)
            is_stored = blob is not None
            if blob and blob.is_verified:
                return OpenedBlob(FileReader(blob, self._stores.local.blobs, self._threads), "hit")
            if blob:
                os.close(blob.fd)
            elif self._is_redirected(target, is_range=is_range) and (url := await self._find_url(digest)):
                return RedirectedBlob(url)
        turns = self._client_turns.of(client) if is_range and target.upstream.lazy else None
        files, request_ahead = self._stores.local.blobs, self._downloads.request_ahead
        while True:
            download, is_joined = self._downloads.join(target, digest, is_stored=is_stored, is_range=is_range)
            reader = DownloadReader(download, files, self._threads, request_ahead, turns)
            if not download.is_abandoned:
                break
            reader.close()  # it came too late: the next one is a new download
        try:
            await reader.open(is_range=is_range)
        except BaseException:
            reader.close()
            raise
        if download.is_stored:
            return OpenedBlob(reader, "hit")
        if is_joined or download.is_joined:
            metrics.fills_joined.inc()
            return OpenedBlob(reader, "joined")
        # On a full disk, or of a layer that is too large, what follows is not written to the local store.
        is_kept = download.overflow_start is None or self._stores.bucket.is_configured
        return OpenedBlob(reader, "miss" if is_kept else "asked")

    async def find_size(self, target: Target, digest: Digest) -> FoundSize:
        """Find the size of a blob without downloading it. Raises RegistryError."""
        if blob := await self._open_stored(digest):
            os.close(blob.fd)
            return FoundSize(blob.size, "hit")
        download = self._downloads.find(digest)
        if download and download.size is not None and not download.error:
            return FoundSize(download.size, "joined")
        key = ("find", target.name, digest)
        return await self._singleflight.run(key, lambda: self._find_remote(target, digest), target.login)

    async def find_upstream_size(self, target: Target, digest: Digest) -> int:
        """The size of a blob in bytes by the upstream, whatever is stored here; asked once for all workers.

        Raises RegistryError.
        """
        request = SizeRequest(self._peers.repository_of(target), digest)
        tried = await self._peers.try_owners(str(digest), lambda shard: self._peers.request(shard, request, SizeReply))
        return tried.result.size_bytes if tried.result else await self._ask_once(target, digest)

    async def handle(self, target: Target, request: SizeRequest, connection: PeerConnection) -> None:
        """Ask the upstream for a size, for another worker."""
        try:
            size = await self._ask_once(target, request.digest)
        except RegistryError as exc:
            await connection.send(error_reply(exc))
        else:
            await connection.send(SizeReply(size))

    async def _find_remote(self, target: Target, digest: Digest) -> FoundSize:
        """From the bucket, else from the upstream through the first owner that is available. Raises RegistryError."""
        if found := await self._find_in_bucket(digest):
            return FoundSize(found.size, "hit")
        return FoundSize(await self.find_upstream_size(target, digest), "asked")

    async def _ask_once(self, target: Target, digest: Digest) -> int:
        key = (target.name, digest)
        if (known := self._sizes.get(key)) is not None:
            return known
        return await self._singleflight.run(("ask", *key), lambda: self._ask_upstream(target, digest), target.login)

    async def _ask_upstream(self, target: Target, digest: Digest) -> int:
        upstream = find_client(self._upstreams, target)
        size = await self._threads.upstream(target, upstream.head_blob, target.repository, digest)
        self._sizes[target.name, digest] = size
        return size

    async def _open_stored(self, digest: Digest) -> StoredBlob | None:
        blob = await self._open_blobs.open(digest)
        if blob:
            self._stores.publisher.touch_if_due(BlobItem(digest))
        return blob

    def _is_redirected(self, target: Target, *, is_range: bool) -> bool:
        """Whether a client may be sent to the bucket: not with a range if the upstream has `lazy`.

        stargz-snapshotter follows redirects only when it mounts a layer. Later it reads from the URL that it had then,
        and a redirect from there is an error in the container.
        """
        return self._redirects and not (is_range and target.upstream.lazy)

    async def _find_url(self, digest: Digest) -> str | None:
        if not await self._find_in_bucket(digest):
            return None
        return await self._threads.bucket(
            self._stores.bucket.read, lambda s3: s3.presign_blob(digest, self._redirect_valid_s)
        )

    async def _find_in_bucket(self, digest: Digest) -> "ObjectInfo | None":
        """Size and age of the blob in the bucket. An empty object that should not be empty does not count."""
        if not self._stores.bucket.is_configured:
            return None
        found: ObjectInfo | None = await self._threads.bucket(self._stores.bucket.read, lambda s3: s3.stat_blob(digest))
        if found is None or (not found.size and digest != Digest.of(b"", digest.algorithm)):
            return None
        item = BlobItem(digest)
        await self._threads.disk(self._stores.local.touch_times.mark_published, item, found.age_s)
        self._stores.publisher.touch_if_due(item)
        return found

"""Blobs only through a repository that names them: with restricted access, a digest alone gives nobody a blob.

A request for a blob of a repository passes if the first of these that has an answer says that the blob belongs there:

1. a link in memory: a manifest of the repository that this worker has served, or a former answer
2. the manifests of the repository in the local store (`storage/link_index.py`)
3. the bucket: the link that was written with a manifest (`s3/publisher.py`)
4. the upstream: HEAD of the blob in this repository, asked by the worker that owns the digest

Reading all manifests of a large repository for the first time may take long. After INDEX_WAIT_S the bucket and the
upstream are asked meanwhile, and only their yes is final before all manifests were read.

Where the upstream decides about access, only the upstream is believed: its clients get what it would give them, and a
registry may accept a manifest that names blobs of other repositories. Its yes is in a table that all workers share, and
holds until the server stops, also while the upstream is down.

Whether the blob itself is stored, in the bucket or being downloaded is never looked at, so neither the response nor its
time depends on that. A blob that does not belong to the repository gets the same response as one that nobody has.
"""

import asyncio
import time
from typing import Protocol

from cachetools import TTLCache

from dockyard.access.verdicts import Verdict, Verdicts
from dockyard.cache.singleflight import Singleflight
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.errors import BlobUnknown, FailureDetails, Outage, RegistryError, TooManyRequests
from dockyard.oci.login import Login
from dockyard.oci.manifest import Manifest
from dockyard.oci.reference import Digest, Name
from dockyard.routing import Target

MAX_LINKS = 16_384
# Longer than a manifest is served from memory (cache.manifests.MEMORY_TTL_S): its links are needed a little later.
LINK_TTL_S = 1200.0
MAX_UNKNOWN = 4096
UNKNOWN_TTL_S = 5.0
MAX_LISTINGS = 2
INDEX_WAIT_S = 1.0
MAX_INDEX_WAIT_S = 60.0
UNKNOWN_MESSAGE = "blob unknown to this repository"


class UpstreamSizes(Protocol):
    """The part of `Blobs` that asks the upstream."""

    async def find_upstream_size(self, target: Target, digest: Digest) -> int:
        """The size of a blob in bytes, as the upstream has it. Raises RegistryError."""


class Links:
    """The links from repositories to blobs. `blobs` asks the upstreams.

    `confirmed` is the table of the links that an upstream has confirmed which decides about access; None: none does.
    """

    def __init__(
        self, stores: Stores, blobs: UpstreamSizes, threads: Threads, confirmed: Verdicts | None = None
    ) -> None:
        self._stores = stores
        self._blobs = blobs
        self._threads = threads
        self._confirmed = confirmed
        self._index = stores.local.links
        self._singleflight = Singleflight()
        self._links: TTLCache[tuple[Name, Digest], bool] = TTLCache(MAX_LINKS, LINK_TTL_S)
        self._unknown: TTLCache[tuple[Name, Digest, Login | None], bool] = TTLCache(MAX_UNKNOWN, UNKNOWN_TTL_S)

    async def add(self, target: Target, manifest: Manifest) -> None:
        """Remember the links of a manifest that is about to be served: it may be stored nowhere."""
        if _is_decided_upstream(target):
            return
        for digest in await self._threads.disk(lambda: manifest.named_blobs):
            self._links[target.name, digest] = True

    async def require(self, target: Target, digest: Digest) -> None:
        """Return if the repository has this blob. Raises BlobUnknown if not, and RegistryError if nobody can tell."""
        if _is_decided_upstream(target):
            await self._require_confirmed(target, digest)
            return
        key = (target.name, digest)
        if key in self._links:
            return
        is_updated = await self._update_index(target.name, INDEX_WAIT_S)
        if not self._index.has(target.name, digest):
            try:
                await self._singleflight.run((*key, target.login), lambda: self._ask(target, digest))
            except RegistryError:
                if not is_updated:
                    await self._update_index(target.name, MAX_INDEX_WAIT_S)
                if not self._index.has(target.name, digest):
                    raise
        self._links[key] = True

    async def _require_confirmed(self, target: Target, digest: Digest) -> None:
        """Return if the upstream has confirmed this blob for the repository since the start. Raises RegistryError."""
        if self._confirmed is None:
            raise _unknown()
        key = self._confirmed.blob_key(target.upstream.prefix, target.repository, digest)
        if self._confirmed.find(key) is None:
            asked_at = time.monotonic()
            await self._singleflight.run(
                (target.name, digest, target.login), lambda: self._ask_upstream(target, digest)
            )
            self._confirmed.put(key, Verdict.ADMITTED, asked_at)

    async def _update_index(self, name: Name, wait_s: float) -> bool:
        """Find the manifests that were stored before now; whether that ended in time. Many requests share a listing."""
        asked_at = time.monotonic()
        try:
            async with asyncio.timeout(wait_s):
                for _ in range(MAX_LISTINGS):  # one that was in progress may have begun before a manifest was stored
                    if self._index.listed_at(name) >= asked_at:
                        break
                    if await self._threads.disk(self._index.is_current, name):
                        break
                    await self._singleflight.run(name, lambda: self._threads.links(self._index.refresh, name))
        except TimeoutError:
            return False
        return True

    async def _ask(self, target: Target, digest: Digest) -> None:
        """Ask the bucket, then the upstream. Raises RegistryError."""
        key = (target.name, digest)
        if key in self._links:  # another request has just asked
            return
        self._check_unknown(target, digest)
        if not await self._is_in_bucket(*key):
            await self._ask_upstream_or_bucket(target, digest)
        self._links[key] = True

    async def _ask_upstream_or_bucket(self, target: Target, digest: Digest) -> None:
        """Ask the upstream; while it is down, a bucket that fails as well. Raises RegistryError."""
        try:
            await self._ask_upstream(target, digest)
        except (Outage, TooManyRequests):
            if not self._stores.bucket.is_open:
                raise
            if not await self._is_in_bucket(target.name, digest, even_if_open=True):
                raise

    async def _ask_upstream(self, target: Target, digest: Digest) -> None:
        """Ask the upstream, unless its no is remembered. Raises RegistryError."""
        self._check_unknown(target, digest)
        try:
            await self._blobs.find_upstream_size(target, digest)
        except RegistryError as exc:
            if exc.status != BlobUnknown.status:
                raise
            self._unknown[target.name, digest, target.login] = True
            raise _unknown(exc) from exc

    def _check_unknown(self, target: Target, digest: Digest) -> None:
        """Raise BlobUnknown if the upstream has said so a moment ago."""
        if (target.name, digest, target.login) in self._unknown:
            raise _unknown(remembered=True)

    async def _is_in_bucket(self, name: Name, digest: Digest, *, even_if_open: bool = False) -> bool:
        bucket = self._stores.bucket
        if not bucket.is_configured:
            return False
        found = await self._threads.bucket(
            lambda: bucket.read(lambda s3: s3.has_link(name, digest), even_if_open=even_if_open)
        )
        return bool(found)


def _is_decided_upstream(target: Target) -> bool:
    return target.upstream.access == "upstream"


def _unknown(exc: RegistryError | None = None, *, remembered: bool = False) -> BlobUnknown:
    """The error for a blob that does not belong to the repository, whether it is stored or not."""
    error = "no manifest of this repository that is stored here names the blob"
    details = FailureDetails(error=f"{error}; the upstream: {exc.message}" if exc else error)
    return BlobUnknown(UNKNOWN_MESSAGE, remembered=remembered, details=details)

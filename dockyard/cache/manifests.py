"""Manifests by digest: from memory, the local store or the bucket, else from the upstream, once for all workers.

A digest means one sequence of bytes, so a cached manifest is served without asking the upstream. Others are fetched by
the worker that owns the digest; an owner that is not available is skipped.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import attrs
import structlog
from cachetools import LRUCache

from dockyard import metrics
from dockyard.cache.client_logins import find_client
from dockyard.cache.links import Links
from dockyard.cache.singleflight import Singleflight
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.errors import BadUpstream, Outage, RegistryError, TooManyRequests
from dockyard.oci.manifest import Manifest
from dockyard.oci.reference import Digest, Name, Reference, Tag
from dockyard.routing import Target
from dockyard.storage.items import ManifestItem
from dockyard.workers.messages import ManifestReply, ManifestRequest, error_reply
from dockyard.workers.peers import PeerConnection, Peers

if TYPE_CHECKING:
    from dockyard.s3.store import S3Object

MAX_MEMORY_BYTES = 16 * 1024 * 1024
# Then a manifest is read from the disk again, which records its use: what is in use is evicted last.
MEMORY_TTL_S = 600.0

log = structlog.get_logger()


class ManifestFetcher(Protocol):
    """The part of an upstream's client that fetches manifests."""

    def get_manifest(self, repository: str, reference: Reference) -> Manifest:
        """A verified manifest. Raises RegistryError."""


@attrs.frozen
class FoundManifest:
    """A manifest. `how`: hit or miss. It is immutable, so it has no `checked_at`."""

    manifest: Manifest
    how: str
    checked_at: None = None
    error: None = None


@attrs.frozen
class _KeptManifest:
    """A manifest in memory, until a time on the monotonic clock."""

    manifest: Manifest
    until: float


class Manifests:
    """Manifests by digest. `upstreams` are the clients of the upstreams, by prefix.

    `links` gets each manifest before it is served; None if access is not restricted.
    """

    def __init__(
        self,
        stores: Stores,
        peers: Peers,
        upstreams: Mapping[str, ManifestFetcher],
        threads: Threads,
        links: Links | None = None,
    ) -> None:
        self._stores = stores
        self._peers = peers
        self._upstreams = upstreams
        self._threads = threads
        self._links = links
        self._singleflight = Singleflight()
        self._memory: LRUCache[tuple[Name, Digest], _KeptManifest] = LRUCache(
            MAX_MEMORY_BYTES, lambda kept: kept.manifest.size
        )

    async def get(self, target: Target, digest: Digest) -> FoundManifest:
        """The manifest of a digest. Raises RegistryError."""
        how = "hit"
        manifest = await self._find_local(target, digest)
        if manifest is None:
            how = "miss"
            manifest = await self._obtain(target, digest)
        self._stores.publisher.touch_if_due(ManifestItem(target.name, digest))
        return FoundManifest(manifest, how)

    async def handle(self, target: Target, request: ManifestRequest, connection: PeerConnection) -> None:
        """Find or fetch a manifest for another worker."""
        try:
            manifest = await self._fetch_once(target, request.digest)
        except RegistryError as exc:
            await connection.send(error_reply(exc))
        else:
            await connection.send(ManifestReply(manifest.body, manifest.media_type))

    async def find_stored(self, target: Target, digest: Digest, *, even_if_open: bool = False) -> Manifest | None:
        """The manifest, if the local store or the bucket has it. `even_if_open` as in Bucket.read."""
        if manifest := await self._find_local(target, digest):
            return manifest
        return await self._find_in_bucket(target, digest, even_if_open=even_if_open)

    async def fetch_by_tag(self, target: Target, tag: Tag) -> Manifest:
        """The manifest that the upstream has under a tag; it is then kept. Raises RegistryError."""
        upstream = find_client(self._upstreams, target)
        manifest = await self._threads.upstream(target, upstream.get_manifest, target.repository, tag)
        await self._keep_fetched(target, manifest)
        return manifest

    async def keep(self, target: Target, manifest: Manifest) -> None:
        """Keep a manifest that came with the check of a tag, unless it is stored. Raises BadUpstream."""
        if await self.find_stored(target, manifest.digest) is None:
            await self._keep_fetched(target, manifest)

    async def _find_local(self, target: Target, digest: Digest) -> Manifest | None:
        key = (target.name, digest)
        kept = self._memory.get(key)
        if kept and time.monotonic() < kept.until:
            return kept.manifest
        manifest = await self._threads.disk(self._read, target.name, digest)
        if manifest is None and kept:  # the disk is full, or the file was deleted
            manifest = kept.manifest
        if manifest:
            await self._remember(target, digest, manifest)
        return manifest

    async def _remember(self, target: Target, digest: Digest, manifest: Manifest) -> None:
        if self._links:
            await self._links.add(target, manifest)
        self._memory[target.name, digest] = _KeptManifest(manifest, time.monotonic() + MEMORY_TTL_S)

    async def _find_in_bucket(self, target: Target, digest: Digest, *, even_if_open: bool) -> Manifest | None:
        """The manifest, if the bucket has it; it is then kept here."""
        bucket = self._stores.bucket
        if not bucket.is_configured:
            return None

        def read() -> Manifest | None:
            found = bucket.read(lambda s3: s3.read_manifest(target.name, digest), even_if_open=even_if_open)
            return self._keep_from_bucket(target.name, digest, found) if found else None

        manifest = await self._threads.bucket(read)
        if manifest:
            await self._remember(target, digest, manifest)
        return manifest

    async def _obtain(self, target: Target, digest: Digest) -> Manifest:
        """From the first owner that is available; in the end this worker fetches it. Raises RegistryError."""
        if self._peers.is_owner(str(digest)):
            return await self._fetch_once(target, digest)
        key = ("owner", target.name, digest)
        return await self._singleflight.run(key, lambda: self._ask_owners(target, digest), target.login)

    async def _ask_owners(self, target: Target, digest: Digest) -> Manifest:
        request = ManifestRequest(self._peers.repository_of(target), digest)
        tried = await self._peers.try_owners(
            str(digest), lambda shard: self._peers.request(shard, request, ManifestReply)
        )
        if tried.result is None:
            return await self._fetch_once(target, digest)
        manifest = Manifest.stored(tried.result.body, digest, tried.result.media_type)
        await self._remember(target, digest, manifest)
        return manifest

    async def _fetch_once(self, target: Target, digest: Digest) -> Manifest:
        key = ("fetch", target.name, digest)
        return await self._singleflight.run(key, lambda: self._fetch(target, digest), target.login)

    async def _fetch(self, target: Target, digest: Digest) -> Manifest:
        """From the stores, else from the upstream; it is then kept and published. Raises RegistryError."""
        if manifest := await self.find_stored(target, digest):
            return manifest
        upstream = find_client(self._upstreams, target)
        try:
            manifest = await self._threads.upstream(target, upstream.get_manifest, target.repository, digest)
        except (Outage, TooManyRequests):
            if self._stores.bucket.is_open and (found := await self._find_in_bucket(target, digest, even_if_open=True)):
                return found
            raise
        await self._keep_fetched(target, manifest)
        return manifest

    async def _keep_fetched(self, target: Target, manifest: Manifest) -> None:
        """Keep a manifest of the upstream. Raises BadUpstream for one that would give access to what it only names."""
        if self._links and manifest.is_of_other_type:
            prefix = target.upstream.prefix
            raise BadUpstream(f"{prefix} sent a manifest whose Content-Type is not that of its content")
        await self._threads.disk(self._keep, target.name, manifest)
        await self._remember(target, manifest.digest, manifest)

    # Blocking: these run in threads

    def _read(self, name: Name, digest: Digest) -> Manifest | None:
        body = self._stores.local.read_manifest(name, digest)
        if body is None:
            return None
        try:
            return Manifest.stored(body, digest, self._stores.local.read_media_type(name, digest))
        except BadUpstream:
            metrics.damaged_files.labels("manifest").inc()
            log.warning("damaged manifest in the local store: it is fetched again", name=str(name), digest=str(digest))
            return None

    def _keep(self, name: Name, manifest: Manifest) -> None:
        """Keep a manifest of the upstream. It is in the outbox before, so that a crash in between publishes it."""
        item = ManifestItem(name, manifest.digest)
        self._stores.publisher.add_to_outbox(item)
        self._write(name, manifest)
        self._stores.publisher.publish(item)

    def _keep_from_bucket(self, name: Name, digest: Digest, found: "S3Object") -> Manifest | None:
        try:
            manifest = Manifest.stored(found.body, digest, found.media_type)
        except BadUpstream:
            log.warning("damaged manifest in the bucket: it is not used", name=str(name), digest=str(digest))
            return None
        self._write(name, manifest, bucket_age_s=found.age_s)
        return manifest

    def _write(self, name: Name, manifest: Manifest, *, bucket_age_s: float = 0.0) -> None:
        media_type = None if manifest.declares_media_type else manifest.media_type
        local = self._stores.local
        local.write_manifest(name, manifest.digest, manifest.body, media_type, bucket_age_s=bucket_age_s)

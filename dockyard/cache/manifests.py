"""Manifests by digest: memory, the local store, the bucket, and then the upstream, once over all workers.

A digest means one sequence of bytes, so what is here is served without asking anybody. What is not is fetched by the
worker that owns the digest; an owner that is dead or frozen is done without.
"""

import functools
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Protocol

import attrs
import structlog

from dockyard.cache.singleflight import Singleflight
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.errors import BadUpstream, Outage, RegistryError, TooManyRequests, to_words
from dockyard.oci.manifest import Manifest
from dockyard.oci.reference import Digest, Reference
from dockyard.routing import Target
from dockyard.storage.items import ManifestItem
from dockyard.workers.peers import PeerGone, Peers, PeerSilent, Question, Reply

MEMORY_BYTES = 16 * 1024 * 1024

log = structlog.get_logger()


class Gets(Protocol):
    """What is needed of a registry."""

    def get_manifest(self, repository: str, reference: Reference) -> Manifest:
        """A verified manifest. Raises RegistryError."""


@attrs.frozen
class FoundManifest:
    """A manifest, and how it was found: hit or miss. It cannot change."""

    manifest: Manifest
    how: str
    checked_at: None = None
    error: None = None


class Manifests:
    """Manifests by digest."""

    def __init__(
        self,
        stores: Stores,
        peers: Peers,
        registries: Mapping[str, Gets],
        threads: Threads,
    ) -> None:
        self._stores = stores
        self._peers = peers
        self._registries = registries
        self._threads = threads
        self._singleflight = Singleflight()
        self._memory = _Memory()

    async def get(self, target: Target, digest: Digest) -> FoundManifest:
        """The manifest of a digest. Raises RegistryError."""
        how = "hit"
        manifest = await self._find_here(target, digest)
        if manifest is None:
            how = "miss"
            manifest = await self._singleflight.once(
                ("obtain", target.name, digest), lambda: self._obtain(target, digest)
            )
            self._memory.keep((target.name, digest), manifest)
        self._stores.publisher.touch_if_due(ManifestItem(target.name, digest))
        return FoundManifest(manifest, how)

    async def answer(self, target: Target, digest: Digest, reply: Reply) -> None:
        """Fetch a manifest for another worker."""
        try:
            manifest = await self._fetch_once(target, digest)
        except RegistryError as exc:
            await reply.say(to_words(exc))
            return
        await reply.say({}, manifest.body)

    async def find_stored(self, target: Target, digest: Digest, *, insist: bool = False) -> Manifest | None:
        """The manifest, if it is here or in the bucket; from there it is kept here."""
        if manifest := await self._find_here(target, digest):
            return manifest
        ask = functools.partial(self._stores.bucket.read_manifest, target.name, digest, insist=insist)
        if (found := await self._threads.bucket(ask)) is None:
            return None
        try:
            manifest = Manifest.stored(found.body, digest)
        except BadUpstream:
            log.warning("a manifest in the bucket is damaged", name=str(target.name), digest=str(digest))
            return None
        await self._threads.disk(self._stores.local.write_manifest, target.name, digest, manifest.body)
        self._stores.local.touch_times.mark_published(ManifestItem(target.name, digest), found.age_s)
        return manifest

    async def _find_here(self, target: Target, digest: Digest) -> Manifest | None:
        """The manifest, if it is on this machine."""
        manifest = self._memory.find((target.name, digest))
        if manifest is None and (manifest := await self._threads.disk(self._read, target, digest)):
            self._memory.keep((target.name, digest), manifest)
        return manifest

    async def _obtain(self, target: Target, digest: Digest) -> Manifest:
        question = Question("manifest", target.upstream.prefix, target.repository, target.name.value, str(digest))
        for shard in self._peers.before_us(str(digest)):
            try:
                _, body = await self._peers.ask_once(shard, question)
            except (PeerGone, PeerSilent):
                continue
            return Manifest.stored(body, digest)
        return await self._fetch_once(target, digest)

    async def _fetch_once(self, target: Target, digest: Digest) -> Manifest:
        return await self._singleflight.once(("fetch", target.name, digest), lambda: self._fetch(target, digest))

    async def _fetch(self, target: Target, digest: Digest) -> Manifest:
        if manifest := await self.find_stored(target, digest):
            return manifest
        registry = self._registries[target.upstream.prefix]
        try:
            manifest = await self._threads.upstream(registry.get_manifest, target.repository, digest)
        except (Outage, TooManyRequests):
            if self._stores.bucket.is_left_alone and (found := await self.find_stored(target, digest, insist=True)):
                return found
            raise
        self._stores.publisher.add_to_outbox(ManifestItem(target.name, digest))
        await self._threads.disk(self._stores.local.write_manifest, target.name, digest, manifest.body)
        self._stores.publisher.publish(ManifestItem(target.name, digest))
        return manifest

    def _read(self, target: Target, digest: Digest) -> Manifest | None:
        body = self._stores.local.read_manifest(target.name, digest)
        if body is None:
            return None
        try:
            return Manifest.stored(body, digest)
        except BadUpstream:
            log.warning("a cached manifest was damaged and is fetched again", name=str(target.name), digest=str(digest))
            return None


class _Memory:
    """The manifests that were used last, up to MEMORY_BYTES."""

    def __init__(self) -> None:
        self._manifests: OrderedDict[Hashable, Manifest] = OrderedDict()
        self._size = 0

    def find(self, key: Hashable) -> Manifest | None:
        manifest = self._manifests.get(key)
        if manifest:
            self._manifests.move_to_end(key)
        return manifest

    def keep(self, key: Hashable, manifest: Manifest) -> None:
        if key in self._manifests:
            return
        self._manifests[key] = manifest
        self._size += manifest.size
        while self._size > MEMORY_BYTES:
            self._size -= self._manifests.popitem(last=False)[1].size

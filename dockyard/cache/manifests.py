"""The manifest path: tags are checked with the upstream, digests never are.

A tag belongs to one shard and a digest to another: the owner asks the upstream, once for all who wait, and the others
ask the owner. An owner that is dead or frozen is done without; only a dead one's pointers are written by another, so
that a worker which wakes up cannot find its own older answer to be the newer one.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping
from typing import Any, Protocol, TypeVar

import attrs
import structlog

from dockyard.cache.bridge import Threads
from dockyard.cache.freshness import Answer, Cached, Fail, Fetch, Serve, decide
from dockyard.errors import BadUpstream, Outage, RegistryError, TooManyRequests, UpstreamTimeout, from_words, to_words
from dockyard.oci.manifest import Descriptor, Manifest
from dockyard.oci.reference import Digest, Reference, Tag
from dockyard.routing import Target
from dockyard.storage.local import LocalTier, Pointer
from dockyard.workers.peers import PeerGone, Peers, PeerSilent, Question, Reply, Words
from dockyard.workers.shards import owners

PEER_TIMEOUT_S = 60.0
MEMORY_BYTES = 16 * 1024 * 1024
CONFIRM_EVERY_S = 60.0

T = TypeVar("T")

log = structlog.get_logger()


class Registry(Protocol):
    """What the manifest path needs of a registry."""

    def head_manifest(self, repository: str, reference: Reference) -> Descriptor:
        """What the reference points to. Raises RegistryError."""

    def get_manifest(self, repository: str, reference: Reference) -> Manifest:
        """A verified manifest. Raises RegistryError."""


@attrs.frozen
class Resolution:
    """What a tag means now.

    `how` is hit (checked a moment ago), match (checked now, unchanged), changed, miss (not known before) or stale, with
    the `error` that kept us from checking. `checked_at` is in seconds since the epoch.
    """

    digest: Digest
    how: str
    checked_at: float
    error: RegistryError | None = None


@attrs.frozen
class FoundManifest:
    """A manifest and how it was found: hit or miss for a digest, as in Resolution for a tag."""

    manifest: Manifest
    how: str
    checked_at: float | None = None
    error: RegistryError | None = None


class Manifests:
    """Manifests by tag and by digest. `shard` is ours; None while we have none."""

    def __init__(
        self,
        tier: LocalTier,
        peers: Peers,
        shards: int,
        registries: Mapping[str, Registry],
        threads: Threads,
        check_interval_s: float,
    ) -> None:
        self.shard: int | None = None
        self._tier = tier
        self._peers = peers
        self._shards = shards
        self._registries = registries
        self._threads = threads
        self._check_interval_s = check_interval_s
        self._memory = _Memory()
        self._running: dict[Hashable, asyncio.Task[Any]] = {}
        self._checked: OrderedDict[Hashable, tuple[float, Resolution]] = OrderedDict()

    async def find(self, target: Target, reference: Reference) -> FoundManifest:
        """The manifest that a reference means. Raises RegistryError."""
        if isinstance(reference, Digest):
            manifest, how = await self._by_digest(target, reference)
            return FoundManifest(manifest, how)
        resolution = await self._once(("resolve", target.name, reference), lambda: self._resolve(target, reference))
        manifest, _ = await self._by_digest(target, resolution.digest)
        return FoundManifest(manifest, resolution.how, resolution.checked_at, resolution.error)

    async def answer_tag(self, target: Target, tag: Tag, reply: Reply) -> None:
        """Resolve a tag for another worker."""
        try:
            resolution = await self._check_once(target, tag, writes=True)
        except RegistryError as exc:
            await reply.say(to_words(exc))
            return
        error = to_words(resolution.error) if resolution.error else None
        await reply.say(
            {
                "digest": str(resolution.digest),
                "how": resolution.how,
                "checked_at": resolution.checked_at,
                "because": error,
            }
        )

    async def answer_manifest(self, target: Target, digest: Digest, reply: Reply) -> None:
        """Fetch a manifest for another worker."""
        try:
            manifest = await self._fetch_once(target, digest)
        except RegistryError as exc:
            await reply.say(to_words(exc))
            return
        await reply.say({}, manifest.body)

    # By tag

    async def _resolve(self, target: Target, tag: Tag) -> Resolution:
        question = Question("tag", target.upstream.prefix, target.repository, target.name.value, tag.value)
        for shard in owners(f"{target.name}:{tag}", self._shards):
            if shard == self.shard:
                break
            try:
                return await self._ask_to_resolve(shard, question)
            except PeerGone:
                continue
            except PeerSilent:
                return await self._check_once(target, tag, writes=False)
        return await self._check_once(target, tag, writes=True)

    async def _ask_to_resolve(self, shard: int, question: Question) -> Resolution:
        words, _ = await self._ask(shard, question)
        try:
            error = from_words(words["because"]) if words["because"] else None
            return Resolution(Digest.parse(words["digest"]), words["how"], words["checked_at"], error)
        except (KeyError, TypeError) as exc:
            raise PeerGone from exc

    async def _check_once(self, target: Target, tag: Tag, *, writes: bool) -> Resolution:
        return await self._once(("check", target.name, tag), lambda: self._check(target, tag, writes=writes))

    async def _check(self, target: Target, tag: Tag, *, writes: bool) -> Resolution:
        """Ask the upstream what the tag means, decide, act."""
        if recent := self._find_recent(target, tag):
            return recent
        pointer = await self._threads.disk(self._find_pointer, target, tag)
        cached = Cached(pointer.digest, pointer.checked_at) if pointer else None
        match decide(cached, await self._ask_upstream(target, tag)):
            case Serve(digest, None) if pointer:
                if writes and time.time() - pointer.checked_at > CONFIRM_EVERY_S:
                    await self._threads.disk(self._tier.confirm_pointer, target.name, tag)
                return self._remember(target, tag, Resolution(digest, "match", time.time()))
            case Serve(digest, error) if pointer:
                return Resolution(digest, "stale", pointer.checked_at, error)
            case Fetch(digest):
                try:
                    await self._by_digest(target, digest)
                except (Outage, TooManyRequests) as exc:
                    if pointer is None:
                        raise
                    return Resolution(pointer.digest, "stale", pointer.checked_at, exc)
                if writes:
                    await self._threads.disk(self._tier.write_pointer, target.name, tag, digest)
                how = "changed" if pointer else "miss"
                return self._remember(target, tag, Resolution(digest, how, time.time()))
            case Fail(error):
                raise error
        raise AssertionError("a tag that is not cached cannot be served")

    async def _ask_upstream(self, target: Target, tag: Tag) -> Answer:
        registry = self._registries[target.upstream.prefix]
        try:
            return await self._threads.upstream(registry.head_manifest, target.repository, tag)
        except RegistryError as exc:
            return exc

    def _find_pointer(self, target: Target, tag: Tag) -> Pointer | None:
        """The pointer, if the manifest that it points to is here too."""
        pointer = self._tier.read_pointer(target.name, tag)
        if pointer and self._tier.read_manifest(target.name, pointer.digest) is not None:
            return pointer
        return None

    def _find_recent(self, target: Target, tag: Tag) -> Resolution | None:
        at, resolution = self._checked.get((target.name, tag), (0.0, None))
        if resolution and time.monotonic() - at < self._check_interval_s:
            return attrs.evolve(resolution, how="hit")
        return None

    def _remember(self, target: Target, tag: Tag, resolution: Resolution) -> Resolution:
        if self._check_interval_s:
            self._checked[(target.name, tag)] = (time.monotonic(), resolution)
            self._checked.move_to_end((target.name, tag))
            if len(self._checked) > 10_000:
                self._checked.popitem(last=False)
        return resolution

    # By digest

    async def _by_digest(self, target: Target, digest: Digest) -> tuple[Manifest, str]:
        if manifest := self._memory.find((target.name, digest)):
            return manifest, "hit"
        if manifest := await self._threads.disk(self._read, target, digest):
            self._memory.keep((target.name, digest), manifest)
            return manifest, "hit"
        manifest = await self._once(("obtain", target.name, digest), lambda: self._obtain(target, digest))
        self._memory.keep((target.name, digest), manifest)
        return manifest, "miss"

    async def _obtain(self, target: Target, digest: Digest) -> Manifest:
        question = Question("manifest", target.upstream.prefix, target.repository, target.name.value, str(digest))
        for shard in owners(str(digest), self._shards):
            if shard == self.shard:
                break
            try:
                _, body = await self._ask(shard, question)
            except (PeerGone, PeerSilent):
                continue
            return Manifest.stored(body, digest)
        return await self._fetch_once(target, digest)

    async def _fetch_once(self, target: Target, digest: Digest) -> Manifest:
        return await self._once(("fetch", target.name, digest), lambda: self._fetch(target, digest))

    async def _fetch(self, target: Target, digest: Digest) -> Manifest:
        if manifest := await self._threads.disk(self._read, target, digest):
            return manifest  # somebody was faster
        registry = self._registries[target.upstream.prefix]
        manifest = await self._threads.upstream(registry.get_manifest, target.repository, digest)
        await self._threads.disk(self._tier.write_manifest, target.name, digest, manifest.body)
        return manifest

    def _read(self, target: Target, digest: Digest) -> Manifest | None:
        body = self._tier.read_manifest(target.name, digest)
        if body is None:
            return None
        try:
            return Manifest.stored(body, digest)
        except BadUpstream:
            log.warning("a cached manifest was damaged and is fetched again", name=str(target.name), digest=str(digest))
            return None

    # Together

    async def _ask(self, shard: int, question: Question) -> tuple[Words, bytes]:
        """Ask a shard. Raises PeerGone, PeerSilent, and the error that it answers with."""
        try:
            async with asyncio.timeout(PEER_TIMEOUT_S), self._peers.ask(shard, question) as answer:
                words = await answer.next_words()
                payload = await answer.read_payload(words)
        except TimeoutError as exc:
            raise UpstreamTimeout("the upstream did not answer in time", retry_after_s=5) from exc
        if "error" in words:
            raise from_words(words)
        return words, payload

    async def _once(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do the work once for all who want it now. A client that leaves does not stop it."""
        task: asyncio.Task[T] | None = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._end(key, done))
        return await asyncio.shield(task)

    def _end(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # seen, though everybody who waited may have left


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

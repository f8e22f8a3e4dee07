"""Tags: each pull of a tag is checked with the upstream, and what cannot be checked is served stale.

A tag belongs to one shard: its owner asks the upstream, once for all who wait, and the others ask the owner. An owner
that is dead or frozen is done without. A pointer is moved only if it is what it was before the upstream was asked, so
that a worker which wakes up cannot take its own older answer for the newer one: it asks again.
"""

import functools
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Protocol

import attrs

from dockyard import metrics
from dockyard.cache.freshness import Answer, Cached, Fail, Fetch, Serve, decide
from dockyard.cache.manifests import Manifests
from dockyard.cache.singleflight import Singleflight
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.errors import Outage, RegistryError, TooManyRequests, from_words, reason_of, to_words
from dockyard.oci.manifest import Descriptor, Manifest
from dockyard.oci.reference import Digest, Reference, Tag
from dockyard.routing import Target
from dockyard.storage.items import TagItem
from dockyard.storage.local import Pointer
from dockyard.workers.peers import PeerGone, Peers, PeerSilent, Question, Reply

CONFIRM_EVERY_S = 60.0
CHECKS_REMEMBERED = 10_000


class Heads(Protocol):
    """What is needed of a registry."""

    def head_manifest(self, repository: str, reference: Reference) -> Descriptor:
        """What the reference points to. Raises RegistryError."""


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
class FoundTag:
    """The manifest that a tag means, and how that was found out; see Resolution."""

    manifest: Manifest
    how: str
    checked_at: float
    error: RegistryError | None


class Tags:
    """Manifests by tag."""

    def __init__(
        self,
        manifests: Manifests,
        stores: Stores,
        peers: Peers,
        registries: Mapping[str, Heads],
        threads: Threads,
        check_interval_s: float,
        check_timeout_s: float,
    ) -> None:
        self._manifests = manifests
        self._stores = stores
        self._peers = peers
        self._registries = registries
        self._threads = threads
        self._check_interval_s = check_interval_s
        self._singleflight = Singleflight(join_within_s=check_timeout_s or float("inf"))
        self._checked: OrderedDict[Hashable, tuple[float, Resolution]] = OrderedDict()

    async def get(self, target: Target, tag: Tag) -> FoundTag:
        """The manifest that a tag means. Raises RegistryError."""
        resolution = await self._singleflight.once(("resolve", target.name, tag), lambda: self._resolve(target, tag))
        if resolution.error:
            metrics.stale.labels(target.upstream.prefix, reason_of(resolution.error)).inc()
        found = await self._manifests.get(target, resolution.digest)
        self._stores.publisher.touch_if_due(TagItem(target.name, tag))
        return FoundTag(found.manifest, resolution.how, resolution.checked_at, resolution.error)

    async def answer(self, target: Target, tag: Tag, reply: Reply) -> None:
        """Resolve a tag for another worker."""
        try:
            resolution = await self._check_once(target, tag)
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

    async def _resolve(self, target: Target, tag: Tag) -> Resolution:
        question = Question("tag", target.upstream.prefix, target.repository, target.name.value, tag.value)
        for shard in self._peers.before_us(f"{target.name}:{tag}"):
            try:
                return await self._ask_to_resolve(shard, question)
            except PeerGone:
                continue
            except PeerSilent:
                break
        return await self._check_once(target, tag)

    async def _ask_to_resolve(self, shard: int, question: Question) -> Resolution:
        words, _ = await self._peers.ask_once(shard, question)
        try:
            error = from_words(words["because"]) if words["because"] else None
            return Resolution(Digest.parse(words["digest"]), words["how"], words["checked_at"], error)
        except (KeyError, TypeError) as exc:
            raise PeerGone from exc

    async def _check_once(self, target: Target, tag: Tag) -> Resolution:
        return await self._singleflight.once(("check", target.name, tag), lambda: self._check(target, tag))

    async def _check(self, target: Target, tag: Tag) -> Resolution:
        """Ask the upstream what the tag means, decide, act."""
        if recent := self._find_recent(target, tag):
            return recent
        written = await self._read_pointer(target, tag)
        pointer = await self._usable(target, written)
        answer = await self._ask_upstream(target, tag)
        if pointer is None and isinstance(answer, RegistryError) and self._stores.bucket.is_left_alone:
            pointer = await self._usable(target, await self._read_pointer(target, tag, insist=True), insist=True)
        cached = Cached(pointer.digest, pointer.checked_at) if pointer else None
        match decide(cached, answer):
            case Serve(digest, None) if pointer:
                if time.time() - pointer.checked_at > CONFIRM_EVERY_S:
                    await self._threads.disk(self._stores.local.confirm_pointer, target.name, tag)
                return self._remember(target, tag, Resolution(digest, "match", time.time()))
            case Serve(digest, error) if pointer:
                return Resolution(digest, "stale", pointer.checked_at, error)
            case Fetch(digest):
                return await self._move(target, tag, digest, pointer, written)
            case Fail(error):
                raise error
        raise AssertionError("a tag that is not cached cannot be served")

    async def _move(
        self, target: Target, tag: Tag, digest: Digest, pointer: Pointer | None, written: Pointer | None
    ) -> Resolution:
        """Fetch what the tag means now, then move the pointer. What it meant before is stale when that fails.

        `pointer` is what can be served, `written` what stood there before the upstream was asked.
        """
        try:
            await self._manifests.get(target, digest)
        except (Outage, TooManyRequests) as exc:
            if pointer is None:
                raise
            return Resolution(pointer.digest, "stale", pointer.checked_at, exc)
        self._stores.publisher.add_to_outbox(TagItem(target.name, tag))
        moved = Pointer(digest, time.time())
        if not await self._threads.disk(self._stores.local.move_pointer, target.name, tag, written, moved):
            return await self._check(target, tag)  # another worker moved it while we asked: ask again
        self._stores.publisher.publish(TagItem(target.name, tag))
        how = "changed" if pointer else "miss"
        return self._remember(target, tag, Resolution(digest, how, time.time()))

    async def _ask_upstream(self, target: Target, tag: Tag) -> Answer:
        registry = self._registries[target.upstream.prefix]
        try:
            return await self._threads.upstream(registry.head_manifest, target.repository, tag)
        except RegistryError as exc:
            return exc

    async def _read_pointer(self, target: Target, tag: Tag, *, insist: bool = False) -> Pointer | None:
        """The pointer that is here, or in the bucket; from there it is kept here."""
        if pointer := await self._threads.disk(self._stores.local.read_pointer, target.name, tag):
            return pointer
        ask = functools.partial(self._stores.bucket.read_pointer, target.name, tag, insist=insist)
        found = await self._threads.bucket(ask)
        if found is None:
            return None
        if await self._threads.disk(self._stores.local.move_pointer, target.name, tag, None, found):
            age_s = max(time.time() - found.checked_at, 0.0)
            self._stores.local.touch_times.mark_published(TagItem(target.name, tag), age_s)
        return await self._threads.disk(self._stores.local.read_pointer, target.name, tag) or found

    async def _usable(self, target: Target, pointer: Pointer | None, *, insist: bool = False) -> Pointer | None:
        """The pointer, if the manifest that it points to can be had."""
        if pointer and await self._manifests.find_stored(target, pointer.digest, insist=insist):
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
            if len(self._checked) > CHECKS_REMEMBERED:
                self._checked.popitem(last=False)
        return resolution

"""Tags: every pull of a tag checks it with the upstream; a tag that cannot be checked is served stale.

A tag belongs to one shard: its owner asks the upstream, once for all requests that wait, and the other workers ask the
owner. An owner that is not available is skipped. A pointer is moved only if it is what it was before the upstream was
asked, so that a worker that was frozen in between cannot replace a newer answer by its own older one: it asks again.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import Protocol

import attrs
import structlog
from cachetools import LRUCache

from dockyard import metrics
from dockyard.cache.client_logins import find_client
from dockyard.cache.freshness import Cached, Checked, Decision, Fail, Fetch, Serve, decide
from dockyard.cache.manifests import Manifests
from dockyard.cache.singleflight import Singleflight
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.errors import (
    BadUpstream,
    FailureDetails,
    ManifestUnknown,
    Outage,
    RegistryError,
    TooManyRequests,
    Unavailable,
    reason_of,
)
from dockyard.log import is_debug
from dockyard.oci.manifest import Descriptor, Manifest
from dockyard.oci.reference import Digest, Name, Reference, Tag
from dockyard.routing import Target
from dockyard.storage.items import ManifestItem, TagItem
from dockyard.storage.local import Pointer
from dockyard.workers.messages import TagReply, TagRequest, error_reply, to_error
from dockyard.workers.peers import PeerConnection, Peers

CONFIRM_INTERVAL_S = 60.0
MAX_REMEMBERED_CHECKS = 10_000

log = structlog.get_logger()


class TagChecker(Protocol):
    """The part of an upstream's client that tells what a tag points to."""

    def head_manifest(
        self, repository: str, reference: Reference, deadline: float | None = None, *, has_copy: bool = False
    ) -> Descriptor:
        """What the reference points to, before the deadline (monotonic clock). Raises RegistryError.

        `has_copy`: there is something stale to serve, which must not wait.
        """


@attrs.frozen
class FoundTag:
    """The manifest that a tag points to.

    `how`: hit (checked less than `check_interval` ago), match (checked now, unchanged), changed, miss (not cached
    before), or stale, with the `error` of the check. `checked_at` is in seconds since the epoch. `valid_until` is when
    it must be checked again, on the monotonic clock; 0: for the next request.
    """

    manifest: Manifest
    how: str
    checked_at: float
    error: RegistryError | None = None
    valid_until: float = 0.0


@attrs.frozen
class _Check:
    """The result of a check that is remembered, in the owner and in the workers that have asked it.

    `checked_at` and `valid_until` as in FoundTag.
    """

    digest: Digest
    checked_at: float
    valid_until: float


class Tags:
    """Manifests by tag. `upstreams` are the clients of the upstreams, by prefix."""

    def __init__(
        self,
        manifests: Manifests,
        stores: Stores,
        peers: Peers,
        upstreams: Mapping[str, TagChecker],
        threads: Threads,
        check_interval_s: float,
        check_timeout_s: float,
        uncached_timeout_s: float,
    ) -> None:
        self._manifests = manifests
        self._stores = stores
        self._peers = peers
        self._upstreams = upstreams
        self._threads = threads
        self._check_interval_s = check_interval_s
        self._check_timeout_s = check_timeout_s
        self._uncached_timeout_s = uncached_timeout_s
        self._singleflight = Singleflight(join_within_s=check_timeout_s or float("inf"))
        self._checks: LRUCache[tuple[Name, Tag], _Check] = LRUCache(MAX_REMEMBERED_CHECKS)

    async def get(self, target: Target, tag: Tag) -> FoundTag:
        """The manifest that a tag points to. Raises RegistryError."""
        if recent := await self._find_recent(target, tag):
            found = recent
        elif self._peers.is_owner(_shard_key(target, tag)):
            found = await self._check_once(target, tag)
        else:
            key = ("owner", target.name, tag)
            found = await self._singleflight.run(key, lambda: self._ask_owners(target, tag), target.login)
        if found.error:
            metrics.stale.labels(target.upstream.prefix, reason_of(found.error)).inc()
        self._stores.publisher.touch_if_due(ManifestItem(target.name, found.manifest.digest))
        self._stores.publisher.touch_if_due(TagItem(target.name, tag))
        return found

    async def handle(self, target: Target, request: TagRequest, connection: PeerConnection) -> None:
        """Check a tag for another worker."""
        try:
            found = await self._check_once(target, request.tag)
        except RegistryError as exc:
            await connection.send(error_reply(exc))
            return
        because = error_reply(found.error) if found.error else None
        valid_s = max(found.valid_until - time.monotonic(), 0.0)
        await connection.send(TagReply(found.manifest.digest, found.how, found.checked_at, because, valid_s))

    async def _ask_owners(self, target: Target, tag: Tag) -> FoundTag:
        """From the first owner that is available; in the end this worker checks the tag itself."""
        request, asked_at = TagRequest(self._peers.repository_of(target), tag), time.monotonic()
        tried = await self._peers.try_owners(
            _shard_key(target, tag), lambda shard: self._peers.request(shard, request, TagReply)
        )
        if (reply := tried.result) is None:
            return await self._check_once(target, tag)
        manifest = (await self._manifests.get(target, reply.digest)).manifest
        error = to_error(reply.stale_because) if reply.stale_because else None
        valid_until = asked_at + min(reply.valid_s, self._check_interval_s)
        return self._remember(target, tag, FoundTag(manifest, reply.how, reply.checked_at, error, valid_until))

    # As the owner

    async def _check_once(self, target: Target, tag: Tag) -> FoundTag:
        key = ("check", target.name, tag)
        return await self._singleflight.run(key, lambda: self._check(target, tag), target.login)

    async def _check(self, target: Target, tag: Tag) -> FoundTag:
        """Ask the upstream what the tag points to, decide (see `freshness`), and act."""
        if recent := await self._find_recent(target, tag):
            return recent
        written = pointer = await self._read_pointer(target, tag)
        manifest = await self._manifests.find_stored(target, pointer.digest) if pointer else None
        checked = await self._ask_upstream(target, tag, is_cached=manifest is not None)
        if manifest is None and isinstance(checked, RegistryError) and self._stores.bucket.is_open:
            pointer = await self._read_pointer(target, tag, even_if_open=True)
            if pointer:
                manifest = await self._manifests.find_stored(target, pointer.digest, even_if_open=True)
        cached = Cached(pointer.digest, pointer.checked_at) if pointer and manifest else None
        decision = decide(cached, checked)
        if is_debug():
            _log_decision(target, tag, cached, checked, decision)
        match decision:
            case Serve(_, None) if pointer and manifest and isinstance(checked, Descriptor):
                return await self._confirm(target, tag, pointer, manifest, checked)
            case Serve(_, error) if pointer and manifest:
                return FoundTag(manifest, "stale", pointer.checked_at, error)
            case Fetch() if isinstance(checked, Descriptor):
                stale = FoundTag(manifest, "stale", pointer.checked_at) if pointer and manifest else None
                return await self._move(target, tag, checked, written, stale)
            case Fail(error):
                raise error
        raise AssertionError("a tag that is not cached cannot be served")

    async def _find_recent(self, target: Target, tag: Tag) -> FoundTag | None:
        """What the last check has found, if it is not older than `check_interval`."""
        recent = self._checks.get((target.name, tag))
        if recent is None or time.monotonic() >= recent.valid_until:
            return None
        if is_debug():
            log.debug("tag not checked: upstream.check_interval", name=str(target.name), tag=str(tag))
        found = await self._manifests.get(target, recent.digest)
        return FoundTag(found.manifest, "hit", recent.checked_at, valid_until=recent.valid_until)

    async def _confirm(
        self, target: Target, tag: Tag, pointer: Pointer, manifest: Manifest, checked: Descriptor
    ) -> FoundTag:
        """The tag has not moved. If the upstream serves it as stale, it is stale here, too."""
        checked_at = time.time() - checked.age_s
        if checked.is_stale:
            return FoundTag(manifest, "stale", checked_at, _stale_upstream(target))
        if checked_at - pointer.checked_at > CONFIRM_INTERVAL_S:
            await self._threads.disk(self._stores.local.confirm_pointer, target.name, tag)
        return self._remember(target, tag, FoundTag(manifest, "match", checked_at, valid_until=self._next_check()))

    async def _move(
        self, target: Target, tag: Tag, checked: Descriptor, written: Pointer | None, stale: FoundTag | None
    ) -> FoundTag:
        """Fetch the manifest that the tag points to now, unless it came with the check, then move the pointer.

        `written` is the pointer from before the upstream was asked; `stale` is served when the manifest cannot be had.
        """
        try:
            if checked.manifest is not None:
                manifest = checked.manifest
                await self._manifests.keep(target, manifest)
            else:
                manifest = await self._fetch_moved(target, tag, checked.digest, is_cached=stale is not None)
        except (Outage, TooManyRequests) as exc:
            if stale is None:
                raise
            return attrs.evolve(stale, error=exc)
        moved = Pointer(manifest.digest, time.time())
        if not await self._threads.disk(self._write_pointer, target.name, tag, written, moved):
            return await self._check(target, tag)  # another worker has moved it meanwhile: ask again
        how, checked_at = "changed" if stale else "miss", time.time() - checked.age_s
        if checked.is_stale:
            return FoundTag(manifest, how, checked_at, _stale_upstream(target))
        return self._remember(target, tag, FoundTag(manifest, how, checked_at, valid_until=self._next_check()))

    async def _fetch_moved(self, target: Target, tag: Tag, digest: Digest, *, is_cached: bool) -> Manifest:
        """The manifest that the upstream says the tag points to. Raises RegistryError.

        An upstream that does not have it contradicts itself, as replicas do that are behind: that is no "not found".
        Without a copy to serve, the manifest is requested by the tag.
        """
        prefix, name = target.upstream.prefix, f"{target.repository}:{tag}"
        contradiction = f"{prefix} has {name}, but not the manifest that it points to"
        try:
            return (await self._manifests.get(target, digest)).manifest
        except ManifestUnknown as exc:
            if is_cached:
                raise BadUpstream(contradiction, details=exc.details) from exc
        try:
            return await self._manifests.fetch_by_tag(target, tag)
        except ManifestUnknown as exc:
            raise BadUpstream(contradiction, details=exc.details) from exc

    async def _ask_upstream(self, target: Target, tag: Tag, *, is_cached: bool) -> Checked:
        """The limit includes the wait for a thread. Without a copy to serve, nothing is gained by giving up early."""
        upstream = find_client(self._upstreams, target)
        timeout_s = self._check_timeout_s if is_cached else self._uncached_timeout_s
        deadline = time.monotonic() + timeout_s if timeout_s else None
        check = partial(upstream.head_manifest, target.repository, tag, deadline, has_copy=is_cached)
        try:
            return await self._threads.upstream(target, check, deadline=deadline)
        except RegistryError as exc:
            return exc

    async def _read_pointer(self, target: Target, tag: Tag, *, even_if_open: bool = False) -> Pointer | None:
        """The pointer, if the local store or the bucket has it. `even_if_open` as in Bucket.read."""
        if pointer := await self._threads.disk(self._stores.local.read_pointer, target.name, tag):
            return pointer
        bucket = self._stores.bucket
        if not bucket.is_configured:
            return None

        def read() -> Pointer | None:
            found = bucket.read(lambda s3: s3.read_pointer(target.name, tag), even_if_open=even_if_open)
            return self._keep_from_bucket(target.name, tag, found) if found else None

        return await self._threads.bucket(read)

    def _next_check(self) -> float:
        """When a tag that was checked now must be checked again, on the monotonic clock."""
        return time.monotonic() + self._check_interval_s

    def _remember(self, target: Target, tag: Tag, found: FoundTag) -> FoundTag:
        if found.valid_until > time.monotonic():
            self._checks[target.name, tag] = _Check(found.manifest.digest, found.checked_at, found.valid_until)
        return found

    # Blocking: these run in threads

    def _write_pointer(self, name: Name, tag: Tag, old: Pointer | None, new: Pointer) -> bool:
        """Move the pointer, unless it is not `old` any more. It is in the outbox before, for the case of a crash."""
        item = TagItem(name, tag)
        self._stores.publisher.add_to_outbox(item)
        if not self._stores.local.move_pointer(name, tag, old, new):
            return False
        self._stores.publisher.publish(item)
        return True

    def _keep_from_bucket(self, name: Name, tag: Tag, found: Pointer) -> Pointer:
        local = self._stores.local
        if local.move_pointer(name, tag, None, found):
            local.touch_times.mark_published(TagItem(name, tag), max(time.time() - found.checked_at, 0.0))
        return local.read_pointer(name, tag) or found


def _stale_upstream(target: Target) -> RegistryError:
    """Why a tag is stale that the upstream itself, a Dockyard, serves as stale."""
    details = FailureDetails(host=target.upstream.origin.host_and_port)
    return Unavailable(f"{target.upstream.prefix} serves it as stale: see the log there", details=details)


def _log_decision(target: Target, tag: Tag, cached: Cached | None, checked: Checked, decision: Decision) -> None:
    result = checked.log_fields() if isinstance(checked, RegistryError) else {"upstream_digest": str(checked.digest)}
    log.debug(
        "tag checked",
        name=str(target.name),
        tag=str(tag),
        cached_digest=str(cached.digest) if cached else None,
        decision=type(decision).__name__.lower(),
        **result,
    )


def _shard_key(target: Target, tag: Tag) -> str:
    return f"{target.name}:{tag}"

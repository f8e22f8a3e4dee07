"""The list path: tags of a repository and referrers of a manifest, asked for anew and kept for when that fails.

A list belongs to one shard, as a tag does: its owner asks the upstream, once for all who wait, and the others ask the
owner. The last list that was got is kept in the local store and served, marked stale, when the upstream is away.

A long list takes an upstream many pages. Whoever has an older copy to show waits for it no longer than for a tag;
the walk goes on meanwhile, and the next request has what it found.
"""

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Protocol

import attrs
import structlog

from dockyard.cache.singleflight import Singleflight
from dockyard.cache.threads import Threads
from dockyard.errors import BadUpstream, Outage, RegistryError, TooManyRequests, UpstreamTimeout, from_words, to_words
from dockyard.oci.lists import Referrer
from dockyard.oci.manifest import Descriptor
from dockyard.oci.reference import Digest, Reference
from dockyard.routing import Target
from dockyard.storage.local import LocalStore, StoredList
from dockyard.workers.peers import MAX_PAYLOAD_BYTES, PeerGone, Peers, PeerSilent, Question, Reply

CONFIRM_EVERY_S = 60.0
CHECKS_REMEMBERED = 10_000
EMPTY = b"[]"

log = structlog.get_logger()


class Registry(Protocol):
    """What the list path needs of a registry."""

    def list_tags(self, repository: str) -> list[str]:
        """All tags, sorted. Raises RegistryError."""

    def list_referrers(self, repository: str, digest: Digest) -> list[Referrer]:
        """All referrers. Raises RegistryError."""

    def head_manifest(self, repository: str, reference: Reference) -> Descriptor:
        """What the reference points to. Raises RegistryError."""


@attrs.frozen
class FoundList:
    """A list and how it was come by.

    `how` is hit (checked a moment ago), checked (now, unchanged), changed, miss or asked (not known before; asked is
    not kept), or stale, with the `error` that kept us from checking. `checked_at` is in seconds since the epoch.
    """

    items: list[Any]
    how: str
    checked_at: float
    error: RegistryError | None = None


@attrs.frozen
class _Wanted:
    """Which list: the tags of a target, or the referrers of one of its manifests."""

    target: Target
    subject: Digest | None

    @property
    def key(self) -> str:
        return f"{self.target.name}?{self.subject or 'tags'}"

    @property
    def question(self) -> Question:
        target, kind = self.target, "referrers" if self.subject else "tags"
        reference = str(self.subject or "")
        return Question(kind, target.upstream.prefix, target.repository, target.name.value, reference)


@attrs.frozen
class _Answer:
    """A list as JSON text, and how it was come by."""

    body: bytes = attrs.field(repr=False)
    how: str
    checked_at: float
    error: RegistryError | None = None


class Listings:
    """Lists of every upstream. A limit of 0 seconds is none."""

    def __init__(
        self,
        tier: LocalStore,
        peers: Peers,
        registries: Mapping[str, Registry],
        threads: Threads,
        check_interval_s: float,
        check_timeout_s: float,
    ) -> None:
        self._tier = tier
        self._peers = peers
        self._registries = registries
        self._threads = threads
        self._check_interval_s = check_interval_s
        self._check_timeout_s = check_timeout_s
        self._singleflight = Singleflight()
        self._checked: OrderedDict[str, tuple[float, float]] = OrderedDict()  # monotonic and wall clock

    async def tags(self, target: Target) -> FoundList:
        """The tags of a repository, sorted. Raises RegistryError."""
        return await self._find(_Wanted(target, None))

    async def referrers(self, target: Target, subject: Digest) -> FoundList:
        """The descriptors of what refers to a manifest. Raises RegistryError."""
        return await self._find(_Wanted(target, subject))

    async def answer(self, target: Target, subject: Digest | None, reply: Reply) -> None:
        """Get a list for another worker."""
        try:
            answer = await self._check(_Wanted(target, subject), writes=True)
        except RegistryError as exc:
            await reply.say(to_words(exc))
            return
        because = to_words(answer.error) if answer.error else None
        await reply.say({"how": answer.how, "checked_at": answer.checked_at, "because": because}, answer.body)

    async def _find(self, wanted: _Wanted) -> FoundList:
        answer = await self._singleflight.once(("find", wanted.key), lambda: self._ask_owner(wanted))
        items = await self._threads.disk(json.loads, answer.body)
        return FoundList(items, answer.how, answer.checked_at, answer.error)

    async def _ask_owner(self, wanted: _Wanted) -> _Answer:
        for shard in self._peers.before_us(wanted.key):
            try:
                return await self._ask(shard, wanted.question)
            except PeerGone:
                continue
            except PeerSilent:
                return await self._check(wanted, writes=False)
        return await self._check(wanted, writes=True)

    async def _ask(self, shard: int, question: Question) -> _Answer:
        """Ask a shard. Raises PeerGone, PeerSilent, and the error that it answers with."""
        words, body = await self._peers.ask_once(shard, question)
        try:
            error = from_words(words["because"]) if words["because"] else None
            return _Answer(body, words["how"], words["checked_at"], error)
        except (KeyError, TypeError) as exc:
            raise PeerGone from exc

    # As the owner

    async def _check(self, wanted: _Wanted, *, writes: bool) -> _Answer:
        """Get the list from the upstream; else what is kept of it."""
        kept = await self._threads.disk(self._read, wanted)
        at, checked_at = self._checked.get(wanted.key, (0.0, 0.0))
        if kept and time.monotonic() - at < self._check_interval_s:
            return _Answer(kept.body, "hit", checked_at)
        try:
            async with asyncio.timeout((self._check_timeout_s or None) if kept else None):
                return await self._singleflight.once(
                    ("walk", wanted.key), lambda: self._walk(wanted, kept, writes=writes)
                )
        except TimeoutError:
            error: RegistryError = UpstreamTimeout("the upstream did not list all in time")
        except (Outage, TooManyRequests) as exc:
            error = exc
        if kept is None:
            raise error
        return _Answer(kept.body, "stale", kept.checked_at, error)

    async def _walk(self, wanted: _Wanted, kept: StoredList | None, *, writes: bool) -> _Answer:
        """Ask the upstream for the whole list, and keep it. Its time limit is the registry's own."""
        registry = self._registries[wanted.target.upstream.prefix]
        body = await self._threads.listing(_list, registry, wanted)
        is_kept = writes and (kept is not None or body != EMPTY or await self._exists(wanted))
        if is_kept:
            await self._threads.disk(self._keep, wanted, kept, body)
        self._remember(wanted)
        if kept is None:
            return _Answer(body, "miss" if is_kept else "asked", time.time())
        return _Answer(body, "checked" if body == kept.body else "changed", time.time())

    def _read(self, wanted: _Wanted) -> StoredList | None:
        kept = self._tier.read_list(wanted.target.name, wanted.subject)
        if kept is None:
            return None
        try:
            if isinstance(json.loads(kept.body), list):
                return kept
        except ValueError:
            pass
        log.warning("a kept list was damaged and is ignored", list=wanted.key)
        return None

    async def _exists(self, wanted: _Wanted) -> bool:
        """Whether there is such a subject. Digests can be made up, and each would be a file that says "nothing"."""
        target, subject = wanted.target, wanted.subject
        if subject is None:
            return True
        if await self._threads.disk(self._tier.read_manifest, target.name, subject) is not None:
            return True
        registry = self._registries[target.upstream.prefix]
        try:
            await self._threads.upstream(registry.head_manifest, target.repository, subject)
        except RegistryError:
            return False
        return True

    def _keep(self, wanted: _Wanted, kept: StoredList | None, body: bytes) -> None:
        if not kept or kept.body != body or time.time() - kept.checked_at > CONFIRM_EVERY_S:
            self._tier.write_list(wanted.target.name, wanted.subject, body)

    def _remember(self, wanted: _Wanted) -> None:
        if self._check_interval_s:
            self._checked[wanted.key] = (time.monotonic(), time.time())
            self._checked.move_to_end(wanted.key)
            if len(self._checked) > CHECKS_REMEMBERED:
                self._checked.popitem(last=False)


def _list(registry: Registry, wanted: _Wanted) -> bytes:
    """The whole list as JSON, in a thread. Raises RegistryError."""
    repository = wanted.target.repository
    items: list[Any] = (
        registry.list_referrers(repository, wanted.subject) if wanted.subject else registry.list_tags(repository)
    )
    body = json.dumps(items, separators=(",", ":")).encode()
    if len(body) > MAX_PAYLOAD_BYTES:
        raise BadUpstream(f"the upstream has a list of more than {MAX_PAYLOAD_BYTES} bytes")
    return body

"""Lists: the tags of a repository and the referrers of a manifest, requested from the upstream each time.

A list belongs to one shard, as a tag does: its owner asks the upstream, once for all requests that wait, and the other
workers ask the owner. The last list that was read is kept in the local store and served stale while the upstream is
unavailable.

A client reads a list in pages. One after the first is cut from the same list, if that was checked within CONTINUED_S: a
Dockyard that reads all pages from another one would make that read all of its pages for each of them.

A long list takes many pages of the upstream, too. With a cached copy, a client waits no longer than for the check of a
tag; reading the pages continues, and the next request gets the result.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any, Protocol

import attrs
import structlog
from cachetools import LRUCache

from dockyard.cache.client_logins import find_client
from dockyard.cache.singleflight import Singleflight
from dockyard.cache.threads import Threads
from dockyard.errors import BadUpstream, FailureDetails, Outage, RegistryError, TooManyRequests, UpstreamTimeout
from dockyard.oci.lists import Referrer
from dockyard.oci.manifest import Descriptor
from dockyard.oci.reference import Digest, Reference
from dockyard.routing import Target
from dockyard.storage.local import LocalStore, StoredList
from dockyard.workers.messages import (
    MAX_BODY_BYTES,
    ListReply,
    ReferrersRequest,
    Repository,
    TagListRequest,
    error_reply,
    to_error,
)
from dockyard.workers.peers import PeerConnection, Peers

CONFIRM_INTERVAL_S = 60.0
CONTINUED_S = 30.0
MAX_REMEMBERED_CHECKS = 10_000
EMPTY = b"[]"

log = structlog.get_logger()


class ListSource(Protocol):
    """The part of an upstream's client that reads lists."""

    def list_tags(self, repository: str) -> list[str]:
        """All tags, sorted. Raises RegistryError."""

    def list_referrers(self, repository: str, digest: Digest) -> list[Referrer]:
        """All referrers. Raises RegistryError."""

    def head_manifest(self, repository: str, reference: Reference) -> Descriptor:
        """What the reference points to. Raises RegistryError."""


@attrs.frozen
class FoundList:
    """A list.

    `how`: hit (checked less than `check_interval` ago), checked (now, unchanged), changed, miss (not cached before),
    asked (not cached before, and not kept), or stale, with the `error` of the check. `checked_at` is in seconds since
    the epoch.
    """

    items: list[Any]
    how: str
    checked_at: float
    error: RegistryError | None = None


@attrs.frozen
class _ListName:
    """Which list: the tags of a repository, or the referrers of the manifest `subject` in it.

    `is_continued`: for a page after the first one.
    """

    target: Target
    subject: Digest | None
    is_continued: bool = False

    @property
    def key(self) -> str:
        return f"{self.target.name}?{self.subject or 'tags'}"

    def request(self, repository: Repository) -> TagListRequest | ReferrersRequest:
        """The message that asks for it."""
        if self.subject:
            return ReferrersRequest(repository, self.subject, self.is_continued)
        return TagListRequest(repository, self.is_continued)


@attrs.frozen
class _Result:
    """A list as JSON text; the other fields as in FoundList."""

    body: bytes = attrs.field(repr=False)
    how: str
    checked_at: float
    error: RegistryError | None = None


@attrs.frozen
class _Check:
    """When a list was checked: seconds since the epoch, and on the monotonic clock."""

    checked_at: float
    monotonic_s: float


class Lists:
    """Lists of every upstream. `upstreams` are the clients, by prefix. A time of 0 seconds is no limit."""

    def __init__(
        self,
        store: LocalStore,
        peers: Peers,
        upstreams: Mapping[str, ListSource],
        threads: Threads,
        check_interval_s: float,
        check_timeout_s: float,
    ) -> None:
        self._store = store
        self._peers = peers
        self._upstreams = upstreams
        self._threads = threads
        self._check_interval_s = check_interval_s
        self._check_timeout_s = check_timeout_s
        self._singleflight = Singleflight()
        self._checks: LRUCache[str, _Check] = LRUCache(MAX_REMEMBERED_CHECKS)

    async def tags(self, target: Target, *, is_continued: bool = False) -> FoundList:
        """The tags of a repository, sorted. `is_continued`: for a page after the first one. Raises RegistryError."""
        return await self._find(_ListName(target, None, is_continued))

    async def referrers(self, target: Target, subject: Digest, *, is_continued: bool = False) -> FoundList:
        """The descriptors of the manifests that refer to `subject`. Raises RegistryError."""
        return await self._find(_ListName(target, subject, is_continued))

    async def handle(
        self, target: Target, request: TagListRequest | ReferrersRequest, connection: PeerConnection
    ) -> None:
        """Get a list for another worker."""
        subject = request.subject if isinstance(request, ReferrersRequest) else None
        try:
            result = await self._check(_ListName(target, subject, request.is_continued), is_kept=True)
        except RegistryError as exc:
            await connection.send(error_reply(exc))
            return
        because = error_reply(result.error) if result.error else None
        await connection.send(ListReply(result.body, result.how, result.checked_at, because))

    async def _find(self, name: _ListName) -> FoundList:
        key = ("find", name.key, name.is_continued)
        result = await self._singleflight.run(key, lambda: self._ask_owners(name), name.target.login)
        items = await self._threads.disk(json.loads, result.body)
        return FoundList(items, result.how, result.checked_at, result.error)

    async def _ask_owners(self, name: _ListName) -> _Result:
        """From the first owner that is available; in the end this worker asks the upstream.

        After a frozen owner this worker keeps nothing: the owner may wake up and write an older list over it.
        """
        request = name.request(self._peers.repository_of(name.target))
        tried = await self._peers.try_owners(name.key, lambda shard: self._peers.request(shard, request, ListReply))
        if (reply := tried.result) is None:
            return await self._check(name, is_kept=not tried.is_one_frozen)
        error = to_error(reply.stale_because) if reply.stale_because else None
        return _Result(reply.body, reply.how, reply.checked_at, error)

    # As the owner

    async def _check(self, name: _ListName, *, is_kept: bool) -> _Result:
        """The list as the upstream has it now; else the cached copy."""
        kept = await self._threads.disk(self._read, name)
        recent = self._checks.get(name.key)
        valid_s = max(self._check_interval_s, CONTINUED_S if name.is_continued else 0.0)
        if kept and recent and time.monotonic() - recent.monotonic_s < valid_s:
            return _Result(kept.body, "hit", recent.checked_at)
        try:
            async with asyncio.timeout((self._check_timeout_s or None) if kept else None):
                return await self._singleflight.run(
                    ("pages", name.key), lambda: self._read_pages(name, kept, is_kept=is_kept), name.target.login
                )
        except TimeoutError:
            details = FailureDetails(
                name.target.upstream.origin.host_and_port,
                f"timed out after {self._check_timeout_s:g} s: the pages are still being read",
                "response",
            )
            error: RegistryError = UpstreamTimeout("the upstream did not send the whole list in time", details=details)
        except (Outage, TooManyRequests) as exc:
            error = exc
        if kept is None:
            raise error
        return _Result(kept.body, "stale", kept.checked_at, error)

    async def _read_pages(self, name: _ListName, kept: StoredList | None, *, is_kept: bool) -> _Result:
        """Read all pages from the upstream, and keep the list. The upstream's client limits the time."""
        upstream = find_client(self._upstreams, name.target)
        body = await self._threads.list(name.target, _read_list, upstream, name)
        is_kept = is_kept and (kept is not None or body != EMPTY or await self._exists(name))
        if is_kept:
            await self._threads.disk(self._keep, name, kept, body)
        self._checks[name.key] = _Check(time.time(), time.monotonic())
        if kept is None:
            return _Result(body, "miss" if is_kept else "asked", time.time())
        return _Result(body, "checked" if body == kept.body else "changed", time.time())

    async def _exists(self, name: _ListName) -> bool:
        """Whether the subject exists: clients can make up digests, and an empty list of each would fill the disk."""
        target, subject = name.target, name.subject
        if subject is None:
            return True
        if await self._threads.disk(self._store.read_manifest, target.name, subject) is not None:
            return True
        upstream = find_client(self._upstreams, target)
        try:
            await self._threads.upstream(target, upstream.head_manifest, target.repository, subject)
        except RegistryError:
            return False
        return True

    # Blocking: these run in threads

    def _read(self, name: _ListName) -> StoredList | None:
        kept = self._store.read_list(name.target.name, name.subject)
        if kept is None:
            return None
        try:
            if isinstance(json.loads(kept.body), list):
                return kept
        except ValueError:
            pass
        log.warning("damaged list in the local store: it is ignored", list=name.key)
        return None

    def _keep(self, name: _ListName, kept: StoredList | None, body: bytes) -> None:
        if not kept or kept.body != body or time.time() - kept.checked_at > CONFIRM_INTERVAL_S:
            self._store.write_list(name.target.name, name.subject, body)


def _read_list(upstream: ListSource, name: _ListName) -> bytes:
    """The whole list as JSON. Blocks. Raises RegistryError."""
    repository = name.target.repository
    items: list[Any] = (
        upstream.list_referrers(repository, name.subject) if name.subject else upstream.list_tags(repository)
    )
    body = json.dumps(items, separators=(",", ":")).encode()
    if len(body) > MAX_BODY_BYTES:
        raise BadUpstream(f"the upstream has a list of more than {MAX_BODY_BYTES} bytes")
    return body

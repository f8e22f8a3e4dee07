"""Flights: one fill and its many readers, over all workers.

Theory of operation. A blob that is not in a tier is flown in. The shards order themselves for its digest; the first is
the owner, and its worker runs the fill. The workers of the other shards *follow*: they ask the owner over its socket,
open the same partial file, and are told how far it may be read. So each worker has one `Flight` per digest, whoever
fetches, and its readers see no difference.

When the owner dies or is frozen, the followers' flights stay, with their readers in their places: each asks the next
shard in the digest's order, and the first of them to get the lock on the partial file fetches the rest of it.

The lock on the partial file is the last guard against two fetches. A worker that should fill and does not get it looks
for the one that has it.
"""

import asyncio
import os
from collections.abc import Mapping

import attrs
import structlog

from dockyard import metrics
from dockyard.cache.bridge import Threads
from dockyard.cache.fill import Fill, SpoolAbandoned, Stopped
from dockyard.cache.flight import Flight
from dockyard.cache.sources import Opens, Sources
from dockyard.errors import (
    BadUpstream,
    RegistryError,
    TooManyRequests,
    Unavailable,
    UpstreamTimeout,
    from_words,
    to_words,
)
from dockyard.oci.reference import Digest
from dockyard.routing import Target
from dockyard.storage.local import StoredBlob
from dockyard.storage.publications import BlobItem
from dockyard.storage.spool import Spool
from dockyard.storage.stores import Stores
from dockyard.workers.peers import PeerGone, Peers, PeerSilent, Question, Reply

FOLLOW_TIMEOUT_S = 120.0
LINGER_S = 60.0
LOCK_ATTEMPTS = 50
LOCK_RETRY_S = 0.1

log = structlog.get_logger()


class _DiskFull(Exception):
    """The owner's spool went on in its memory: the rest must be fetched here."""


class Flights:
    """The flights of this worker, one per digest."""

    def __init__(
        self,
        stores: Stores,
        peers: Peers,
        registries: Mapping[str, Opens],
        threads: Threads,
    ) -> None:
        self._stores = stores
        self._peers = peers
        self._registries = registries
        self._threads = threads
        self._flights: dict[Digest, Flight] = {}
        self._damaged: set[Digest] = set()
        self._fills: set[Fill] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, digest: Digest) -> Flight | None:
        """The running flight of a digest, if this worker has one."""
        return self._flights.get(digest)

    def join(self, target: Target, digest: Digest) -> tuple[Flight, bool]:
        """The flight of a digest, started if there is none; True when it was running before."""
        running = self._flights.get(digest)
        if running and running.can_be_joined:
            metrics.fills_joined.inc()
            return running, True
        flight = self._flights[digest] = Flight(digest)
        task = asyncio.create_task(self._run(flight, target, after=running))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return flight, False

    async def answer(self, target: Target, digest: Digest, question: Question, reply: Reply) -> None:
        """Tell another worker how the blob that it asked for is getting on, to the end."""
        if question.only_running:
            flight = self._flights.get(digest)
            if flight is None or not flight.is_filling:
                await reply.say({"absent": True})
                return
        else:
            flight, _ = self.join(target, digest)
        flight.attach(follower := _Follower())
        try:
            while True:
                seen = flight.changes  # to say it takes time, where the asker is slow to listen
                if flight.is_interrupted:
                    return  # as if dead: the asker goes on by itself
                if flight.error:
                    await reply.say(to_words(flight.error))
                    return
                if flight.is_filling and flight.spool and flight.spool.path is None:
                    await reply.say({"full": True})
                    return
                is_whole = flight.is_done and flight.disk_end is None
                place = {"size": flight.size, "released": flight.released_on_disk, "inode": flight.inode}
                await reply.say({**place, "done": is_whole})
                if is_whole:
                    return
                if flight.disk_end is not None:
                    await reply.say({"full": True})
                    return
                await flight.news(seen)
        finally:
            flight.detach(follower)

    def stop(self) -> None:
        """End all fills: the server is shutting down."""
        for fill in self._fills:
            fill.stop()

    # One flight

    async def _run(self, flight: Flight, target: Target, after: Flight | None) -> None:
        try:
            if after and after.spool and after.spool.has_dropped:
                await self._fill(flight, target, after.fork_spool())
            else:
                await self._fly(flight, target)
        except RegistryError as exc:
            flight.fail(exc)
        except (Stopped, SpoolAbandoned):
            pass  # nobody is left to tell
        except Exception:
            log.exception("a download ended in a fault of our own", digest=str(flight.digest))
        finally:
            if self._flights.get(flight.digest) is flight:
                del self._flights[flight.digest]
            flight.close()

    async def _fly(self, flight: Flight, target: Target) -> None:
        """Ask the shards in the digest's order; when it is our turn, fetch."""
        question = Question("blob", target.upstream.prefix, target.repository, target.name.value, str(flight.digest))
        for shard in self._peers.before_us(str(flight.digest)):
            try:
                await self._follow(shard, flight, question)
                return
            except _DiskFull:
                await self._fill(flight, target, flight.fork_spool())
                return
            except (PeerGone, PeerSilent):
                log.info("a worker is gone, asking the next", shard=shard, digest=str(flight.digest))
        await self._fetch(flight, target, question)

    async def _follow(self, shard: int, flight: Flight, question: Question) -> None:
        """Follow the fill of another worker. Raises PeerGone, PeerSilent, _DiskFull, RegistryError."""
        async with self._peers.ask(shard, question) as answer:
            while True:
                try:
                    async with asyncio.timeout(FOLLOW_TIMEOUT_S):
                        words = await answer.next_words()
                except TimeoutError as exc:
                    raise UpstreamTimeout("the download made no progress", retry_after_s=5) from exc
                if "error" in words:
                    raise from_words(words)
                if "full" in words:
                    raise _DiskFull
                if "absent" in words:
                    raise PeerGone
                size, released, inode, is_done = (words.get(key) for key in ("size", "released", "inode", "done"))
                if not isinstance(released, int) or not isinstance(inode, int):
                    raise PeerGone
                if inode != flight.inode:
                    await self._open_partial(flight, inode)
                if is_done and isinstance(size, int):
                    flight.complete(size)
                    return
                flight.follow(size, released)

    async def _open_partial(self, flight: Flight, inode: int) -> None:
        """Open the file that the owner writes, wherever it is by now. Raises PeerGone when it is neither place."""
        fd = await self._threads.disk(self._stores.local.open_spooled, flight.digest, inode)
        if fd is None:
            raise PeerGone
        flight.read_from(fd)

    async def _fetch(self, flight: Flight, target: Target, question: Question) -> None:
        """Become the one that fetches, or follow whoever is before us."""
        for _ in range(LOCK_ATTEMPTS):
            spool = await self._threads.disk(self._stores.local.spool, flight.digest)
            stored = await self._threads.disk(self._stores.local.open_blob, flight.digest)
            if stored:  # somebody finished between our look at the tier and the lock
                if spool:
                    spool.discard()
                _complete_from(flight, stored)
                return
            if spool:
                await self._fill(flight, target, spool)
                return
            for shard in self._peers.others:
                try:
                    await self._follow(shard, flight, attrs.evolve(question, only_running=True))
                    return
                except (PeerGone, PeerSilent):
                    continue
                except _DiskFull:
                    await self._fill(flight, target, flight.fork_spool())
                    return
            await asyncio.sleep(LOCK_RETRY_S)
        await self._fill(flight, target, Spool.without_file(flight.digest))

    async def _fill(self, flight: Flight, target: Target, spool: Spool) -> None:
        """Fetch, and fetch from the upstream what the bucket has wrong, if nobody has read of it yet."""
        registry = self._registries[target.upstream.prefix]
        trusts = flight.digest not in self._damaged
        sources = Sources(target, flight.digest, registry, self._stores.bucket, trusts_bucket=trusts)
        try:
            await self._fill_from(sources, flight, spool)
        except BadUpstream:
            if not sources.is_from_bucket:
                raise
            log.warning("a blob in the bucket is damaged and is fetched again", digest=str(flight.digest))
            self._damaged.add(flight.digest)
            if flight.released:
                spool.discard()
                raise
            spool.restart()
            await self._fill(flight, target, spool)
        else:
            self._damaged.discard(flight.digest)

    async def _fill_from(self, sources: Sources, flight: Flight, spool: Spool) -> None:
        """Run the fill in a thread, to its end, and publish on the way what comes from the upstream.

        The same thread keeps what was fetched and makes room for the next: a disk that is slow holds up the fills, and
        not what they have fetched.
        """
        loop = asyncio.get_running_loop()
        local, publisher = self._stores.local, self._stores.publisher
        item = BlobItem(flight.digest)
        is_followed = False

        def report() -> None:
            nonlocal is_followed
            if not is_followed and sources.is_from_upstream and not sources.is_from_bucket:
                is_followed = publisher.follow(spool)
            flight.report_to(loop)

        def run() -> None:
            flight.is_queued = False
            size = fill.run()
            if sources.is_from_upstream:
                publisher.remember(item)
            spool.finish(is_right=True)
            loop.call_soon_threadsafe(flight.complete, size)
            local.keep(spool, sources.age_s)
            local.cap.enforce_if_due()

        spool.begin()
        flight.read_from(os.dup(spool.fd) if spool.fd >= 0 else -1, spool)
        fill = Fill(spool, sources.open, report)
        self._fills.add(fill)
        metrics.fills_running.inc()
        had = spool.landed
        flight.is_queued = True
        try:
            await self._threads.fill(run)
        except Exception as exc:
            if not flight.is_done:  # else it was fetched, and could not be kept
                self._give_up(spool, exc, may_be_fetched_again=sources.is_from_bucket)
            raise
        finally:
            self._fills.discard(fill)
            metrics.fills_running.dec()
            metrics.received_bytes.labels("upstream" if sources.is_from_upstream else "bucket").inc(spool.landed - had)
        metrics.fills.labels("done").inc()
        if sources.is_from_upstream and not is_followed:
            publisher.publish(item)
        if sources.is_from_bucket:
            publisher.used(item)

    def _give_up(self, spool: Spool, exc: Exception, *, may_be_fetched_again: bool) -> None:
        metrics.fills.labels(type(exc).__name__).inc()
        spool.finish(is_right=False)
        if isinstance(exc, Unavailable | UpstreamTimeout | TooManyRequests):
            self._linger(spool)
        elif not (isinstance(exc, BadUpstream) and may_be_fetched_again):
            spool.discard()

    def _linger(self, spool: Spool) -> None:
        """Leave what has landed for a while, to whichever worker tries next: it goes on from there."""
        if not spool.landed or spool.path is None or spool.is_overflowing:
            spool.discard()
            return
        spool.close()
        loop = asyncio.get_running_loop()
        loop.call_later(LINGER_S, lambda: loop.run_in_executor(None, self._stores.local.discard_partial, spool.digest))


class _Follower:
    """Another worker's readers: they read the file only, so an overflowing spool need not wait for them."""

    position = 2**63


def _complete_from(flight: Flight, stored: StoredBlob) -> None:
    flight.read_from(stored.fd)
    flight.complete(stored.size)

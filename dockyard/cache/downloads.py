"""Downloads: one fill and its many readers, over all workers.

Theory of operation. A blob that is not in a tier is flown in. The shards order themselves for its digest; the first is
the owner, and its worker runs the fill. The workers of the other shards *follow*: they ask the owner over its socket,
open the same partial file, and are told how far it may be read. So each worker has one `Download` per digest, whoever
fetches, and its readers see no difference.

When the owner dies or is frozen, the followers' downloads stay, with their readers in their places: each asks the next
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
from dockyard.cache.blob_sources import Opens, Sources
from dockyard.cache.download import Download
from dockyard.cache.fill import Fill, NoReadersLeft, Stopped
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
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
from dockyard.storage.items import BlobItem
from dockyard.storage.local import StoredBlob
from dockyard.storage.partial_file import PartialFile
from dockyard.workers.peers import PeerGone, Peers, PeerSilent, Question, Reply

FOLLOW_TIMEOUT_S = 120.0
LINGER_S = 60.0
LOCK_ATTEMPTS = 50
LOCK_RETRY_S = 0.1

log = structlog.get_logger()


class _DiskFull(Exception):
    """The owner's partial file went on in its memory: the rest must be fetched here."""


class Downloads:
    """The downloads of this worker, one per digest."""

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
        self._downloads: dict[Digest, Download] = {}
        self._damaged: set[Digest] = set()
        self._fills: set[Fill] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def find(self, digest: Digest) -> Download | None:
        """The running download of a digest, if this worker has one."""
        return self._downloads.get(digest)

    def join(self, target: Target, digest: Digest) -> tuple[Download, bool]:
        """The download of a digest, started if there is none; True when it was running before."""
        running = self._downloads.get(digest)
        if running and running.can_be_joined:
            metrics.fills_joined.inc()
            return running, True
        download = self._downloads[digest] = Download(digest)
        task = asyncio.create_task(self._run(download, target, after=running))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return download, False

    async def answer(self, target: Target, digest: Digest, question: Question, reply: Reply) -> None:
        """Tell another worker how the blob that it asked for is getting on, to the end."""
        if question.only_running:
            download = self._downloads.get(digest)
            if download is None or not download.is_filling:
                await reply.say({"absent": True})
                return
        else:
            download, _ = self.join(target, digest)
        download.attach(follower := _Follower())
        try:
            while True:
                seen = download.changes  # to say it takes time, where the asker is slow to listen
                if download.is_interrupted:
                    return  # as if dead: the asker goes on by itself
                if download.error:
                    await reply.say(to_words(download.error))
                    return
                if download.is_filling and download.partial_file and download.partial_file.path is None:
                    await reply.say({"full": True})
                    return
                is_whole = download.is_done and download.overflow_start is None
                place = {"size": download.size, "released": download.released_on_disk, "inode": download.inode}
                await reply.say({**place, "done": is_whole})
                if is_whole:
                    return
                if download.overflow_start is not None:
                    await reply.say({"full": True})
                    return
                await download.news(seen)
        finally:
            download.detach(follower)

    def stop(self) -> None:
        """End all fills: the server is shutting down."""
        for fill in self._fills:
            fill.stop()

    # One download

    async def _run(self, download: Download, target: Target, after: Download | None) -> None:
        try:
            if after and after.partial_file and after.partial_file.has_gap:
                await self._fill(download, target, after.fork_partial_file())
            else:
                await self._fly(download, target)
        except RegistryError as exc:
            download.fail(exc)
        except (Stopped, NoReadersLeft):
            pass  # nobody is left to tell
        except Exception:
            log.exception("a download ended in a fault of our own", digest=str(download.digest))
        finally:
            if self._downloads.get(download.digest) is download:
                del self._downloads[download.digest]
            download.close()

    async def _fly(self, download: Download, target: Target) -> None:
        """Ask the shards in the digest's order; when it is our turn, fetch."""
        question = Question("blob", target.upstream.prefix, target.repository, target.name.value, str(download.digest))
        for shard in self._peers.before_us(str(download.digest)):
            try:
                await self._follow(shard, download, question)
                return
            except _DiskFull:
                await self._fill(download, target, download.fork_partial_file())
                return
            except (PeerGone, PeerSilent):
                log.info("a worker is gone, asking the next", shard=shard, digest=str(download.digest))
        await self._fetch(download, target, question)

    async def _follow(self, shard: int, download: Download, question: Question) -> None:
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
                if inode != download.inode:
                    await self._open_partial(download, inode)
                if is_done and isinstance(size, int):
                    download.complete(size)
                    return
                download.follow(size, released)

    async def _open_partial(self, download: Download, inode: int) -> None:
        """Open the file that the owner writes, wherever it is by now. Raises PeerGone when it is neither place."""
        fd = await self._threads.disk(self._stores.local.open_partial_file, download.digest, inode)
        if fd is None:
            raise PeerGone
        download.read_from(fd)

    async def _fetch(self, download: Download, target: Target, question: Question) -> None:
        """Become the one that fetches, or follow whoever is before us."""
        for _ in range(LOCK_ATTEMPTS):
            partial_file = await self._threads.disk(self._stores.local.claim_partial_file, download.digest)
            stored = await self._threads.disk(self._stores.local.open_blob, download.digest)
            if stored:  # somebody finished between our look at the tier and the lock
                if partial_file:
                    partial_file.discard()
                _complete_from(download, stored)
                return
            if partial_file:
                await self._fill(download, target, partial_file)
                return
            for shard in self._peers.others:
                try:
                    await self._follow(shard, download, attrs.evolve(question, only_running=True))
                    return
                except (PeerGone, PeerSilent):
                    continue
                except _DiskFull:
                    await self._fill(download, target, download.fork_partial_file())
                    return
            await asyncio.sleep(LOCK_RETRY_S)
        await self._fill(download, target, PartialFile.in_memory(download.digest))

    async def _fill(self, download: Download, target: Target, partial_file: PartialFile) -> None:
        """Fetch, and fetch from the upstream what the bucket has wrong, if nobody has read of it yet."""
        registry = self._registries[target.upstream.prefix]
        trusts = download.digest not in self._damaged
        sources = Sources(target, download.digest, registry, self._stores.bucket, trusts_bucket=trusts)
        try:
            await self._fill_from(sources, download, partial_file)
        except BadUpstream:
            if not sources.is_from_bucket:
                raise
            log.warning("a blob in the bucket is damaged and is fetched again", digest=str(download.digest))
            self._damaged.add(download.digest)
            if download.released:
                partial_file.discard()
                raise
            partial_file.restart()
            await self._fill(download, target, partial_file)
        else:
            self._damaged.discard(download.digest)

    async def _fill_from(self, sources: Sources, download: Download, partial_file: PartialFile) -> None:
        """Run the fill in a thread, to its end, and publish on the way what comes from the upstream.

        The same thread keeps what was fetched and makes room for the next: a disk that is slow holds up the fills, and
        not what they have fetched.
        """
        loop = asyncio.get_running_loop()
        local, publisher = self._stores.local, self._stores.publisher
        item = BlobItem(download.digest)
        is_followed = False

        def report() -> None:
            nonlocal is_followed
            if not is_followed and sources.is_from_upstream and not sources.is_from_bucket:
                is_followed = publisher.start_upload(partial_file)
            download.report_to(loop)

        def run() -> None:
            download.is_queued = False
            size = fill.run()
            if sources.is_from_upstream:
                publisher.add_to_outbox(item)
            partial_file.finish(is_verified=True)
            loop.call_soon_threadsafe(download.complete, size)
            local.commit(partial_file, sources.age_s)
            local.size_cap.enforce_if_due()

        partial_file.begin()
        download.read_from(os.dup(partial_file.fd) if partial_file.fd >= 0 else -1, partial_file)
        fill = Fill(partial_file, sources.open, report)
        self._fills.add(fill)
        metrics.fills_running.inc()
        had = partial_file.received_bytes
        download.is_queued = True
        try:
            await self._threads.fill(run)
        except Exception as exc:
            if not download.is_done:  # else it was fetched, and could not be kept
                self._give_up(partial_file, exc, may_be_fetched_again=sources.is_from_bucket)
            raise
        finally:
            self._fills.discard(fill)
            metrics.fills_running.dec()
            metrics.received_bytes.labels("upstream" if sources.is_from_upstream else "bucket").inc(
                partial_file.received_bytes - had
            )
        metrics.fills.labels("done").inc()
        if sources.is_from_upstream and not is_followed:
            publisher.publish(item)
        if sources.is_from_bucket:
            publisher.touch_if_due(item)

    def _give_up(self, partial_file: PartialFile, exc: Exception, *, may_be_fetched_again: bool) -> None:
        metrics.fills.labels(type(exc).__name__).inc()
        partial_file.finish(is_verified=False)
        if isinstance(exc, Unavailable | UpstreamTimeout | TooManyRequests):
            self._linger(partial_file)
        elif not (isinstance(exc, BadUpstream) and may_be_fetched_again):
            partial_file.discard()

    def _linger(self, partial_file: PartialFile) -> None:
        """Leave what has landed for a while, to whichever worker tries next: it goes on from there."""
        if not partial_file.received_bytes or partial_file.path is None or partial_file.is_overflowing:
            partial_file.discard()
            return
        partial_file.close()
        loop = asyncio.get_running_loop()
        loop.call_later(
            LINGER_S, lambda: loop.run_in_executor(None, self._stores.local.discard_partial_file, partial_file.digest)
        )


class _Follower:
    """Another worker's readers: they read the file only, so an overflowing partial file need not wait for them."""

    position = 2**63


def _complete_from(download: Download, stored: StoredBlob) -> None:
    download.read_from(stored.fd)
    download.complete(stored.size)

"""The downloads of one worker: one for each blob, whatever the number of readers and workers.

How a download is shared. The shards are ordered for each digest by rendezvous hashing; the first is its owner. The
workers of the other shards follow the owner: they read its partial file as far as it reports. So each worker has one
`Download` per digest, whichever worker fetches, and readers see no difference.

When the owner dies or is frozen, each follower asks the next owner. The first that gets the lock on the partial file
fetches the rest of it; its readers, and those of the other workers, keep their positions.

The lock on the partial file is the last guard against two fetches of one blob. A worker that should fetch and does not
get the lock looks for the one that has it.
"""

import asyncio
import itertools
import os
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import suppress
from typing import Any

import structlog
from cachetools import TTLCache

from dockyard.cache.blob_sources import BlobOpener, BlobSources, UpstreamsWithoutRanges
from dockyard.cache.client_logins import may_be_due_to_login
from dockyard.cache.download import Download
from dockyard.cache.download_job import DownloadJob, RangeSettings, Stopped
from dockyard.cache.following import OwnerDiskFull, follow, report_pieces, report_progress
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.errors import RegistryError
from dockyard.oci.ranges import ByteRange
from dockyard.oci.reference import Digest
from dockyard.routing import Target
from dockyard.storage.blob_files import StoredBlob, read_in_chunks
from dockyard.storage.partial_file import NoReadersLeft, PartialFile
from dockyard.workers.messages import BlobRequest, NotDownloading, PiecesReply, PiecesRequest
from dockyard.workers.peers import PeerConnection, Peers, PeerUnavailable

MAX_LOCK_ATTEMPTS = 50
PIECES_RETRY_S = 0.1
LOCK_RETRY_S = 0.1
# After ranges of a blob were sent that turned out to be wrong, it is received in order for this time.
WRONG_FOR_S = 600.0
MAX_WRONG = 1024

log = structlog.get_logger()


class Downloads:
    """The downloads of this worker, by digest. `upstreams` are the clients of the upstreams, by prefix.

    `connections` is the number of connections over which one large blob is received.
    """

    def __init__(
        self,
        stores: Stores,
        peers: Peers,
        upstreams: Mapping[str, BlobOpener],
        threads: Threads,
        *,
        connections: int = 1,
    ) -> None:
        self._stores = stores
        self._peers = peers
        self._upstreams = upstreams
        self._threads = threads
        self._downloads: dict[Digest, Download] = {}
        self._damaged: set[Digest] = set()  # see BlobSources
        self._without_ranges = UpstreamsWithoutRanges()
        self._connections = connections
        self._jobs: dict[Download, DownloadJob] = {}
        self._wrong: TTLCache[Digest, bool] = TTLCache(MAX_WRONG, WRONG_FOR_S)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_stopping = False

    def find(self, digest: Digest) -> Download | None:
        """The download of a digest in this worker; None when there is none."""
        return self._downloads.get(digest)

    def join(
        self, target: Target, digest: Digest, *, is_stored: bool = False, is_range: bool = False
    ) -> tuple[Download, bool]:
        """The download of a digest, started if there is none; True when there was one.

        `is_stored`: the blob is in the local store and must be verified. A download that is complete does not do that.
        `is_range`: for a reader of a range.
        """
        existing = self._downloads.get(digest)
        blob = existing.complete_blob if existing else None
        files = self._stores.local.blobs
        is_verified = blob is None or (not is_stored and files.is_unchanged(blob) and not files.is_unreadable(blob))
        if existing and existing.is_joinable and is_verified:
            existing.add_target(target)
            return existing, True
        download = self._downloads[digest] = Download(digest, target, is_for_range=is_range)
        self._start_task(self._run(download, existing))
        return download, False

    async def handle(self, target: Target, request: BlobRequest, connection: PeerConnection) -> None:
        """Report the progress of a download to another worker; it is started if there is none."""
        if request.only_running:
            download = self._downloads.get(request.digest)
            if download is None or not download.is_worked_on:
                await connection.send(NotDownloading())
                return
            download.add_target(target)
            is_joined = True
        else:
            download, is_joined = self.join(target, request.digest, is_range=request.is_range)
        await report_progress(download, connection, is_joined=is_joined)

    async def handle_pieces(self, request: PiecesRequest, connection: PeerConnection) -> None:
        """Have pieces received that a reader of another worker waits for."""
        download = self._downloads.get(request.digest)
        if download is None:
            await connection.send(NotDownloading())
        else:
            await report_pieces(download, request, self.request_ahead, connection)

    async def request_ahead(self, download: Download, part: ByteRange) -> None:
        """Have these bytes received before others; see DownloadJob.request. Raises RegistryError.

        Returns at once if this worker fetches the blob, or if it is not known yet who does: a change follows then.
        Else it returns when the worker that fetches it has some of them.
        """
        while not download.is_final:
            if job := self._jobs.get(download):
                job.request(part)
                return
            if download.owner is None:
                return
            repository = self._peers.repository_of(download.targets[0])
            request = PiecesRequest(repository, download.digest, part.start, part.stop)
            try:
                reply = await self._peers.request(download.owner, request, PiecesReply)
            except PeerUnavailable:  # it has not begun, or has ended: then another owner is followed, or none
                await asyncio.sleep(PIECES_RETRY_S)
            else:
                download.add_ahead(part.start, reply.stop)
                return

    def stop(self) -> None:
        """Stop all downloads that this worker fetches or verifies."""
        self._is_stopping = True
        for job in self._jobs.values():
            job.stop()

    # One download

    async def _run(self, download: Download, previous: Download | None) -> None:
        """Run one download to its end. `previous` is a download of the same digest that new readers cannot join."""
        try:
            if previous and previous.partial_file and previous.partial_file.has_gap:
                partial_file: PartialFile | None = previous.continue_in_memory(self._stores.local.memory)
            else:
                partial_file = await self._follow_or_claim(download)
            while partial_file and not await self._fetch(download, partial_file):
                partial_file = await self._follow_or_claim(download)
        except RegistryError as exc:
            if not download.is_final:
                download.fail(exc)
        except (Stopped, NoReadersLeft):
            pass  # the server stops, or no reader is left
        except Exception:
            log.exception("internal error in a download", download=repr(download))
        finally:
            if self._downloads.get(download.digest) is download:
                del self._downloads[download.digest]
            if not download.is_final:
                download.stop()
            download.end()

    async def _follow_or_claim(self, download: Download) -> PartialFile | None:
        """Follow the first owner that is available; when it is this worker's turn, claim the partial file.

        An owner that fails with the login of one reader of this worker is asked again with that of the next one.
        Returns the partial file to fetch into; None when the blob was followed to its end.
        """
        for number in itertools.count():
            target = download.targets[number]
            try:
                return await self._follow_or_claim_for(download, target)
            except OwnerDiskFull:
                return download.continue_in_memory(self._stores.local.memory)
            except RegistryError as exc:
                if not may_be_due_to_login(exc) or number + 1 == len(download.targets):
                    raise
        raise AssertionError("unreachable")

    async def _follow_or_claim_for(self, download: Download, target: Target) -> PartialFile | None:
        """As above, with one target. Raises OwnerDiskFull, RegistryError."""
        digest, repository = download.digest, self._peers.repository_of(target)
        request = BlobRequest(repository, digest, is_range=download.is_for_range)
        tried = await self._peers.try_owners(str(digest), lambda shard: self._follow(download, shard, request))
        if tried.result:
            return None
        return await self._claim(download, BlobRequest(repository, digest, only_running=True))

    async def _claim(self, download: Download, request: BlobRequest) -> PartialFile | None:
        """Lock the partial file, or follow the worker that has the lock.

        Returns the partial file to fetch into; None when the blob was followed to its end, or is in the local store.
        """
        local = self._stores.local
        for _ in range(MAX_LOCK_ATTEMPTS):
            partial_file = await self._threads.disk(local.claim_partial_file, download.digest)
            try:
                stored = await self._open_stored(download, is_locked=partial_file is not None)
            except BaseException:
                if partial_file:
                    partial_file.close()
                raise
            if stored:
                download.complete_with(stored)
                if partial_file:
                    await self._threads.disk(partial_file.discard)
                return None
            if partial_file:
                return partial_file
            for shard in self._peers.others:
                with suppress(PeerUnavailable):
                    await self._follow(download, shard, request)
                    return None
            await asyncio.sleep(LOCK_RETRY_S)
        log.warning("partial file locked for too long: fetching without it", digest=str(download.digest))
        return PartialFile.in_memory(download.digest, self._stores.local.memory)

    async def _open_stored(self, download: Download, *, is_locked: bool) -> StoredBlob | None:
        """Open the blob in the local store; None when it is absent or damaged.

        It is verified if necessary and if this worker has locked the partial file, so that one worker does it.
        """
        stored = await self._threads.disk(self._stores.local.blobs.open, download.digest)
        if stored is None or stored.is_verified:
            return stored
        verified = None
        try:
            if is_locked:
                verified = await self._verify(download, stored)
        finally:
            if verified is None:
                os.close(stored.fd)
        return verified

    async def _verify(self, download: Download, stored: StoredBlob) -> StoredBlob | None:
        """Hash a blob of the local store; None when it is damaged. Raises Stopped."""
        loop = asyncio.get_running_loop()

        def read_chunks(fd: int) -> Iterator[memoryview]:
            hashed_bytes = 0
            for chunk in read_in_chunks(fd):
                if self._is_stopping:
                    raise Stopped
                yield chunk
                hashed_bytes += len(chunk)
                loop.call_soon_threadsafe(download.report_hashed, stored.fd, hashed_bytes)

        download.start_verifying(stored.size)
        files = self._stores.local.blobs
        verified = await self._threads.verify(files.verify, stored, read_chunks)
        if verified is None:
            download.drop_file()
            return None
        return await self._threads.disk(files.record_use, verified)

    async def _follow(self, download: Download, shard: int, request: BlobRequest) -> bool:
        return await follow(download, self._peers, shard, request, self._threads, self._stores.local.open_partial_file)

    async def _fetch(self, download: Download, partial_file: PartialFile) -> bool:
        """Fetch the blob in a thread. Raises RegistryError, Stopped, NoReadersLeft.

        Returns False if the upstream has refused the logins of all readers, and readers with others have joined since.
        """
        loop = asyncio.get_running_loop()
        sources = BlobSources(
            download.targets, download.digest, self._upstreams, self._stores, self._damaged, self._without_ranges
        )
        job = DownloadJob(
            partial_file,
            sources,
            self._stores,
            self._range_settings(download),
            on_start=lambda: loop.call_soon_threadsafe(download.start_fetching),
            on_progress=lambda: download.report_progress(loop),
            on_verified=lambda size: loop.call_soon_threadsafe(download.complete, size),
        )
        download.queue(partial_file)
        self._jobs[download] = job
        try:
            await self._threads.download(download.targets[0], job.run)
        except RegistryError as exc:
            if job.has_sent_wrong_ranges:
                self._wrong[download.digest] = True
            has_more = may_be_due_to_login(exc) and sources.tried_targets < len(download.targets)
            if not has_more or partial_file.is_overflowing:
                raise
            return False
        finally:
            del self._jobs[download]
        return True

    def _range_settings(self, download: Download) -> RangeSettings:
        is_lazy = download.targets[0].upstream.lazy and download.digest not in self._wrong
        return RangeSettings(
            self._connections,
            is_lazy=is_lazy,
            is_on_demand=is_lazy and download.is_on_demand,
            is_for_range=download.is_for_range,
        )

    def _start_task(self, work: Coroutine[Any, Any, object]) -> None:
        """Run it in the background; the loop itself keeps no reference to a task."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

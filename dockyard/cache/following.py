"""Reading the partial file of another worker: both sides of a BlobRequest and of a PiecesRequest.

The owner of a download reports its progress; a follower opens the same file and reads as far as the owner has reported.
A follower whose reader may read ahead asks the owner for the pieces, and reads them from the same file.
"""

import asyncio
from collections.abc import Callable

from dockyard.cache.download import Download, RequestAhead, State
from dockyard.cache.threads import Threads
from dockyard.errors import RegistryError, UpstreamTimeout
from dockyard.oci.ranges import ByteRange
from dockyard.oci.reference import Digest
from dockyard.storage.partial_file import NO_PROGRESS_TIMEOUT_S, NoReadersLeft
from dockyard.workers.messages import (
    BlobRequest,
    DiskFull,
    DownloadProgress,
    ErrorReply,
    NotDownloading,
    PiecesReply,
    PiecesRequest,
    error_reply,
    to_error,
)
from dockyard.workers.peers import PeerConnection, PeerReplies, Peers, PeerUnavailable

# The owner replies to a PiecesRequest after this time, although nothing is there: the follower asks again.
PIECES_REPLY_S = 10.0
IDLE_CHECK_S = 5.0

OpenPartialFile = Callable[[Digest, int], int | None]


class OwnerDiskFull(Exception):
    """The owner continues in its memory: the rest must be fetched by this worker."""


class _FollowerCursor:
    """The readers of another worker: they read the file only, so a download in memory need not wait for them."""

    position = 2**63


async def report_progress(download: Download, connection: PeerConnection, *, is_joined: bool) -> None:
    """Report the progress of a download to a follower, to its end. `is_joined`: it was running before.

    When this worker stops, the connection ends without a last report: the follower asks the next owner. Raises
    ConnectionError when the follower has left.
    """
    download.attach(cursor := _FollowerCursor())
    try:
        while download.state is not State.STOPPED:
            version = download.version  # what changes while the report is being sent is not missed
            if download.error:
                await connection.send(error_reply(download.error))
                return
            if download.partial_file and (download.partial_file.path is None or download.overflow_start == 0):
                await connection.send(DiskFull())
                return
            is_complete = download.is_complete and download.overflow_start is None
            await connection.send(
                DownloadProgress(
                    download.size,
                    download.released_on_disk,
                    download.inode,
                    is_complete,
                    download.is_stored,
                    is_joined,
                )
            )
            if is_complete:
                return
            if download.overflow_start is not None:
                await connection.send(DiskFull())
                return
            try:
                # Without progress, a report shows whether the follower is still there.
                async with asyncio.timeout(IDLE_CHECK_S if download.is_on_demand else None):
                    await download.wait_for_change(version, is_for_worker=True)
            except TimeoutError:
                pass
            except UpstreamTimeout:
                if not download.is_on_demand:
                    raise
    finally:
        download.detach(cursor)


async def report_pieces(
    download: Download, request: PiecesRequest, request_ahead: RequestAhead, connection: PeerConnection
) -> None:
    """Have the pieces received that a follower asks for, and reply when the first byte is there.

    `request_ahead` is Downloads.request_ahead. Raises ConnectionError when the follower has left.
    """
    part = ByteRange(request.start, request.stop)

    async def receive_part() -> None:
        await request_ahead(download, part)

    download.attach(cursor := _FollowerCursor())
    stop = part.start
    try:
        async with asyncio.timeout(PIECES_REPLY_S):
            await receive_part()  # also if the first of it is there: it may be a request for all
            _, available = await download.wait_for_byte(
                part.start, download.file_number, receive_part, may_read_ahead=True
            )
            stop = min(part.start + available, part.stop)
    except TimeoutError:
        pass
    except RegistryError as exc:
        await connection.send(error_reply(exc))
        return
    finally:
        download.detach(cursor)
    await connection.send(PiecesReply(stop))


async def follow(
    download: Download,
    peers: Peers,
    shard: int,
    request: BlobRequest,
    threads: Threads,
    open_partial_file: OpenPartialFile,
) -> bool:
    """Follow the download of another worker until it is complete, and return True.

    `open_partial_file(digest, inode)` blocks. Raises PeerUnavailable, OwnerDiskFull, or the RegistryError of the owner;
    NoReadersLeft if only what readers request is received, and there are none.
    """
    async with peers.connect(shard, request) as replies:
        while True:
            progress = await _next_progress(download, replies)
            if not progress.inode and download.inode:
                continue  # it has taken over from an owner that was followed before, and has not opened the file yet
            if progress.inode != download.inode:
                fd = await threads.disk(open_partial_file, download.digest, progress.inode)
                if fd is None:
                    raise PeerUnavailable("its partial file is gone")
                download.follow(fd)
            download.owner = shard
            download.is_stored = progress.is_stored
            download.is_joined = download.is_joined or progress.is_joined
            if progress.is_complete and progress.size_bytes is not None:
                download.complete(progress.size_bytes)
                return True
            download.update(progress.size_bytes, progress.released_bytes, is_stored=progress.is_stored)


async def _next_progress(download: Download, replies: PeerReplies) -> DownloadProgress:
    """Wait for the next report of the owner. Raises what `follow` raises."""
    try:
        async with asyncio.timeout(NO_PROGRESS_TIMEOUT_S):
            reply = await replies.next()
    except TimeoutError as exc:
        raise UpstreamTimeout("the download made no progress", retry_after_s=5) from exc
    match reply:
        case DownloadProgress():
            is_new = (reply.released_bytes, reply.size_bytes) != (download.released, download.size)
            if download.is_on_demand and not download.has_readers and not (is_new or reply.is_complete):
                raise NoReadersLeft
            return reply
        case ErrorReply():
            raise to_error(reply)
        case DiskFull():
            raise OwnerDiskFull
        case NotDownloading():
            raise PeerUnavailable("is not downloading it")
        case _:
            raise PeerUnavailable(f"replied {type(reply).__name__} to a BlobRequest")

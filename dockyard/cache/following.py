"""Reading the partial file of another worker: both sides of a BlobRequest.

The owner of a download reports its progress; a follower opens the same file and reads as far as the owner has reported.
"""

import asyncio
from collections.abc import Callable

from dockyard.cache.download import Download, State
from dockyard.cache.threads import Threads
from dockyard.errors import UpstreamTimeout
from dockyard.oci.reference import Digest
from dockyard.storage.partial_file import NO_PROGRESS_TIMEOUT_S
from dockyard.workers.messages import (
    BlobRequest,
    DiskFull,
    DownloadProgress,
    ErrorReply,
    NotDownloading,
    error_reply,
    to_error,
)
from dockyard.workers.peers import PeerConnection, Peers, PeerUnavailable

OpenPartialFile = Callable[[Digest, int], int | None]


class OwnerDiskFull(Exception):
    """The owner continues in its memory: the rest must be fetched by this worker."""


class _FollowerCursor:
    """The readers of another worker: they read the file only, so a download in memory need not wait for them."""

    position = 2**63


async def report_progress(download: Download, connection: PeerConnection) -> None:
    """Report the progress of a download to a follower, to its end.

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
                    download.size, download.released_on_disk, download.inode, is_complete, download.is_stored
                )
            )
            if is_complete:
                return
            if download.overflow_start is not None:
                await connection.send(DiskFull())
                return
            await download.wait_for_change(version)
    finally:
        download.detach(cursor)


async def follow(
    download: Download,
    peers: Peers,
    shard: int,
    request: BlobRequest,
    threads: Threads,
    open_partial_file: OpenPartialFile,
) -> bool:
    """Follow the download of another worker until it is complete, and return True.

    `open_partial_file(digest, inode)` blocks. Raises PeerUnavailable, OwnerDiskFull, or the RegistryError of the owner.
    """
    async with peers.connect(shard, request) as replies:
        while True:
            try:
                async with asyncio.timeout(NO_PROGRESS_TIMEOUT_S):
                    reply = await replies.next()
            except TimeoutError as exc:
                raise UpstreamTimeout("the download made no progress", retry_after_s=5) from exc
            match reply:
                case DownloadProgress():
                    pass
                case ErrorReply():
                    raise to_error(reply)
                case DiskFull():
                    raise OwnerDiskFull
                case NotDownloading():
                    raise PeerUnavailable("is not downloading it")
                case _:
                    raise PeerUnavailable(f"replied {type(reply).__name__} to {type(request).__name__}")
            if reply.inode != download.inode:
                fd = await threads.disk(open_partial_file, download.digest, reply.inode)
                if fd is None:
                    raise PeerUnavailable("its partial file is gone")
                download.follow(fd)
            download.is_stored = reply.is_stored
            if reply.is_complete and reply.size_bytes is not None:
                download.complete(reply.size_bytes)
                return True
            download.update(reply.size_bytes, reply.released_bytes, is_stored=reply.is_stored)

"""The scrub: a thread that verifies all blobs of the local store once a day and deletes damaged ones. Blocking.

Between the verifications at use, a disk may lose what it stored. The scrub finds that before a client does. One worker
of a server scrubs. It must not be noticed: it reads at most some bytes per second, it rests for a multiple of the time
that a read took, so that it slows down when the disk or the processor is busy, and what it read from the disk does not
stay in the page cache.
"""

import contextlib
import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog

from dockyard.errors import DigestInvalid
from dockyard.oci.reference import Digest
from dockyard.storage.blob_files import CHUNK_BYTES, BlobFiles

START_DELAY_S = 30.0
# A pass that took longer is followed by the next one at once.
PASS_INTERVAL_S = 86400.0
CHECK_INTERVAL_S = 60.0
# The scrub rests at least this multiple of the time that it took to read and hash a chunk.
MIN_REST_FACTOR = 4.0

log = structlog.get_logger()


class ScrubStopped(Exception):
    """The server stops."""


class Scrub:
    """Verifies the blobs of `files`, reading at most `bytes_per_s`. `is_turn()`: this worker is the one that scrubs."""

    def __init__(self, files: BlobFiles, bytes_per_s: int, is_turn: Callable[[], bool]) -> None:
        self._files = files
        self._bytes_per_s = bytes_per_s
        self._is_turn = is_turn
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the thread, unless the rate is 0. Does not block."""
        if self._bytes_per_s:
            threading.Thread(target=self._run, name="scrub", daemon=True).start()

    def stop(self) -> None:
        """End the thread soon. Does not block."""
        self._stop.set()

    def run_once(self) -> None:
        """Verify all blobs. Raises ScrubStopped."""
        for digest in self._list_digests():
            self._files.scrub(digest, self._read_chunks)
            if self._stop.is_set():
                raise ScrubStopped

    def _run(self) -> None:
        delay_s = START_DELAY_S
        while not self._stop.wait(delay_s):
            delay_s = CHECK_INTERVAL_S
            if not self._is_turn():
                continue
            began = time.monotonic()
            try:
                self.run_once()
            except ScrubStopped:
                return
            except Exception:
                log.exception("internal error: the scrub failed")
            delay_s = max(began + PASS_INTERVAL_S - time.monotonic(), CHECK_INTERVAL_S)

    def _list_digests(self) -> Iterator[Digest]:
        """Yield the digests of all blobs, in an order that differs each time: the server may restart often."""
        folders = [folder for algorithm in _list(self._files.root) for folder in _list(algorithm)]
        random.shuffle(folders)
        for folder in folders:
            for path in _list(folder):
                with contextlib.suppress(DigestInvalid):
                    yield Digest.parse(f"{folder.parent.name}:{path.name}")

    def _read_chunks(self, fd: int) -> Iterator[memoryview]:
        """Yield the bytes of a file at a bounded rate. Raises OSError and ScrubStopped."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead: it would look as if it was in memory
        buffer = memoryview(bytearray(CHUNK_BYTES))
        offset = 0
        while True:
            began = time.monotonic()
            count, is_cached = _read_chunk(fd, buffer, offset)
            if not count:
                return
            yield buffer[:count]
            if not is_cached:
                with contextlib.suppress(OSError):
                    os.posix_fadvise(fd, offset, count, os.POSIX_FADV_DONTNEED)
            offset += count
            rest_s = max(count / self._bytes_per_s, MIN_REST_FACTOR * (time.monotonic() - began))
            if self._stop.wait(rest_s):
                raise ScrubStopped


def _read_chunk(fd: int, buffer: memoryview, offset: int) -> tuple[int, bool]:
    """Read a chunk; return its length, and whether it was in the page cache. Raises OSError."""
    try:
        if (count := os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)) == len(buffer):
            return count, True
    except BlockingIOError:
        pass
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:  # tmpfs
            raise
        return os.preadv(fd, [buffer], offset), True
    else:
        if not count or offset + count == os.fstat(fd).st_size:
            return count, True
    return os.preadv(fd, [buffer], offset), False


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:  # deleted meanwhile, or not a directory
        return []

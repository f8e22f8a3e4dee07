"""Receiving one blob in ranges, over several connections, into its partial file. Threads.

A *segment* is a run of missing pieces that one request brings. There are two kinds of connections:

- In the background, the blob is received from its front on: each connection takes the next segment that is missing, and
  at most WINDOW_SEGMENTS segments for each connection are received beyond the front. So the first reader streams.
- Pieces that readers wait for are *requested*. Connections of their own receive them, in the order of the requests, and
  meanwhile there is only one connection in the background.

No piece is received twice, and none by two connections at a time. The thread that calls `run` hashes what becomes
contiguous. A segment that breaks off is requested again from the byte reached.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

import attrs

from dockyard.cache.blob_sources import BlobBody, BlobSources
from dockyard.cache.retries import Retries
from dockyard.errors import BadUpstream, RegistryError
from dockyard.oci.ranges import ByteRange
from dockyard.storage.partial_file import PartialFile
from dockyard.storage.piece_map import PIECE_BYTES, end_of_piece, start_of_piece

CHUNK_BYTES = 256 * 1024
SMALL_SEGMENT_BYTES = 8 * PIECE_BYTES
LARGE_SEGMENT_BYTES = 32 * PIECE_BYTES
WINDOW_SEGMENTS = 2
MAX_REQUESTED_CONNECTIONS = 4
# For readers that are about to request pieces: they learn the size at the same time.
BACKGROUND_DELAY_S = 0.1
CONNECTION_KEPT_S = 2.0
IDLE_S = 5.0
_POLL_S = 1.0


class CannotWriteAhead(Exception):
    """The disk is full, or the partial file is in memory: the blob must be received in order."""


class Ended(Exception):
    """The fetch was ended from another thread."""


@attrs.define(eq=False)
class _Segment:
    """The bytes from `position` to `stop`, which one connection is receiving; readers wait for them, or not."""

    position: int
    stop: int
    is_requested: bool = False
    body: BlobBody | None = None


class RangedFetch:
    """Receives the blob of `sources` into `partial_file`, whose size is known and which has a map of its pieces.

    `retries` are those of the download. `connections` is the number of connections in the background; 0 for none: then
    only what is requested is received. `on_progress()` is called by each thread that has received bytes, `on_advance()`
    by the one that calls `run`, when the front has moved.
    """

    def __init__(
        self,
        partial_file: PartialFile,
        sources: BlobSources,
        *,
        retries: Retries,
        connections: int,
        segment_bytes: int,
        is_delayed: bool,
        on_progress: Callable[[], object],
        on_advance: Callable[[], object],
    ) -> None:
        assert partial_file.size is not None  # noqa: S101  for mypy
        self._partial_file = partial_file
        self._sources = sources
        self._size = partial_file.size
        self._connections = connections
        self._segment_bytes = segment_bytes
        self._background_from = time.monotonic() + (BACKGROUND_DELAY_S if is_delayed else 0.0)
        self._on_progress = on_progress
        self._on_advance = on_advance
        self._retries = retries
        self._has_bytes = bool(partial_file.present_bytes)
        self._condition = threading.Condition()
        self._requested: deque[ByteRange] = deque()
        self._segments: list[_Segment] = []  # being received
        self._threads = {True: 0, False: 0}  # of requested pieces, and in the background
        self._writing = 0
        self._failure: BaseException | None = None
        self._is_ended = False
        self._active_at = time.monotonic()

    def run(self, first_body: BlobBody | None = None) -> None:
        """Receive what is missing, and return when all was received and hashed. Blocks.

        `first_body` is a body that begins at the front; it is read for one segment. Raises RegistryError,
        RangesUnsupported, CannotWriteAhead, Ended, OSError, and NoReadersLeft when nothing is requested any more.
        """
        try:
            if first_body is not None:
                self._start_with(first_body)
            front = self._front
            while self._front < self._size:
                with self._condition:
                    self._check()
                    self._start_threads()
                if not self._partial_file.advance():
                    self._wait()
                if self._front > front:
                    front = self._front
                    self._on_advance()
        finally:
            self._end()

    def request(self, part: ByteRange) -> None:
        """Have these bytes received before others. Does not block."""
        start, stop = start_of_piece(part.start), min(end_of_piece(part.stop), self._size)
        with self._condition:
            self._active_at = time.monotonic()
            wanted = ByteRange(start, stop)
            if wanted not in self._requested and self._find_segment(start, stop) is not None:
                self._requested.append(wanted)
                self._condition.notify_all()

    def request_all(self, connections: int) -> None:
        """Have the whole blob received in the background. Does not block."""
        with self._condition:
            self._connections = connections
            self._condition.notify_all()

    def end(self) -> None:
        """End the fetch, from another thread: `run` raises Ended."""
        with self._condition:
            self._failure = self._failure or Ended()
            self._condition.notify_all()
            for segment in self._segments:
                if segment.body:
                    segment.body.abort()

    # The thread of `run`

    @property
    def _front(self) -> int:
        return self._partial_file.received_bytes

    def _check(self) -> None:
        if self._failure:
            raise self._failure
        is_idle = not self._connections and not self._requested and not self._segments
        if is_idle and time.monotonic() - self._active_at > IDLE_S:
            self._partial_file.abandon_if_unread()

    def _wait(self) -> None:
        with self._condition:
            if not self._failure and not self._can_advance():
                left_s = self._background_from - time.monotonic()
                self._condition.wait(left_s if left_s > 0 else _POLL_S)

    def _can_advance(self) -> bool:
        pieces, front = self._partial_file.pieces, self._front
        return front == self._size or (pieces is not None and pieces.find_end_of_run(front) > front)

    def _start_with(self, body: BlobBody) -> None:
        with self._condition:
            if segment := self._take(is_requested=False):
                segment.body = body
                self._start_thread(segment)

    def _start_threads(self) -> None:
        """Start threads of each kind while there is work for one more."""
        for is_requested, limit in ((True, MAX_REQUESTED_CONNECTIONS), (False, self._connections)):
            while self._threads[is_requested] < limit and (segment := self._take(is_requested=is_requested)):
                self._start_thread(segment)

    def _start_thread(self, segment: _Segment) -> None:
        self._threads[segment.is_requested] += 1
        threading.Thread(target=self._work, args=(segment,), name="range", daemon=True).start()

    def _end(self) -> None:
        """Let no thread write any more, and close what is open."""
        with self._condition:
            self._is_ended = True
            self._condition.notify_all()
            for segment in self._segments:
                if segment.body:
                    segment.body.abort()
            while self._writing:
                self._condition.wait()

    # Choosing segments. With the condition held

    def _take(self, *, is_requested: bool) -> _Segment | None:
        """The next segment for a connection; it is marked as being received."""
        segment = self._find_requested() if is_requested else self._find_next()
        if segment:
            segment.is_requested = is_requested
            self._segments.append(segment)
        return segment

    def _find_requested(self) -> _Segment | None:
        while self._requested:
            wanted = self._requested[0]
            if segment := self._find_segment(wanted.start, wanted.stop):
                return segment
            self._requested.popleft()  # all of it was received, or is being received
        return None

    def _find_next(self) -> _Segment | None:
        if time.monotonic() < self._background_from:
            return None
        are_readers_waiting = self._requested or any(segment.is_requested for segment in self._segments)
        if are_readers_waiting and any(not segment.is_requested for segment in self._segments):
            return None
        window = self._connections * WINDOW_SEGMENTS * self._segment_bytes
        front = self._front
        return self._find_segment(front, min(start_of_piece(front) + window, self._size))

    def _find_segment(self, start: int, stop: int) -> _Segment | None:
        """The first run of missing bytes in this part, which ends with a piece, that no connection is receiving."""
        pieces = self._partial_file.pieces
        assert pieces is not None  # noqa: S101  for mypy
        position = start
        while position < stop:
            if (end := max(pieces.find_end_of_run(position), self._find_end_of_segment(position))) == position:
                break
            position = end
        else:
            return None
        position = max(position, min(self._front, stop))  # of the piece at the front, a part is there
        end = start_of_piece(position)
        last = min(stop, end + self._segment_bytes)
        while end < last:
            end = min(end + PIECE_BYTES, last)
            if pieces.find_end_of_run(end) > end or self._find_end_of_segment(end) > end:
                break
        return _Segment(position, end)

    def _find_end_of_segment(self, position: int) -> int:
        """The end of the segment that is being received and has this byte; the position itself if there is none."""
        for segment in self._segments:
            if start_of_piece(segment.position) <= position < segment.stop:
                return segment.stop
        return position

    # The threads of the connections

    def _work(self, first: _Segment) -> None:
        """Receive segments until there are no more for some time."""
        is_requested = first.is_requested
        segment: _Segment | None = first
        try:
            while segment:
                try:
                    self._receive(segment)
                finally:
                    with self._condition:
                        self._segments.remove(segment)
                        self._condition.notify_all()
                segment = self._wait_for_segment(is_requested=is_requested)
        except BaseException as exc:  # noqa: BLE001  raised in `run`
            with self._condition:
                self._failure = self._failure or exc
        finally:
            with self._condition:
                self._threads[is_requested] -= 1
                self._condition.notify_all()

    def _wait_for_segment(self, *, is_requested: bool) -> _Segment | None:
        deadline = time.monotonic() + CONNECTION_KEPT_S
        with self._condition:
            while not self._is_ended and not self._failure:
                segment = self._take(is_requested=is_requested)
                left_s = deadline - time.monotonic()
                if segment or left_s <= 0:
                    return segment
                self._condition.wait(left_s)
        return None

    def _receive(self, segment: _Segment) -> None:
        """Receive one segment, again from the byte reached when it breaks off."""
        while segment.position < segment.stop:
            written_before, attempt = self._partial_file.written_bytes, self._retries.begin()
            try:
                body = segment.body or self._sources.open_range(segment.position, segment.stop)
                self._read(segment, body)
            except RegistryError as exc:
                with self._condition:
                    self._check_running()  # not an attempt that failed, if it was aborted
                brought_bytes = self._partial_file.written_bytes - written_before  # by all connections
                wait_s = self._retries.find_wait_s(
                    exc, attempt=attempt, brought_bytes=brought_bytes, has_bytes=self._has_bytes
                )
                if wait_s is None:
                    raise
                self._pause(wait_s)
        self._retries.record_progress()

    def _read(self, segment: _Segment, body: BlobBody) -> None:
        try:
            with self._condition:
                segment.body = body
                self._check_running()
            if body.size not in {None, self._size}:
                message = f"the upstream announced two different sizes for {self._sources.digest}"
                raise BadUpstream(message, details=self._sources.details)
            while segment.position < segment.stop:
                chunk = body.read(min(CHUNK_BYTES, segment.stop - segment.position))
                if not chunk:
                    message = f"the upstream sent less than it announced of {self._sources.digest}"
                    raise BadUpstream(message, details=self._sources.details)
                self._write(chunk, segment)
        finally:
            with self._condition:
                segment.body = None
            body.close()

    def _write(self, chunk: bytes, segment: _Segment) -> None:
        with self._condition:
            self._check_running()
            self._writing += 1
        try:
            if not self._partial_file.write_piece_bytes(chunk, segment.position):
                raise CannotWriteAhead("the disk is full or fails")
        finally:
            with self._condition:
                self._writing -= 1
                segment.position += len(chunk)
                self._has_bytes = True
                self._active_at = time.monotonic()
                self._condition.notify_all()
        self._on_progress()

    def _pause(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        with self._condition:
            while (left_s := deadline - time.monotonic()) > 0:
                self._check_running()
                self._condition.wait(left_s)

    def _check_running(self) -> None:
        if self._is_ended or self._failure:
            raise Ended

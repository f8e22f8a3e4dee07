"""The fill: one thread that moves one blob from its source into a partial file, verifying it on the way.

It belongs to the server, not to a request. A source that breaks is reopened at the byte reached; giving up takes
`MAX_BARREN_ATTEMPTS` attempts that brought less than 1 MiB each. Nothing here knows of clients: the fill reports how
far it got, and whether what landed is right.
"""

import random
import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from dockyard import metrics
from dockyard.errors import BadUpstream, RegistryError, TooManyRequests, Unavailable, UpstreamTimeout
from dockyard.storage.partial_file import NoReadersLeft, PartialFile

CHUNK_BYTES = 256 * 1024
MAX_BARREN_ATTEMPTS = 4
PROGRESS_BYTES = 1024 * 1024
PAUSE_S = (0.2, 3.0)
MAX_LIMITED_PAUSE_S = 10.0

log = structlog.get_logger()


class Source(Protocol):
    """A body that is being received. `start` is the offset of its first byte, `size` the whole blob's, if known."""

    size: int | None
    start: int

    def read(self, amount: int) -> bytes:
        """Up to `amount` bytes; empty at the right end only. Raises Outage when broken, stalled or short."""

    def close(self) -> None:
        """Give the connection back."""

    def abort(self) -> None:
        """Make a `read` that waits in another thread fail."""


class Stopped(Exception):
    """The server is shutting down."""


class Fill:
    """Fetch one blob into `partial_file`.

    `open_source(start)` opens the source at a byte; it raises RegistryError. `report()` is called whenever the partial
    file knows more: its size, or that more has landed.
    """

    def __init__(
        self, partial_file: PartialFile, open_source: Callable[[int], Source], report: Callable[[], None]
    ) -> None:
        self.partial_file = partial_file
        self._open_source = open_source
        self._report = report
        self._source: Source | None = None
        self._stop = threading.Event()

    def run(self) -> int:
        """Fetch until the blob is whole and right; its size.

        Raises RegistryError when the upstream does not have it, does not answer, or sends something else; Stopped;
        NoReadersLeft; OSError when the partial file cannot be read back.
        """
        self.partial_file.hash_existing_bytes()
        barren = 0
        while True:
            before = self.partial_file.received_bytes
            try:
                self._fetch()
            except RegistryError as exc:
                if self._stop.is_set():
                    raise Stopped from exc
                barren = 0 if self.partial_file.received_bytes - before >= PROGRESS_BYTES else barren + 1
                if not self._is_worth_another_try(exc, barren):
                    raise
                self._pause(exc, barren)
                metrics.fills_resumed.inc()
                continue
            if not self.partial_file.has_correct_digest():
                log.warning("a blob has another digest than asked for", digest=str(self.partial_file.digest))
                raise BadUpstream(f"the upstream sent wrong bytes for {self.partial_file.digest}")
            return self.partial_file.received_bytes

    def stop(self) -> None:
        """End the fill from another thread."""
        self._stop.set()
        if source := self._source:
            source.abort()

    def _fetch(self) -> None:
        """Read one source to its end. A source that starts before the partial file's end is skipped up to there."""
        start = self.partial_file.received_bytes
        if self.partial_file.size is not None and start == self.partial_file.size:
            return
        source = self._source = self._open_source(start)
        try:
            self._learn_size(source.size)
            skip = start - source.start
            while chunk := source.read(CHUNK_BYTES):
                if self._stop.is_set():
                    raise Stopped
                if skip:
                    chunk, skip = chunk[skip:], max(skip - len(chunk), 0)
                if chunk:
                    self.partial_file.append(chunk)
                    self._report()
            if self.partial_file.size is not None and self.partial_file.received_bytes != self.partial_file.size:
                raise BadUpstream(
                    f"the upstream sent another number of bytes than announced for {self.partial_file.digest}"
                )
        finally:
            self._source = None
            source.close()

    def _learn_size(self, size: int | None) -> None:
        if size is None:
            if self.partial_file.is_overflowing:
                raise Unavailable("no room to receive a blob of unknown size", retry_after_s=30)
            return
        if size < self.partial_file.received_bytes or self.partial_file.size not in {None, size}:
            raise BadUpstream(f"the upstream is not sure how long {self.partial_file.digest} is")
        self.partial_file.size = size
        self._report()

    def _is_worth_another_try(self, exc: RegistryError, barren: int) -> bool:
        has_begun = self.partial_file.received_bytes > 0
        match exc:
            case Unavailable(remembered=False) | BadUpstream() if has_begun:
                return barren < MAX_BARREN_ATTEMPTS
            case TooManyRequests() | UpstreamTimeout() if has_begun:
                return barren < MAX_BARREN_ATTEMPTS
            case Unavailable(remembered=False):
                return barren < 2
        return False

    def _pause(self, exc: RegistryError, barren: int) -> None:
        if isinstance(exc, TooManyRequests):
            pause = min(exc.retry_after_s or 1, MAX_LIMITED_PAUSE_S)
        elif barren == 0:
            pause = 0.0
        else:
            pause = random.uniform(PAUSE_S[0], min(PAUSE_S[1], PAUSE_S[0] * 2**barren))
        if self._stop.wait(pause):
            raise Stopped


__all__ = ["Fill", "NoReadersLeft", "Source", "Stopped"]

"""How much may be added to the local store before its files are listed again, counted by all workers. Blocking.

The state is in a small file that all workers share. While that file cannot be written, each worker counts alone. The
caller holds the lock of the workers.
"""

import os
import time
from pathlib import Path

import attrs

from dockyard.storage.file_times import age_of

# The files are listed again after this time even if nothing was added: other programs may have added some. If listing
# takes long, it is done less often: after this multiple of the time that it took.
MIN_LISTING_AGE_S = 30.0
LISTING_AGE_FACTOR = 500.0
# The files are not listed before this share of the cap was added.
LISTINGS_PER_CAP = 50
_MAX_STATE_BYTES = 200


@attrs.frozen
class _State:
    left_bytes: int
    listed_at: float
    valid_s: float


class Allowance:
    """The bytes that may still be added under a cap of `max_size` bytes, as far as is known without listing files."""

    def __init__(self, path: Path, max_size: int) -> None:
        self._path = path
        self._max_size = max_size
        # What another server wrote, or this one with another cap, does not count.
        self._valid_for = f"{max_size} {os.getppid()}"
        self._unwritten: _State | None = None

    def use(self, added_bytes: int) -> bool:
        """Count bytes that were added. False when the allowance is used up or unknown: then list the files."""
        state = self._unwritten or self._read()
        if state is None or age_of(state.listed_at) > state.valid_s:
            return False
        if added_bytes:
            state = attrs.evolve(state, left_bytes=state.left_bytes - added_bytes)
            self._write(state)
        return state.left_bytes > 0

    def renew(self, total_bytes: int, listing_s: float) -> None:
        """The files were listed, which took so long, and take so many bytes now."""
        left_bytes = max(self._max_size - total_bytes, self._max_size // LISTINGS_PER_CAP)
        self._write(_State(left_bytes, time.time(), max(MIN_LISTING_AGE_S, listing_s * LISTING_AGE_FACTOR)))

    def _read(self) -> _State | None:
        try:
            valid_for, left_bytes, listed_at, valid_s = self._path.read_text()[:_MAX_STATE_BYTES].rsplit(" ", 3)
            state = _State(int(left_bytes), float(listed_at), float(valid_s))
            return state if valid_for == self._valid_for else None
        except (OSError, ValueError):
            return None

    def _write(self, state: _State) -> None:
        try:
            self._path.write_text(f"{self._valid_for} {state.left_bytes} {state.listed_at:.3f} {state.valid_s:.1f}")
            self._unwritten = None
        except OSError:
            self._unwritten = state

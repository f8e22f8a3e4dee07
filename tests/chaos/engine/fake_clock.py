"""A wrong wall clock for one Dockyard: its processes run with libfaketime. The monotonic clock stays right.

So do the times of files: on a machine whose clock jumps, those of existing files do not change either.
"""

import glob
import os
from pathlib import Path

from tests.chaos.engine.patches import install_patch
from tests.support.programs import cannot_run

LIBRARY = "faketime/libfaketimeMT.so.1"
NOTICED_WITHIN_S = 1  # how often the library reads the offset

# With the library, clock_nanosleep with an absolute time fails, which time.sleep uses. Waiting for an event takes as
# long, and works.
SLEEP = "import threading, time\n\ntime.sleep = lambda seconds: threading.Event().wait(seconds)\n"


class FakeClock:
    """A clock that a test sets, in seconds before or after the right time."""

    def __init__(self, directory: Path, offset_s: int = 0) -> None:
        found = glob.glob(f"/usr/lib/*/{LIBRARY}")
        if not found:
            cannot_run("libfaketime is not installed (Debian package libfaketime)")
        self._library = found[0]
        self._control = directory / "clock"
        self._patch = install_patch(directory / "patch", SLEEP)
        self.set(offset_s)

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a process that uses this clock."""
        return {
            "LD_PRELOAD": self._library,
            "FAKETIME_TIMESTAMP_FILE": str(self._control),
            "FAKETIME_CACHE_DURATION": str(NOTICED_WITHIN_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # with 1, waits with a timeout use all of a processor
            "NO_FAKE_STAT": "1",
            **self._patch,
        }

    def set(self, offset_s: int) -> None:
        """Set the clock; it is noticed within NOTICED_WITHIN_S."""
        fresh = self._control.with_suffix(".new")
        fresh.write_text(f"{offset_s:+d}\n")
        os.replace(fresh, self._control)

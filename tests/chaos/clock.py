"""A wall clock that is wrong, for one Dockyard: libfaketime under its processes, the monotonic clock left alone.

Files keep the times that the kernel gave them: on a machine whose clock jumps, those do not jump along.
"""

import glob
import os
from pathlib import Path

from tests.chaos.patches import patched

LIBRARY = "faketime/libfaketimeMT.so.1"
NOTICED_WITHIN_S = 1  # how often the library looks whether the clock was set

# The library makes clock_nanosleep with an absolute time fail, which is what time.sleep is made of. Nothing of
# Dockyard's is touched: a wait of an event sleeps as long.
SLEEP = "import threading, time\n\ntime.sleep = lambda seconds: threading.Event().wait(seconds)\n"


class Clock:
    """A clock that a test sets, in seconds before or after the right time."""

    def __init__(self, directory: Path, offset_s: int = 0) -> None:
        (found,) = glob.glob(f"/usr/lib/*/{LIBRARY}")
        self._library = found
        self._control = directory / "clock"
        self._patch = patched(directory / "patch", SLEEP)
        self.set(offset_s)

    @property
    def environ(self) -> dict[str, str]:
        """What a process needs in its environment to live by this clock."""
        return {
            "LD_PRELOAD": self._library,
            "FAKETIME_TIMESTAMP_FILE": str(self._control),
            "FAKETIME_CACHE_DURATION": str(NOTICED_WITHIN_S),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # with it, waits with a limit spin
            "NO_FAKE_STAT": "1",
            **self._patch,
        }

    def set(self, offset_s: int) -> None:
        """Set the clock; it is noticed within NOTICED_WITHIN_S."""
        fresh = self._control.with_suffix(".new")
        fresh.write_text(f"{offset_s:+d}\n")
        os.replace(fresh, self._control)

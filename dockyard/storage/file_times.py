"""The times of files, which say when something was last used, checked or published. Blocking.

The last use of a file is its access time. It is set here, so that mount options such as `noatime` do not matter. That
is best effort: it fails for a file of another user or on a read-only file system, and then nothing else fails.

The clock of a machine may have been wrong for a while. A time that is later than now counts as very old, and is
corrected the next time that it is set.
"""

import contextlib
import math
import os
import time
from pathlib import Path

# The access time of a file that is in use is set this often.
RECORD_INTERVAL_S = 60.0
# A time that is later than now by less than this is taken as now: clocks are adjusted.
MAX_CLOCK_STEP_S = 60.0


def age_of(recorded_at: float) -> float:
    """Return how many seconds ago a time was (seconds since the epoch); infinity for a time in the future."""
    age = time.time() - recorded_at
    return max(age, 0.0) if age > -MAX_CLOCK_STEP_S else math.inf


def record_use(file: int | Path, found: os.stat_result) -> None:
    """Set the access time of a file to now, if the recorded one is older than RECORD_INTERVAL_S. Raises nothing."""
    if age_of(found.st_atime) > RECORD_INTERVAL_S:
        with contextlib.suppress(OSError):
            os.utime(file, ns=(time.time_ns(), found.st_mtime_ns))

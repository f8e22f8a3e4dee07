"""Times of files: ages, and the record of the last use."""

import math
import os
import time
from pathlib import Path

import pytest

from dockyard.storage.file_times import MAX_CLOCK_STEP_S, RECORD_INTERVAL_S, age_of, record_use

YEAR_S = 365 * 86400.0


@pytest.mark.parametrize(
    ("offset_s", "age_s"),
    [(-10.0, 10.0), (-YEAR_S, YEAR_S), (0.0, 0.0), (MAX_CLOCK_STEP_S / 2, 0.0), (YEAR_S, math.inf)],
)
def test_a_time_that_is_later_than_now_is_very_old(offset_s: float, age_s: float) -> None:
    """But a small step of the clock does not make old what was used now."""
    assert age_of(time.time() + offset_s) == pytest.approx(age_s, abs=5.0)


@pytest.mark.parametrize("offset_s", [-2 * RECORD_INTERVAL_S, 5 * YEAR_S], ids=["old", "in the future"])
def test_a_use_is_recorded_and_the_modification_time_stays(tmp_path: Path, offset_s: float) -> None:
    """The access time becomes now; the modification time has another meaning and is unchanged."""
    file = tmp_path / "file"
    file.touch()
    os.utime(file, ns=(time.time_ns() + int(offset_s * 1e9), 1_234_567_890_123_456_789))
    record_use(file, file.stat())
    assert age_of(file.stat().st_atime) < 10
    assert file.stat().st_mtime_ns == 1_234_567_890_123_456_789


def test_a_recent_use_is_not_recorded_again(tmp_path: Path) -> None:
    """One system call per interval, not per use."""
    file = tmp_path / "file"
    file.touch()
    os.utime(file, (time.time() - RECORD_INTERVAL_S / 2,) * 2)
    before = file.stat().st_atime_ns
    record_use(file, file.stat())
    assert file.stat().st_atime_ns == before


def test_a_time_that_cannot_be_set_is_no_error(tmp_path: Path) -> None:
    """A file of another user, or on a read-only file system, keeps its time."""
    file = tmp_path / "file"
    file.touch()
    os.utime(file, (0, 0))
    found = file.stat()
    file.unlink()
    record_use(file, found)

"""When an object of the bucket is due for a touch."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage.atomic_write import TEMPORARY_SUFFIX
from dockyard.storage.items import BlobItem, Item, TagItem
from dockyard.storage.touch_times import TouchTimes
from dockyard.storage.verified_files import VerifiedFiles

THRESHOLD_S = 3600.0
ITEM = BlobItem(Digest.of(b"a blob"))
TAG = TagItem(Name.parse("up.test/img"), Tag.parse("v1"))


@pytest.fixture
def touch_times(tmp_path: Path) -> TouchTimes:
    """The touch times of a store that has one blob, at `tmp_path / "blob"`."""

    def path_of(_: Item) -> Path:
        return tmp_path / "blob"

    (tmp_path / "blob").touch()
    return TouchTimes(path_of, tmp_path / "stamps", VerifiedFiles())


@pytest.mark.parametrize(
    ("offset_s", "is_due"),
    [(0.0, False), (-THRESHOLD_S / 2, False), (-2 * THRESHOLD_S, True), (5 * 365 * 86400.0, True)],
    ids=["now", "recent", "old", "in the future"],
)
def test_an_object_is_due_when_its_copy_is_old(
    touch_times: TouchTimes, tmp_path: Path, offset_s: float, *, is_due: bool
) -> None:
    """A time in the future is from a wrong clock: the object is touched, and the time is right from then on."""
    os.utime(tmp_path / "blob", (0, time.time() + offset_s))
    assert touch_times.claim_touch(ITEM, THRESHOLD_S) == is_due
    assert not touch_times.claim_touch(ITEM, THRESHOLD_S)


def test_an_item_without_a_file_is_due_at_once_and_once(
    touch_times: TouchTimes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stamp file has its time before other threads find it."""
    set_time = os.utime

    def look_before(path: Path | str | int, *args: Any, **more: Any) -> None:
        if args:  # the first time; later ones are set by `ns`
            assert [each.suffix for each in (tmp_path / "stamps").iterdir()] == [TEMPORARY_SUFFIX]
        set_time(path, *args, **more)

    monkeypatch.setattr(os, "utime", look_before)
    assert touch_times.claim_touch(TAG, THRESHOLD_S)
    assert not touch_times.claim_touch(TAG, THRESHOLD_S)
    assert len([*(tmp_path / "stamps").iterdir()]) == 1


def test_a_stamp_whose_time_cannot_be_set_leaves_no_file(
    touch_times: TouchTimes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise each look at it would leave another one."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    assert not touch_times.claim_touch(TAG, THRESHOLD_S)
    assert [*(tmp_path / "stamps").iterdir()] == []

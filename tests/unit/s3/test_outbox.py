"""The outbox: a directory of the items that are still to be published."""

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3.outbox import Outbox
from dockyard.storage.items import BlobItem, Item, ManifestItem, TagItem, parse_item

DIGEST = Digest.of(b"blob")
ITEMS: list[Item] = [
    BlobItem(DIGEST),
    BlobItem(Digest.of(b"blob", "sha512")),
    ManifestItem(Name.parse("docker.io/library/a-b__c.d"), DIGEST),
    TagItem(Name.parse("ghcr.io/org/app"), Tag.parse("v1.0_rc-2")),
]


def later(outbox: Outbox, directory: Path) -> set[Item]:
    """The items that are overdue, long after they were added."""
    for file in directory.iterdir():
        os.utime(file, (0, 0))
    return set(outbox.overdue())


@contextlib.contextmanager
def no_room_in_files() -> Iterator[None]:
    """Within it, files can be created, and nothing can be written to them."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_an_item_is_read_back_from_its_text(item: Item) -> None:
    """Parsing the text form gives an equal item."""
    assert parse_item(str(item)) == item


@pytest.mark.parametrize("text", ["", "blob", "blob x", "tag a", "layer sha256:0", "manifest A sha256:0", "tag ../x y"])
def test_other_text_is_rejected(text: str) -> None:
    """Text that is not the form of an item raises ValueError."""
    with pytest.raises(ValueError, match=r"."):
        parse_item(text)


def test_the_outbox_survives_a_restart(tmp_path: Path) -> None:
    """Items that were added and not removed are read by the next process; other files are ignored."""
    outbox = Outbox(tmp_path / "unpublished")
    for item in ITEMS:
        outbox.add(item)
    outbox.remove(ITEMS[0])
    outbox.remove(ITEMS[0])
    (tmp_path / "unpublished" / "README").touch()
    again = Outbox(tmp_path / "unpublished")
    assert later(again, tmp_path / "unpublished") == set(ITEMS[1:])
    assert ITEMS[1] in again
    assert ITEMS[0] not in again


def test_an_item_with_the_longest_name_can_be_added(tmp_path: Path) -> None:
    """The limit of file names does not limit the names of items."""
    outbox = Outbox(tmp_path)
    item = ManifestItem(Name.parse("a/" * 120 + "b"), Digest.of(b"m", "sha512"))
    outbox.add(item)
    assert later(outbox, tmp_path) == {item}


def test_an_item_that_was_just_added_is_not_overdue(tmp_path: Path) -> None:
    """Other workers publish an item only after the worker that added it had time to; the clock may jump."""
    outbox = Outbox(tmp_path)
    item = BlobItem(Digest.of(b"a blob"))
    outbox.add(item)
    (file,) = tmp_path.iterdir()
    assert item in outbox
    assert list(outbox.overdue()) == []
    for age_s in (10, -3600):
        os.utime(file, (time.time() - age_s,) * 2)
        assert list(outbox.overdue()) == [item]


@pytest.mark.parametrize("content", [b"", bytes(100), b"\xff"], ids=["empty", "zeros", "no text"])
def test_a_file_that_a_power_failure_has_emptied_is_no_item(tmp_path: Path, content: bytes) -> None:
    """Its item would never be sent: so it is due for a touch again, and can be added again."""
    outbox = Outbox(tmp_path)
    item = BlobItem(Digest.of(b"a blob"))
    outbox.add(item)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert item not in outbox
    assert list(outbox.overdue()) == []
    assert file.exists(), "it may be one that is being written"
    outbox.add(item)
    assert item in outbox
    file.write_bytes(content)
    assert later(outbox, tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_empty_file_and_keeps_what_is_there(tmp_path: Path) -> None:
    """A file can be created, but has no room for its text. The time of the one that is there is renewed."""
    outbox = Outbox(tmp_path)
    outbox.add(ITEMS[0])
    (file,) = tmp_path.iterdir()
    os.utime(file, (0, 0))
    with no_room_in_files():
        outbox.add(ITEMS[0])
        outbox.add(ITEMS[1])
    assert list(outbox.overdue()) == []
    assert later(outbox, tmp_path) == {ITEMS[0]}
    assert list(tmp_path.iterdir()) == [file]


def test_an_item_that_is_removed_while_it_is_added_again_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was before is in the bucket now; what it has become meanwhile, such as a tag, is not."""
    outbox = Outbox(tmp_path)
    outbox.add(ITEMS[3])
    renew = os.utime

    def remove_before(path: Path) -> None:
        outbox.remove(ITEMS[3])
        renew(path)

    monkeypatch.setattr(os, "utime", remove_before)
    outbox.add(ITEMS[3])
    assert ITEMS[3] in outbox

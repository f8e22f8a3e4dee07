"""What waits for the bucket is a directory that can be read back."""

import os
import time
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


@pytest.mark.parametrize("item", ITEMS, ids=str)
def test_an_item_is_read_back_from_its_text(item: Item) -> None:
    """The text of an item is the item."""
    assert parse_item(str(item)) == item


@pytest.mark.parametrize("text", ["", "blob", "blob x", "tag a", "layer sha256:0", "manifest A sha256:0", "tag ../x y"])
def test_other_names_are_no_items(text: str) -> None:
    """A file that is not ours is told from one that is."""
    with pytest.raises(ValueError, match=r"."):
        parse_item(text)


def test_the_directory_remembers(tmp_path: Path) -> None:
    """What was added and not removed is there for the next run, and other files are passed over."""
    outbox = Outbox(tmp_path / "unpublished")
    for item in ITEMS:
        outbox.add(item)
    outbox.remove(ITEMS[0])
    outbox.remove(ITEMS[0])
    (tmp_path / "unpublished" / "README").touch()
    again = Outbox(tmp_path / "unpublished")
    assert set(again) == set(ITEMS[1:])
    assert ITEMS[1] in again
    assert ITEMS[0] not in again


def test_the_longest_name_is_remembered(tmp_path: Path) -> None:
    """What a file system takes as a name does not limit what is remembered."""
    outbox = Outbox(tmp_path)
    item = ManifestItem(Name.parse("a/" * 120 + "b"), Digest.of(b"m", "sha512"))
    outbox.add(item)
    assert list(outbox) == [item]


def test_what_was_added_a_moment_ago_is_not_left_over(tmp_path: Path) -> None:
    """Another worker leaves an item to the one that added it, until that one has had its time; clocks may jump."""
    outbox = Outbox(tmp_path)
    item = BlobItem(Digest.of(b"a blob"))
    outbox.add(item)
    (file,) = tmp_path.iterdir()
    assert list(outbox) == [item]
    assert list(outbox.overdue()) == []
    for age_s in (10, -3600):
        os.utime(file, (time.time() - age_s,) * 2)
        assert list(outbox.overdue()) == [item]

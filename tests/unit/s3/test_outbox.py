"""The outbox: a directory of the items that are still to be published."""

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
    assert set(again) == set(ITEMS[1:])
    assert ITEMS[1] in again
    assert ITEMS[0] not in again


def test_an_item_with_the_longest_name_can_be_added(tmp_path: Path) -> None:
    """The limit of file names does not limit the names of items."""
    outbox = Outbox(tmp_path)
    item = ManifestItem(Name.parse("a/" * 120 + "b"), Digest.of(b"m", "sha512"))
    outbox.add(item)
    assert list(outbox) == [item]


def test_an_item_that_was_just_added_is_not_overdue(tmp_path: Path) -> None:
    """Other workers publish an item only after the worker that added it had time to; the clock may jump."""
    outbox = Outbox(tmp_path)
    item = BlobItem(Digest.of(b"a blob"))
    outbox.add(item)
    (file,) = tmp_path.iterdir()
    assert list(outbox) == [item]
    assert list(outbox.overdue()) == []
    for age_s in (10, -3600):
        os.utime(file, (time.time() - age_s,) * 2)
        assert list(outbox.overdue()) == [item]

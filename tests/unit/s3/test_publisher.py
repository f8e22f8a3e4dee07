"""What is published while something else happens. The bucket is a fake: the moment matters."""

import time
from pathlib import Path
from typing import cast

import pytest

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3.outbox import Outbox
from dockyard.s3.publisher import Publisher
from dockyard.s3.store import S3Store
from dockyard.storage.items import Item, TagItem
from dockyard.storage.local import LocalStore, Pointer
from tests.support.deployment import eventually

TAG = TagItem(Name.parse("up.test/img"), Tag.parse("v1"))
OLD, NEW = Digest.of(b"old"), Digest.of(b"new")


class FakeBucket:
    """Records the digests that a tag is pointed at."""

    def __init__(self) -> None:
        self.digests: list[Digest] = []

    def write_pointer(self, name: Name, tag: Tag, digest: Digest) -> None:
        self.digests.append(digest)


@pytest.mark.parametrize("moment", ["stamped", "forgotten"])
def test_a_tag_that_moves_while_it_is_published_is_published_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Also when the upload of the old pointer has just ended, and is about to be forgotten."""
    store = LocalStore(tmp_path, "cache/", 0)
    store.create_directories()
    bucket, outbox = FakeBucket(), Outbox(tmp_path / "unpublished")
    publisher = Publisher(store, cast("S3Store", bucket), outbox, 0, lambda _: True)

    def point_at(digest: Digest) -> None:
        publisher.add_to_outbox(TAG)
        assert store.move_pointer(
            TAG.name, TAG.tag, store.read_pointer(TAG.name, TAG.tag), Pointer(digest, time.time())
        )
        publisher.publish(TAG)

    def move_before(item: Item) -> None:
        if bucket.digests == [OLD]:
            point_at(NEW)
        forget(item)

    owner, name = (store.touch_times, "mark_published") if moment == "stamped" else (outbox, "remove")
    forget = getattr(owner, name)
    monkeypatch.setattr(owner, name, move_before)
    point_at(OLD)
    eventually(lambda: bucket.digests == [OLD, NEW] and TAG not in outbox, "the tag points at the new image")
    publisher.stop()

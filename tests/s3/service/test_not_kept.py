"""What the local store cannot keep, with a bucket behind it: large layers, and pointers of tags."""

from collections.abc import Callable
from random import Random

import pytest

from tests.s3.service.bucket_view import BucketView, blob_key, tag_key
from tests.s3.service.images import NAME, REPO, put_image
from tests.support.bodies import Bytes, digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import FakeRegistry

MIB = 1024 * 1024


def test_a_layer_that_is_too_large_to_be_kept_is_published(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """It is uploaded while it is passed through, and then served from the bucket; nothing is evicted for it."""
    small = fake_registry.add_blob(Random(1).randbytes(MIB))
    content = Bytes(Random(2).randbytes(30 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = start(storage={"max_size": "10MiB"})
    assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{small}").body) == small
    eventually(lambda: deployment.stored_files(small), "the small one is stored")
    assert digest_of(deployment.get(path).body) == content.digest
    eventually(lambda: blob_key(content.digest) in bucket_view.listed(), "published")
    fetches = fake_registry.count("blob", "GET", reference=content.digest)
    assert fetches <= 2  # of the worker that owns the digest, and of the one that has the client
    with deployment.crowd(path, content, 4) as crowd:
        crowd.run()
        assert all(member.is_right for member in crowd.members), crowd.summary()
    assert deployment.get(path, Range="bytes=1000-1999").status == 206
    assert fake_registry.count("blob", "GET", reference=content.digest) == fetches
    assert not deployment.stored_files(content.digest)
    assert deployment.stored_files(small)
    eventually(lambda: not list(deployment.dockyard.storage.glob("unpublished/*")), "nothing is left to be published")


def test_a_layer_of_the_bucket_that_is_too_large_evicts_nothing(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """Another server has put it there."""
    small = fake_registry.add_blob(Random(3).randbytes(MIB))
    large = Random(4).randbytes(20 * MIB)
    bucket_view.put_blob(large)
    deployment = start(storage={"max_size": "10MiB"})
    assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{small}").body) == small
    eventually(lambda: deployment.stored_files(small), "the small one is stored")
    assert deployment.get(f"/v2/up.test/app/blobs/{digest_of(large)}").body == large
    assert fake_registry.count("blob", "GET", reference=digest_of(large)) == 0
    deployment.wait_for_log("a layer is too large to be kept")
    assert "evicted the least recently used files" not in deployment.dockyard.read_log()
    assert deployment.stored_files(small)


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_pointer_that_cannot_be_written_costs_one_check(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, *, is_moved: bool
) -> None:
    """Its place is taken by a repository of that name. The bucket has a pointer; the tag may have moved since."""
    image = fake_registry.add_image(REPO, "v1", [b"old"])
    put_image(bucket_view, fake_registry, "v1")
    if is_moved:
        image = fake_registry.add_image(REPO, "v1", [b"new"])
    deployment = start()
    (deployment.dockyard.storage / tag_key(NAME, "v1")).mkdir(parents=True)
    for number in range(1, 4):
        response = deployment.get(f"/v2/{NAME}/manifests/v1")
        assert (response.status, digest_of(response.body)) == (200, image.digest)
        assert fake_registry.count("manifest", "HEAD") == number

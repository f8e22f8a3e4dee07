"""A layer of 6 GiB, which is larger than a single PUT may be.

Run by `pytest tests/s3/service/test_large.py -m large`; needs 20 GiB of disk.
"""

import shutil
import time
from collections.abc import Callable

import pytest

from tests.s3.service.bucket_view import BLOB_TYPE, BucketView, blob_key
from tests.s3.service.images import NAME
from tests.support.bodies import Synthetic
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import FakeRegistry

GIB = 2**30
WITHIN_S = 300.0


@pytest.mark.large
@pytest.mark.timeout(1200)
def test_a_layer_of_six_gibibytes(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """It is downloaded, published in parts, served from S3 by a second Dockyard, and touched.

    Takes some minutes and is deselected in the usual run: `pytest tests/s3/service/test_large.py -m large`.
    """
    truth = Synthetic(6 * GIB, seed=6)
    key, path = blob_key(fake_registry.add_blob(truth)), f"/v2/{NAME}/blobs/{truth.digest}"
    started_at = time.monotonic()

    def print_time(step: str) -> None:
        nonlocal started_at
        print(f"{step}: {time.monotonic() - started_at:.1f} s")  # noqa: T201  to be seen with -s
        started_at = time.monotonic()

    first = start()
    with first.stream(path) as download:
        assert download.head().find_mismatch(truth) is None
    print_time("fetched from the upstream")
    eventually(lambda: key in bucket_view.listed(), "the layer is published", WITHIN_S)
    print_time("and then published")
    found = bucket_view.stat(key)
    assert (found.size, found.content_type) == (truth.size, BLOB_TYPE)
    assert "-" in found.metadata["etag"], "sent in parts"
    first.dockyard.stop()
    shutil.rmtree(first.dockyard.storage)

    second = start(storage={"touch_threshold": "5s"})
    with second.stream(path) as download:
        assert download.head().find_mismatch(truth) is None
    print_time("served from S3")
    assert fake_registry.count("blob", "GET") == 1

    def is_touched() -> bool:
        assert second.head(path).header("Content-Length") == str(truth.size)
        return bucket_view.stat(key).modified > found.modified

    eventually(is_touched, "the layer is touched", WITHIN_S)
    print_time("touched")
    assert bucket_view.stat(key).content_type == BLOB_TYPE
    second.dockyard.stop()

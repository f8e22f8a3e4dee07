"""A bucket that cannot be used."""

from pathlib import Path

import pytest

from tests.failures.buckets import BUCKETS, BucketFailure, observe
from tests.failures.conftest import Check
from tests.s3.service.bucket_view import BucketView


@pytest.mark.parametrize("failure", BUCKETS, ids=lambda failure: failure.cause)
def test_the_line_of_a_bucket_that_cannot_be_used(
    failure: BucketFailure, tmp_path: Path, bucket_view: BucketView, check: Check
) -> None:
    """A real `dockyard server` over a real MinIO, or what stands for it."""
    check(failure, observe(failure, tmp_path, bucket_view))

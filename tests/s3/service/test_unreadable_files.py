"""What is still to be uploaded to the bucket cannot be read from the disk any more."""

from pathlib import Path
from random import Random

import pytest

from tests.s3.service.bucket_view import BucketView, blob_key
from tests.s3.store.proxy import Forward, S3Proxy, s3_error
from tests.support import btrfs
from tests.support.deployment import eventually, open_deployment
from tests.support.fake_registry import FakeRegistry
from tests.support.programs import Programs

MIB = 1024 * 1024


@pytest.mark.parametrize("verify", ["start", "never"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"], ids=["one PUT", "multipart"])
def test_a_blob_that_cannot_be_read_is_fetched_again_and_uploaded(
    bucket_view: BucketView,
    proxy: S3Proxy,
    fake_registry: FakeRegistry,
    programs: Programs,
    tmp_path: Path,
    algorithm: str,
    verify: str,
) -> None:
    """It does not stay in the outbox for ever: its next pull fetches it, and the bucket gets it then."""
    body = Random(6).randbytes(6 * MIB)
    digest = fake_registry.add_blob(body, algorithm=algorithm)
    path = f"/v2/up.test/app/blobs/{digest}"
    proxy.rule = lambda _: s3_error(503, "SlowDown")
    with (
        btrfs.mounted(programs, tmp_path / "storage") as disk,
        open_deployment(fake_registry, tmp_path, storage=bucket_view.storage(proxy.host, verify=verify)) as deployment,
    ):
        assert deployment.get(path).body == body
        outbox = deployment.dockyard.storage / "unpublished"
        (file,) = eventually(lambda: deployment.stored_files(digest), "stored")
        assert any(outbox.iterdir())
        disk.break_page(file, 5 * MIB)
        proxy.rule = lambda _: Forward()
        eventually(lambda: not any(outbox.iterdir()), "nothing is left to be uploaded")
        assert bucket_view.listed() == set()
        fake_registry.clear_exchanges()
        assert deployment.get(path).body == body
        assert fake_registry.count("blob", "GET") == 1
        eventually(lambda: bucket_view.listed() == {blob_key(digest)}, "uploaded")
        log = deployment.wait_for_log("cannot read a cached blob")
        assert "internal error" not in log

"""Fixtures: three Dockyards over one bucket behind HAProxy, one fleet for all tests of this package."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.fleet import Fleet
from tests.s3.service.bucket_view import BucketView
from tests.s3.store.conftest import minio
from tests.s3.store.servers import Server
from tests.support.fake_registry import FakeRegistry
from tests.support.paths import ROOT
from tests.support.programs import Programs

__all__ = ["minio"]


@pytest.fixture(scope="session")
def ops() -> Path:
    """The directory of the files for operators."""
    return ROOT / "ops"


@pytest.fixture(scope="package")
def fleet(ops: Path, programs: Programs, minio: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet; at its end the content of its bucket is verified."""
    directory = tmp_path_factory.mktemp("fleet")
    haproxy = programs.need("haproxy")
    with contextlib.closing(BucketView(minio)) as bucket_view, FakeRegistry() as fake_registry:
        bucket_view.make()
        with contextlib.closing(Fleet(ops, haproxy, directory, fake_registry, bucket_view)) as fleet:
            fleet.start()
            yield fleet
        assert bucket_view.audit() == []

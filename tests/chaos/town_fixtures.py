"""A town as a fixture, of the size that a test asks for."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.clock import Clock
from tests.chaos.town import Town
from tests.s3.service.bucket_view import BucketView
from tests.s3.store.conftest import minio
from tests.s3.store.servers import Server
from tests.support.deployment import open_deployment
from tests.support.fake_registry import FakeRegistry
from tests.support.toxiproxy import Toxiproxy

__all__ = ["make_town", "minio"]


@pytest.fixture
def make_town(minio: Server, toxiproxy: Toxiproxy, tmp_path: Path) -> Iterator[Callable[..., Town]]:
    """Give a function that builds a town; everything in it is gone when the test ends."""
    with contextlib.ExitStack() as stack:

        def make(*, workers: int = 4, **settings: Any) -> Town:
            directory = tmp_path / f"town-{len(list(tmp_path.iterdir()))}"
            directory.mkdir()
            place = stack.enter_context(contextlib.closing(BucketView(minio)))
            place.make()
            bucket = stack.enter_context(contextlib.closing(toxiproxy.create_proxy(minio.port)))
            clock = Clock(directory)
            fake_registry = stack.enter_context(FakeRegistry())
            deployment = stack.enter_context(
                open_deployment(
                    fake_registry,
                    directory,
                    workers=workers,
                    environ=clock.environ,
                    storage=place.storage(bucket.authority),
                    **settings,
                )
            )
            return Town(fake_registry, deployment, place, bucket, clock, workers)

        yield make

"""A `FaultySystem` as a fixture."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.engine.fake_clock import FakeClock
from tests.chaos.random_faults.injector import FaultySystem
from tests.s3.service.bucket_view import BucketView
from tests.s3.store.conftest import minio
from tests.s3.store.servers import Server
from tests.support.deployment import open_deployment
from tests.support.fake_registry import FakeRegistry
from tests.support.toxiproxy import Toxiproxy

__all__ = ["make_system", "minio"]


@pytest.fixture
def make_system(minio: Server, toxiproxy: Toxiproxy, tmp_path: Path) -> Iterator[Callable[..., FaultySystem]]:
    """Give a function that starts a system; it is stopped when the test ends."""
    with contextlib.ExitStack() as stack:

        def make(*, workers: int = 4, **settings: Any) -> FaultySystem:
            directory = tmp_path / f"system-{len(list(tmp_path.iterdir()))}"
            directory.mkdir()
            bucket_view = stack.enter_context(contextlib.closing(BucketView(minio)))
            bucket_view.make()
            bucket_network = stack.enter_context(contextlib.closing(toxiproxy.create_proxy(minio.port)))
            clock = FakeClock(directory)
            fake_registry = stack.enter_context(FakeRegistry())
            deployment = stack.enter_context(
                open_deployment(
                    fake_registry,
                    directory,
                    workers=workers,
                    environ=clock.environ,
                    storage=bucket_view.storage(bucket_network.authority),
                    **settings,
                )
            )
            return FaultySystem(fake_registry, deployment, bucket_view, bucket_network, clock, workers)

        yield make

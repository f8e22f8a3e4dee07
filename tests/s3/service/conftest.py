"""Fixtures: Dockyards over a bucket on a real MinIO, one for each test; the bucket is audited when the test ends."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.s3.service.bucket_view import BucketView
from tests.s3.store.conftest import minio
from tests.s3.store.proxy import S3Proxy
from tests.s3.store.servers import Server
from tests.support.deployment import Deployment
from tests.support.deployment_fixtures import fake_registry, make_deployment
from tests.support.toxiproxy import TcpProxy, Toxiproxy

__all__ = ["fake_registry", "make_deployment", "minio"]


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark of tests that take too long for the usual run."""
    config.addinivalue_line("markers", "large: gigabytes through real servers; only with -m large")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests marked `large`, unless they are selected with -m."""
    if "large" not in config.getoption("-m"):
        large = [item for item in items if item.get_closest_marker("large")]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]


@pytest.fixture
def bucket_view(minio: Server) -> Iterator[BucketView]:
    """An empty bucket, which is audited after all Dockyards have stopped."""
    with contextlib.closing(BucketView(minio)) as bucket_view:
        bucket_view.make()
        yield bucket_view
        assert bucket_view.audit() == []


@pytest.fixture
def proxy(minio: Server) -> Iterator[S3Proxy]:
    """A proxy before MinIO that records requests and injects faults."""
    with contextlib.closing(S3Proxy(minio.port)) as proxy:
        yield proxy


@pytest.fixture
def toxics(toxiproxy: Toxiproxy, minio: Server) -> Iterator[TcpProxy]:
    """A TCP proxy to MinIO that can be slowed down."""
    with contextlib.closing(toxiproxy.create_proxy(minio.port)) as toxics:
        yield toxics


@pytest.fixture
def start(bucket_view: BucketView, make_deployment: Callable[..., Deployment]) -> Callable[..., Deployment]:
    """Start a Dockyard over the bucket. `storage` overrides settings; `endpoint` is a proxy before MinIO."""

    def start(
        endpoint: str = "", *, workers: int = 2, storage: dict[str, Any] | None = None, **more: Any
    ) -> Deployment:
        return make_deployment(workers=workers, storage=bucket_view.storage(endpoint, **(storage or {})), **more)

    return start

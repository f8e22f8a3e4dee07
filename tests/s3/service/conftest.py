"""Dockyards before a bucket of the test's own, on a real MinIO; the bucket is audited when the test ends."""

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
    """Name the mark of what is too long for every day."""
    config.addinivalue_line("markers", "large: gigabytes through real servers; only with -m large")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is large, unless it is asked for."""
    if "large" not in config.getoption("-m"):
        large = [item for item in items if item.get_closest_marker("large")]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]


@pytest.fixture
def bucket_view(minio: Server) -> Iterator[BucketView]:
    """Give an empty bucket, and judge what is in it when all Dockyards are gone."""
    with contextlib.closing(BucketView(minio)) as bucket_view:
        bucket_view.make()
        yield bucket_view
        assert bucket_view.audit() == []


@pytest.fixture
def proxy(minio: Server) -> Iterator[S3Proxy]:
    """Give what stands before MinIO, counts and makes trouble."""
    with contextlib.closing(S3Proxy(minio.port)) as proxy:
        yield proxy


@pytest.fixture
def toxics(toxiproxy: Toxiproxy, minio: Server) -> Iterator[TcpProxy]:
    """Give a slow way to MinIO; it is fast until told otherwise."""
    with contextlib.closing(toxiproxy.create_proxy(minio.port)) as toxics:
        yield toxics


@pytest.fixture
def start(bucket_view: BucketView, make_deployment: Callable[..., Deployment]) -> Callable[..., Deployment]:
    """Start a Dockyard over the bucket; `storage` is laid over, `endpoint` is a proxy."""

    def start(
        endpoint: str = "", *, workers: int = 2, storage: dict[str, Any] | None = None, **more: Any
    ) -> Deployment:
        return make_deployment(workers=workers, storage=bucket_view.storage(endpoint, **(storage or {})), **more)

    return start

"""Deployments whose secrets are canaries; each is searched when its test has ended."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.s3.store.proxy import S3Proxy, s3_error
from tests.security.canaries import Canary, WatchedDeployment
from tests.support.deployment import eventually, open_deployment, upstream
from tests.support.deployment_fixtures import fake_registry
from tests.support.fake_registry import FakeRegistry

__all__ = ["fake_registry"]

PASSWORD = Canary("canary-password-5e1f", frozenset({"registry"}))
BEARER = Canary("canary-bearer-83ac", frozenset({"registry"}))
STORE = Canary("canary-store-secret-c07d")
CLIENT = Canary("canary-of-the-client-19b4")
CANARIES = [PASSWORD, BEARER, STORE, CLIENT]


def logins(registry: str) -> list[dict[str, Any]]:
    """Upstreams with every kind of login, all at one registry, and the default without any."""
    password = {"type": "basic", "username": "ann", "password": PASSWORD.text}
    return [
        upstream("docker.io", registry),
        upstream("up.test", registry),
        upstream("basic.test", registry, auth=password),
        upstream("bearer.test", registry, auth={"type": "bearer", "password": BEARER.text}),
    ]


@contextlib.contextmanager
def watched(fake_registry: FakeRegistry, directory: Path, **settings: Any) -> Iterator[WatchedDeployment]:
    """A deployment with logins; no canary may be found where it is not for, when all is over."""
    settings.setdefault("upstreams", logins(fake_registry.url))
    with open_deployment(fake_registry, directory, **settings) as opened:
        deployment = WatchedDeployment(opened.fake_registry, opened.dockyard)
        yield deployment
        assert deployment.leaks(CANARIES) == []


@pytest.fixture
def make_deployment(fake_registry: FakeRegistry, tmp_path: Path) -> Iterator[Callable[..., WatchedDeployment]]:
    """Start a watched Dockyard of the test's own; what is given goes over its settings."""
    with contextlib.ExitStack() as deployments:

        def start(**settings: Any) -> WatchedDeployment:
            directory = tmp_path / f"deployment-{len(list(tmp_path.glob('deployment-*')))}"
            return deployments.enter_context(watched(fake_registry, directory, **settings))

        yield start


@pytest.fixture(scope="package")
def bucket() -> Iterator[S3Proxy]:
    """Give an S3 endpoint that has nothing and keeps nothing, and counts what it is asked."""
    with contextlib.closing(S3Proxy(0)) as endpoint:
        endpoint.rule = lambda request: s3_error(404, "NoSuchKey")
        yield endpoint


@pytest.fixture(scope="package")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedDeployment]:
    """Give a deployment with one worker whose upstream stays well; its tests use names of their own."""
    with FakeRegistry() as fake_registry, watched(fake_registry, tmp_path_factory.mktemp("deployment")) as deployment:
        yield deployment


@pytest.fixture(scope="package")
def empty_bucket_deployment(bucket: S3Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedDeployment]:
    """Give a deployment before an empty bucket, for what is refused: nothing is ever pulled from it."""
    storage = {
        "endpoint": bucket.host,
        "bucket": "nothing-here",
        "access_key": "a",
        "secret_key": STORE.text,
        "use_ssl": False,
    }
    with (
        FakeRegistry() as fake_registry,
        watched(fake_registry, tmp_path_factory.mktemp("empty_bucket_deployment"), storage=storage) as deployment,
    ):
        eventually(lambda: bucket.counted()["GET uploads"], "the look at the bucket has ended")
        yield deployment


@pytest.fixture
def no_backend_requests(empty_bucket_deployment: WatchedDeployment, bucket: S3Proxy) -> Iterator[None]:
    """The test sends nothing that reaches the upstream or the bucket; after it the deployment answers as ever."""
    before = empty_bucket_deployment.fake_registry.count(), len(bucket.requests)
    yield
    assert (empty_bucket_deployment.fake_registry.count(), len(bucket.requests)) == before
    assert empty_bucket_deployment.get("/v2/").status == 200

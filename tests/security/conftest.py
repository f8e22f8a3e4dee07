"""Deployments whose secrets are canaries; each deployment is searched for them when its test has ended."""

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
    """Upstreams with every kind of login, all at one registry, and the default upstream without one."""
    password = {"type": "basic", "username": "ann", "password": PASSWORD.text}
    return [
        upstream("docker.io", registry),
        upstream("up.test", registry),
        upstream("basic.test", registry, auth=password),
        upstream("bearer.test", registry, auth={"type": "bearer", "password": BEARER.text}),
    ]


def bucket_settings(bucket: S3Proxy) -> dict[str, Any]:
    """The `storage` settings for a fake S3 endpoint; its secret key is a canary."""
    return {
        "endpoint": bucket.host,
        "bucket": "nothing-here",
        "access_key": "a",
        "secret_key": STORE.text,
        "use_ssl": False,
    }


@contextlib.contextmanager
def watched(fake_registry: FakeRegistry, directory: Path, **settings: Any) -> Iterator[WatchedDeployment]:
    """A deployment with logins; at its end no canary may be found where it does not belong."""
    settings.setdefault("upstreams", logins(fake_registry.url))
    with open_deployment(fake_registry, directory, **settings) as opened:
        deployment = WatchedDeployment(opened.fake_registry, opened.dockyard)
        yield deployment
        assert deployment.leaks(CANARIES) == []


@pytest.fixture
def make_deployment(fake_registry: FakeRegistry, tmp_path: Path) -> Iterator[Callable[..., WatchedDeployment]]:
    """Start a Dockyard for this test; the arguments override its settings. It is searched for canaries at the end."""
    with contextlib.ExitStack() as deployments:

        def start(**settings: Any) -> WatchedDeployment:
            directory = tmp_path / f"deployment-{len(list(tmp_path.glob('deployment-*')))}"
            return deployments.enter_context(watched(fake_registry, directory, **settings))

        yield start


@pytest.fixture(scope="package")
def bucket() -> Iterator[S3Proxy]:
    """An S3 endpoint that has nothing, stores nothing, and counts its requests."""
    with contextlib.closing(S3Proxy(0)) as endpoint:
        endpoint.rule = lambda request: s3_error(404, "NoSuchKey")
        yield endpoint


@pytest.fixture(scope="package")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedDeployment]:
    """A deployment with one worker whose upstream has no faults; its tests use names of their own."""
    with FakeRegistry() as fake_registry, watched(fake_registry, tmp_path_factory.mktemp("deployment")) as deployment:
        yield deployment


@pytest.fixture(scope="package")
def empty_bucket_deployment(bucket: S3Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedDeployment]:
    """A deployment with an empty bucket, for requests that are rejected: nothing is ever pulled from it."""
    with (
        FakeRegistry() as fake_registry,
        watched(fake_registry, tmp_path_factory.mktemp("empty-bucket"), storage=bucket_settings(bucket)) as deployment,
    ):
        eventually(lambda: bucket.counted()["GET uploads"], "the look at the bucket has ended")
        yield deployment


@pytest.fixture
def no_backend_requests(empty_bucket_deployment: WatchedDeployment, bucket: S3Proxy) -> Iterator[None]:
    """Check that the test causes no request to the upstream or the bucket, and that the deployment still answers."""
    before = empty_bucket_deployment.fake_registry.count(), len(bucket.requests)
    yield
    assert (empty_bucket_deployment.fake_registry.count(), len(bucket.requests)) == before
    assert empty_bucket_deployment.get("/v2/").status == 200

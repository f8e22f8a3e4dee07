"""Houses whose secrets are canaries; each is searched when its test has ended."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house import eventually, open_house, upstream
from tests.house_fixtures import origin
from tests.origin import Origin
from tests.security.canaries import Canary, WatchedHouse
from tests.stores.proxy import Proxy, error

__all__ = ["origin"]

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
def watched(origin: Origin, directory: Path, **settings: Any) -> Iterator[WatchedHouse]:
    """A house with logins; no canary may be found where it is not for, when all is over."""
    settings.setdefault("upstreams", logins(origin.url))
    with open_house(origin, directory, **settings) as opened:
        house = WatchedHouse(opened.origin, opened.dockyard)
        yield house
        assert house.leaks(CANARIES) == []


@pytest.fixture
def make_house(origin: Origin, tmp_path: Path) -> Iterator[Callable[..., WatchedHouse]]:
    """Start a watched Dockyard of the test's own; what is given goes over its settings."""
    with contextlib.ExitStack() as houses:

        def start(**settings: Any) -> WatchedHouse:
            directory = tmp_path / f"house-{len(list(tmp_path.glob('house-*')))}"
            return houses.enter_context(watched(origin, directory, **settings))

        yield start


@pytest.fixture(scope="package")
def bucket() -> Iterator[Proxy]:
    """Give an S3 endpoint that has nothing and keeps nothing, and counts what it is asked."""
    with contextlib.closing(Proxy(0)) as endpoint:
        endpoint.rule = lambda request: error(404, "NoSuchKey")
        yield endpoint


@pytest.fixture(scope="package")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedHouse]:
    """Give a house with one worker whose upstream stays well; its tests use names of their own."""
    with Origin() as origin, watched(origin, tmp_path_factory.mktemp("house")) as house:
        yield house


@pytest.fixture(scope="package")
def edge(bucket: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedHouse]:
    """Give a house before an empty bucket, for what is refused: nothing is ever pulled from it."""
    storage = {
        "endpoint": bucket.host,
        "bucket": "nothing-here",
        "access_key": "a",
        "secret_key": STORE.text,
        "use_ssl": False,
    }
    with Origin() as origin, watched(origin, tmp_path_factory.mktemp("edge"), storage=storage) as house:
        eventually(lambda: bucket.counted()["GET uploads"], "the look at the bucket has ended")
        yield house


@pytest.fixture
def asks_nobody(edge: WatchedHouse, bucket: Proxy) -> Iterator[None]:
    """The test sends nothing that reaches the upstream or the bucket; after it the house answers as ever."""
    before = edge.origin.count(), len(bucket.requests)
    yield
    assert (edge.origin.count(), len(bucket.requests)) == before
    assert edge.get("/v2/").status == 200

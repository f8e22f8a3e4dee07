"""Stores to test: the local store, and S3 stores over real servers, each test with a prefix of its own."""

import contextlib
import secrets
from collections.abc import Iterator

import pytest

from dockyard.s3 import S3Store
from tests.s3.store.proxy import S3Proxy
from tests.s3.store.servers import Minio, Server, Versitygw, make_tier
from tests.support.programs import Programs


def _run(kind: type[Server], programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = kind(programs.need(kind.name), tmp_path_factory.mktemp(kind.name))
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def minio(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real MinIO."""
    yield from _run(Minio, programs, tmp_path_factory)


@pytest.fixture(scope="session")
def versitygw(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real versitygw."""
    yield from _run(Versitygw, programs, tmp_path_factory)


@pytest.fixture(params=["minio", "versitygw"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the S3 servers."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found


@pytest.fixture
def prefix() -> str:
    """A place in the bucket that no other test uses."""
    return f"{secrets.token_hex(8)}/"


@pytest.fixture
def proxy(server: Server) -> Iterator[S3Proxy]:
    """What stands between the tier and the server."""
    with contextlib.closing(S3Proxy(server.port)) as proxy:
        yield proxy


@pytest.fixture
def tier(server: Server, proxy: S3Proxy, prefix: str) -> Iterator[S3Store]:
    """A tier that goes through the proxy."""
    with contextlib.closing(make_tier(server.settings(prefix, proxy.host))) as tier:
        yield tier


@pytest.fixture
def direct(server: Server, prefix: str) -> Iterator[S3Store]:
    """The same tier, not through the proxy: to look at what there is."""
    with contextlib.closing(make_tier(server.settings(prefix))) as tier:
        yield tier

"""Fixtures: real S3 servers, a proxy before them, and S3 stores; each test has its own key prefix."""

import contextlib
import secrets
from collections.abc import Iterator

import pytest

from dockyard.s3.store import S3Store
from tests.s3.store.proxy import S3Proxy
from tests.s3.store.servers import Minio, Server, Versitygw, make_s3_store
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
    """Each of the real S3 servers."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found


@pytest.fixture
def prefix() -> str:
    """A key prefix that no other test uses."""
    return f"{secrets.token_hex(8)}/"


@pytest.fixture
def proxy(server: Server) -> Iterator[S3Proxy]:
    """A proxy between the S3 store and the server."""
    with contextlib.closing(S3Proxy(server.port)) as proxy:
        yield proxy


@pytest.fixture
def s3(server: Server, proxy: S3Proxy, prefix: str) -> Iterator[S3Store]:
    """An S3 store whose requests go through the proxy."""
    with contextlib.closing(make_s3_store(server.settings(prefix, proxy.host))) as s3:
        yield s3


@pytest.fixture
def direct_s3(server: Server, prefix: str) -> Iterator[S3Store]:
    """An S3 store with the same prefix that bypasses the proxy, to prepare and inspect objects."""
    with contextlib.closing(make_s3_store(server.settings(prefix))) as s3:
        yield s3

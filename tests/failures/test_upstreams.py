"""Failures of upstreams, TLS, proxies, logins and clients: one server for all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.failures.conftest import Check
from tests.failures.running import FailingServer, failing_server
from tests.failures.upstreams import CLIENTS, LOGINS, PROXIES, TLS, UPSTREAMS, UpstreamFailure

ALL = (*UPSTREAMS, *TLS, *PROXIES, *LOGINS, *CLIENTS)
SHARED = tuple(failure for failure in ALL if failure.keychain is None)
OF_KEYCHAIN = tuple(failure for failure in ALL if failure.keychain is not None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FailingServer]:
    """A server with all these upstreams."""
    with failing_server(tmp_path_factory.mktemp("failures"), SHARED) as server:
        yield server


@pytest.mark.parametrize("failure", SHARED, ids=lambda failure: failure.cause)
def test_the_line_of_a_failed_request(failure: UpstreamFailure, server: FailingServer, check: Check) -> None:
    """One request, and one line that suffices."""
    check(failure, server.see(failure))


@pytest.mark.parametrize("failure", OF_KEYCHAIN, ids=lambda failure: failure.cause)
def test_the_line_of_a_keychain_that_cannot_be_used(failure: UpstreamFailure, tmp_path: Path, check: Check) -> None:
    """There is one keychain for all upstreams of a server."""
    with failing_server(tmp_path, [failure]) as server:
        check(failure, server.see(failure))

"""Failures of names and addresses, in a network of their own."""

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.failures.conftest import Check
from tests.failures.network import NAMES, name_server
from tests.failures.running import FailingServer, failing_server
from tests.failures.upstreams import UpstreamFailure
from tests.security.isolated_network import IsolatedNetwork, require_root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FailingServer]:
    """A server in a network where all addresses are local."""
    require_root()
    directory = tmp_path_factory.mktemp("names")
    with contextlib.closing(IsolatedNetwork(directory)) as network, ExitStack() as stack:

        def start() -> FailingServer:
            stack.enter_context(name_server().served())
            return stack.enter_context(failing_server(directory / "server", NAMES))

        yield network.run(start)


@pytest.mark.parametrize("failure", NAMES, ids=lambda failure: failure.cause)
def test_the_line_of_a_failed_request(failure: UpstreamFailure, server: FailingServer, check: Check) -> None:
    """One request, and one line that suffices."""
    check(failure, server.see(failure))

"""Fixtures of the benchmarks: a fast upstream that counts requests, and a Dockyard with real workers."""

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from bench.peers.content import UpstreamContent
from bench.peers.upstream_process import UpstreamProcess
from tests.support.deployment import upstream
from tests.support.deployment_fixtures import fake_registry, make_deployment
from tests.support.dockyard import Dockyard, running

__all__ = ["fake_registry", "make_deployment", "server"]


@attrs.frozen
class BenchServer:
    """A Dockyard with the default number of workers, its upstream, and the content of the upstream."""

    dockyard: Dockyard
    upstream: UpstreamProcess
    content: UpstreamContent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchServer]:
    """One for all benchmarks of a module."""
    directory: Path = tmp_path_factory.mktemp("dockyard")
    content = UpstreamContent(directory / "content")
    registry = UpstreamProcess(content.directory)
    try:
        registry.start()
        ours = [upstream("up.test", f"http://127.0.0.1:{registry.port}")]
        with running(Dockyard(directory / "dockyard", ours, workers=0)) as dockyard:
            yield BenchServer(dockyard, registry, content)
    finally:
        registry.close()

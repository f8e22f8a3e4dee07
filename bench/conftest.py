"""Fixtures of the measurements of parts: a fast upstream that counts, and real workers before it."""

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from bench.peers.origin import Upstream
from bench.peers.truth import Truth
from tests.support.deployment import upstream
from tests.support.deployment_fixtures import fake_registry, make_deployment
from tests.support.dockyard import Dockyard, running

__all__ = ["fake_registry", "make_deployment", "yard"]


@attrs.frozen
class Yard:
    """A Dockyard with its default number of workers, its upstream, and what that has."""

    dockyard: Dockyard
    upstream: Upstream
    truth: Truth


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    """One for all measurements of a module."""
    directory: Path = tmp_path_factory.mktemp("yard")
    truth = Truth(directory / "truth")
    registry = Upstream(truth.directory)
    try:
        registry.start()
        ours = [upstream("up.test", f"http://127.0.0.1:{registry.port}")]
        with running(Dockyard(directory / "dockyard", ours, workers=0)) as dockyard:
            yield Yard(dockyard, registry, truth)
    finally:
        registry.close()

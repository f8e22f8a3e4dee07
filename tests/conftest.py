"""Fixtures for everything that crosses a process: a real registry, Dockyard itself, and where to find programs.

    def test_something(registry, start_dockyard):
        image = push_index(registry, "library/app", seed="something")
        dockyard = start_dockyard([docker_hub(registry)], workers=4)
        registry.forget_requests()
        ...
        assert [request.path for request in registry.requests() if request.method == "GET"] == [...]

`registry` is one process for the whole session. A test that stops it starts it again (`with registry.stopped():`), and
has a repository of its own.
"""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard
from tests.support.programs import Programs
from tests.support.toxiproxy import Toxiproxy

# The tests may share their machine with servers: a slow example is not a finding.
hypothesis.settings.register_profile("dockyard", deadline=None)
hypothesis.settings.load_profile("dockyard")


def pytest_configure(config: pytest.Config) -> None:
    """Name our mark, and let SIGTERM end the session as Ctrl-C does: with all processes ended."""
    config.addinivalue_line("markers", "clients: pulls with real clients (docker, containerd, skopeo, podman, crane)")
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))


@pytest.fixture(scope="session")
def programs() -> Programs:
    """Where the real servers and clients are; one that needs building is built when a test wants it."""
    return Programs()


@pytest.fixture(scope="session")
def registry(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DistributionRegistry]:
    """A real registry: the upstream."""
    registry = DistributionRegistry(programs.need("registry"), tmp_path_factory.mktemp("registry"))
    try:
        registry.start()
        yield registry
    finally:
        registry.close()


@pytest.fixture(scope="session")
def toxiproxy(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toxiproxy]:
    """Toxiproxy, without a way yet."""
    with contextlib.closing(Toxiproxy(programs.need("toxiproxy-server"), tmp_path_factory.mktemp("toxiproxy"))) as it:
        yield it


@pytest.fixture
def start_dockyard(tmp_path: Path) -> Iterator[Callable[..., Dockyard]]:
    """A function that starts a Dockyard (see there for its arguments); all are killed when the test ends."""
    started: list[Dockyard] = []

    def start(upstreams: Sequence[Mapping[str, Any]], **options: Any) -> Dockyard:
        dockyard = Dockyard(tmp_path / f"dockyard-{len(started)}", upstreams, **options)
        started.append(dockyard)
        dockyard.start()
        return dockyard

    yield start
    for dockyard in started:
        dockyard.kill()
        shutil.rmtree(dockyard.storage, ignore_errors=True)  # the log stays

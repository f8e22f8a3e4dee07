"""Fixtures for all packages: a real registry, Dockyard as a process, and the paths of programs.

    def test_something(registry, start_dockyard):
        image = push_index(registry, "library/app", seed="something")
        dockyard = start_dockyard([docker_hub(registry)], workers=4)
        registry.clear_requests()
        ...
        assert [request.path for request in registry.requests() if request.method == "GET"] == [...]

`registry` is one process for the whole session. A test that stops it starts it again (`with registry.stopped():`), and
uses a repository of its own.
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

# The tests may share their machine with servers: a slow example is no failure.
hypothesis.settings.register_profile("dockyard", deadline=None)
hypothesis.settings.load_profile("dockyard")


def pytest_configure(config: pytest.Config) -> None:
    """Register our markers, and let SIGTERM end the session like Ctrl-C, with all processes ended.

    A shell starts jobs in the background with SIGINT ignored, which the programs under test would inherit.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "clients: pulls with real clients (docker, containerd, skopeo, podman, crane)")
    config.addinivalue_line("markers", "long: minutes of load, of random faults or of building; only with -m long")
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect long tests, unless they are selected."""
    if "long" not in config.getoption("-m"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def programs() -> Programs:
    """The paths of real servers and clients; one that needs building is built when it is first needed."""
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
    """A toxiproxy server without proxies."""
    with contextlib.closing(Toxiproxy(programs.need("toxiproxy-server"), tmp_path_factory.mktemp("toxiproxy"))) as it:
        yield it


@pytest.fixture
def start_dockyard(tmp_path: Path) -> Iterator[Callable[..., Dockyard]]:
    """A function that starts a Dockyard (its arguments are those of `Dockyard`); all are killed when the test ends."""
    started: list[Dockyard] = []

    def start(upstreams: Sequence[Mapping[str, Any]], **options: Any) -> Dockyard:
        dockyard = Dockyard(tmp_path / f"dockyard-{len(started)}", upstreams, **options)
        started.append(dockyard)
        dockyard.start()
        return dockyard

    yield start
    for dockyard in started:
        dockyard.kill()
        shutil.rmtree(dockyard.storage, ignore_errors=True)  # the log is kept

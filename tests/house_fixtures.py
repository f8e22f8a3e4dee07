"""An origin and houses in front of it, as fixtures of the cases and of the faults."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.house import House, open_house
from tests.origin import Origin


@pytest.fixture
def origin() -> Iterator[Origin]:
    """Give an origin with one listener."""
    with Origin() as origin:
        yield origin


@pytest.fixture
def make_house(origin: Origin, tmp_path: Path) -> Iterator[Callable[..., House]]:
    """Start a Dockyard of the test's own; what is given goes over the settings of `open_house`."""
    with ExitStack() as houses:

        def start(**settings: Any) -> House:
            directory = tmp_path / f"house-{len(list(tmp_path.glob('house-*')))}"
            houses.callback(shutil.rmtree, directory / "storage", ignore_errors=True)  # gigabytes, some of them
            return houses.enter_context(open_house(origin, directory, **settings))

        yield start

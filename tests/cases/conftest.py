"""What the cases share: a house per module while nothing is wrong, and fresh ones for what spoils them."""

from collections.abc import Iterator

import pytest

from tests.house import House, open_house
from tests.house_fixtures import make_house, origin
from tests.origin import Origin

__all__ = ["house", "make_house", "origin"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Give a house with one worker; its tests use names of their own and leave the upstream well."""
    with Origin() as origin, open_house(origin, tmp_path_factory.mktemp("house")) as house:
        yield house

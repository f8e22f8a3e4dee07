"""The olareg registry as a fixture, for tests of what distribution lacks."""

from collections.abc import Iterator

import pytest

from tests.support.olareg import Olareg
from tests.support.programs import Programs


@pytest.fixture(scope="session")
def olareg(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Olareg]:
    """A real registry that has the referrers API and sha512."""
    olareg = Olareg(programs.need("olareg"), tmp_path_factory.mktemp("olareg"))
    try:
        olareg.start()
        yield olareg
    finally:
        olareg.stop()

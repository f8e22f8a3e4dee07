"""Three Dockyards over one bucket behind one HAProxy: one fleet for all tests of this directory."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bucket.place import Place
from tests.ops.fleet import Fleet
from tests.origin import Origin
from tests.rig.programs import Programs
from tests.stores.conftest import minio
from tests.stores.servers import Server

__all__ = ["minio"]


@pytest.fixture(scope="session")
def ops() -> Path:
    """Return the directory of what operators take."""
    return Path(__file__).parents[2] / "ops"


@pytest.fixture(scope="package")
def fleet(ops: Path, programs: Programs, minio: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Give a fleet, and judge what is in its bucket when it is gone."""
    directory = tmp_path_factory.mktemp("fleet")
    haproxy = programs.need("haproxy")
    with contextlib.closing(Place(minio)) as place, Origin() as origin:
        place.make()
        with contextlib.closing(Fleet(ops, haproxy, directory, origin, place)) as fleet:
            fleet.start()
            yield fleet
        assert place.audit() == []

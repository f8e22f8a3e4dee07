"""L02: as many objects as clients, all cold and at once: each is fetched once, and nobody is turned away."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from tests.bodies import Synthetic
from tests.chaos.bounds import MemoryBound
from tests.chaos.test_load_blobs import MIB, WORKERS, full_house
from tests.client import ask
from tests.house import House
from tests.origin import Origin

FILLS_AT_ONCE = 64 * WORKERS
QUESTIONS_AT_ONCE = 32 * WORKERS
PATIENCE_S = 240.0
CAP_BYTES = 4096 * MIB


@attrs.frozen
class Fetched:
    """What a client saw: when the first byte came, and whether all were right."""

    first_byte_s: float
    is_right: bool


def _fetch(house: House, truth: Synthetic) -> Fetched:
    began_at = time.monotonic()
    with house.download(f"/v2/up.test/app/blobs/{truth.digest}") as download:
        download.socket.settimeout(PATIENCE_S)
        download.head()
        first_byte_s = time.monotonic() - began_at
        is_right = download.status == 200 and download.length == truth.size and download.find_wrong(truth) is None
        return Fetched(first_byte_s, is_right)


def _together(house: House, bodies: Sequence[Synthetic]) -> list[Fetched]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda truth: _fetch(house, truth), bodies))


@pytest.mark.parametrize(
    ("count", "size"),
    [
        pytest.param(200, 50_000, id="200 of 50 kB"),
        pytest.param(1000, 10 * MIB, id="1000 of 10 MiB", marks=[pytest.mark.long, pytest.mark.timeout(580)]),
    ],
)
def test_many_cold_layers(make_house: Callable[..., House], origin: Origin, count: int, size: int) -> None:
    """One GET each, a bounded number at a time, everybody right, memory and disk within their bounds."""
    bodies = [Synthetic(size, first=number * 1000) for number in range(count)]
    for body in bodies:
        origin.add_blob(body)
    house = full_house(make_house, storage={"max_size": "4GiB"})
    with MemoryBound(house) as memory:
        began_at = time.monotonic()
        fetched = _together(house, bodies)
        took_s = time.monotonic() - began_at
    assert all(each.is_right for each in fetched), f"{sum(not each.is_right for each in fetched)} are not right"
    gets = [each.request.reference for each in origin.seen("blob", "GET")]
    assert sorted(gets) == sorted(body.digest for body in bodies)
    at_once = origin.at_once("blob", "GET")
    assert at_once <= FILLS_AT_ONCE
    memory.assert_held()
    kept = sum(path.stat().st_size for path in house.dockyard.storage.glob("cache/blobs/**/*") if path.is_file())
    assert kept <= CAP_BYTES * 1.05
    waits = sorted(each.first_byte_s for each in fetched)
    print(  # noqa: T201  the numbers are what the long run is for
        f"{count} in {took_s:.1f} s, {at_once} at once, first byte: median {waits[count // 2]:.1f} s, last "
        f"{waits[-1]:.1f} s, {memory.peak / MIB:.0f} MiB, {kept / MIB:.0f} MiB kept"
    )


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(300)])])
def test_many_tags(make_house: Callable[..., House], origin: Origin, count: int) -> None:
    """Cold: one HEAD and one GET each. Cached: one HEAD each, and nothing else."""
    images = [origin.add_image("app", f"v{number}", [f"layer {number}".encode()]) for number in range(count)]
    house = full_house(make_house, upstream={"check_timeout": "60s"})
    paths = [f"/v2/up.test/app/manifests/v{number}" for number in range(count)]
    for is_cached in (False, True):
        origin.forget()
        with ThreadPoolExecutor(count) as pool:
            replies = list(pool.map(lambda path: ask(house.address, path, timeout_s=PATIENCE_S), paths))
        assert [reply.body for reply in replies] == [image.body for image in images]
        assert all(reply.header("Warning") is None for reply in replies)
        assert origin.count("manifest", "HEAD") == count
        assert origin.count("manifest", "GET") == (0 if is_cached else count)
        assert origin.at_once("manifest") <= QUESTIONS_AT_ONCE

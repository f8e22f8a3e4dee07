"""L02: as many objects as clients, all at once: each object is fetched once, and no request is rejected."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import mean, median

import attrs
import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.memory import MemoryLimit
from tests.chaos.engine.variant import do_nothing
from tests.chaos.load.loads import KIB, MIB, UNDISTURBED, RecordLoad, note
from tests.chaos.load.test_load_blobs import SLACK_S, WORKERS, full_deployment
from tests.support import faults
from tests.support.bodies import Synthetic
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, set_at_exit, stays
from tests.support.fake_registry import FakeRegistry, Image
from tests.support.http_client import send_request

# One repository gets at most three quarters of the threads of its upstream.
MAX_DOWNLOADS = 64 * WORKERS * 3 // 4
MAX_REQUESTS = 32 * WORKERS * 3 // 4
TIMEOUT_S = 400.0
ALONE = 20  # layers that are fetched one after the other, for comparison
# The fake registry shares its interpreter with a thousand clients: its responses are late.
LONG_TIMEOUT = {"stall_timeout": "300s"}
CAP_BYTES = 4096 * MIB
COUNTS = [200, pytest.param(1000, marks=[pytest.mark.long])]


@attrs.frozen
class Fetched:
    """What a client got: the time of the first byte, and what was wrong; empty if nothing was."""

    first_byte_s: float
    wrong: str


def _fetch(deployment: Deployment, truth: Synthetic, begun: Callable[[], object] = do_nothing) -> Fetched:
    began_at = time.monotonic()
    with deployment.stream(f"/v2/up.test/app/blobs/{truth.digest}") as download:
        download.socket.settimeout(TIMEOUT_S)
        download.head()
        first_byte_s = time.monotonic() - began_at
        begun()
        wrong = f"{download.status}" if (download.status, download.length) != (200, truth.size) else ""
        if not wrong and (at := download.find_mismatch(truth)) is not None:
            wrong = f"wrong from byte {at} on"
        return Fetched(first_byte_s, wrong)


def _assert_right(fetched: Sequence[Fetched]) -> None:
    assert Counter(each.wrong for each in fetched if each.wrong) == Counter()


def _fetch_all(deployment: Deployment, bodies: Sequence[Synthetic]) -> tuple[list[Fetched], float]:
    """Fetch each body by a client of its own, all at once; return what they got, and the seconds."""
    began_at = time.monotonic()
    with ThreadPoolExecutor(len(bodies)) as pool:
        fetched = list(pool.map(lambda truth: _fetch(deployment, truth), bodies))
    _assert_right(fetched)
    return fetched, time.monotonic() - began_at


def _add_bodies(fake_registry: FakeRegistry, count: int, size: int, first: int = 0) -> list[Synthetic]:
    bodies = [Synthetic(size, first=number * 1000) for number in range(first, first + count)]
    for body in bodies:
        fake_registry.add_blob(body)
    return bodies


def _assert_fetched_once(fake_registry: FakeRegistry, bodies: Sequence[Synthetic]) -> None:
    gets = [each.request.reference for each in fake_registry.received("blob", "GET")]
    assert sorted(gets) == sorted(body.digest for body in bodies)
    assert fake_registry.max_concurrent("blob", "GET") <= MAX_DOWNLOADS


def _kept_bytes(deployment: Deployment) -> int:
    return sum(path.stat().st_size for path in deployment.dockyard.storage.glob("cache/blobs/**/*") if path.is_file())


@pytest.mark.parametrize(
    ("count", "size"),
    [
        pytest.param(200, 50 * KIB, id="200 of 50 KiB"),
        pytest.param(1000, 10 * MIB, id="1000 of 10 MiB", marks=[pytest.mark.long]),
    ],
)
def test_many_cold_layers(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    count: int,
    size: int,
) -> None:
    """One GET each, a bounded number at a time, right bytes for every client, memory and disk within their limits."""
    bodies = _add_bodies(fake_registry, count, size)
    with record_load("L02", UNDISTURBED, State.BLOB_COLD) as (record,):
        deployment = full_deployment(make_deployment, storage={"max_size": "4GiB"}, upstream=LONG_TIMEOUT)
        with MemoryLimit(deployment) as memory:
            fetched, took_s = _fetch_all(deployment, bodies)
        waits = sorted(each.first_byte_s for each in fetched)
        at_once, kept = fake_registry.max_concurrent("blob", "GET"), _kept_bytes(deployment)
        note(
            record,
            f"{count:,} x {size // KIB:,} KiB in {took_s:.1f} s, {at_once} GETs at once, first byte: median "
            f"{waits[count // 2]:.1f} s, last {waits[-1]:.1f} s, {kept / MIB:.0f} MiB kept",
            fake_registry,
            memory,
        )
        _assert_fetched_once(fake_registry, bodies)
        memory.assert_held()
        assert kept <= CAP_BYTES * 1.05
        served_s = mean(each.ended_at - each.began_at for each in fake_registry.received("blob", "GET"))
        # On a busy machine no client waits longer than if the layers were fetched one after the other.
        alone = [_fetch(deployment, body).first_byte_s for body in _add_bodies(fake_registry, ALONE, size, first=count)]
        queued_s = max(2 * served_s * count / MAX_DOWNLOADS, median(alone) * count)
        assert is_within(waits[int(count * 0.99)], queued_s, slack_s=SLACK_S)


@pytest.mark.parametrize(
    ("count", "size"),
    [
        pytest.param(200, 50 * KIB, id="200 of 50 KiB"),
        pytest.param(1000, MIB, id="1000 of 1 MiB", marks=[pytest.mark.long]),
    ],
)
def test_many_cached_layers(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    count: int,
    size: int,
) -> None:
    """Right bytes for every client, and no request upstream."""
    bodies = _add_bodies(fake_registry, count, size)
    with record_load("L02", UNDISTURBED, State.BLOB_CACHED) as (record,):
        deployment = full_deployment(make_deployment)
        _fetch_all(deployment, bodies)
        fake_registry.clear_exchanges()
        with MemoryLimit(deployment) as memory:
            _, took_s = _fetch_all(deployment, bodies)
        note(record, f"{count:,} x {size // KIB:,} KiB in {took_s:.1f} s", fake_registry, memory)
        assert fake_registry.count() == 0
        memory.assert_held()


@pytest.mark.parametrize(
    ("count", "size"),
    [
        pytest.param(100, 2 * MIB, id="100 of 2 MiB"),
        pytest.param(1000, 10 * MIB, id="1000 of 10 MiB", marks=[pytest.mark.long, pytest.mark.timeout(800)]),
    ],
)
def test_many_layers_in_download(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    count: int,
    size: int,
) -> None:
    """A second client for each layer while as many as allowed are half fetched and the others queued: one GET each."""
    bodies = _add_bodies(fake_registry, count, size)
    in_download = min(count, MAX_DOWNLOADS)
    with (
        record_load("L02", UNDISTURBED, State.BLOB_DOWNLOAD) as (record,),
        ThreadPoolExecutor(2 * count) as pool,
        set_at_exit(threading.Event()) as resume,
    ):
        deployment = full_deployment(make_deployment, storage={"max_size": "4GiB"}, upstream=LONG_TIMEOUT)
        fake_registry.on("blob", faults.stalled(0.5, resume))
        begun = threading.Semaphore(0)
        with MemoryLimit(deployment) as memory:
            downloads = []
            for _ in ("the first", "the second"):
                downloads += [pool.submit(_fetch, deployment, body, begun.release) for body in bodies]
                for _ in range(in_download):
                    assert begun.acquire(timeout=TIMEOUT_S), "not all downloads have begun"
            resumed_at = time.monotonic()
            resume.set()
            fetched = [download.result() for download in downloads]
            took_s = time.monotonic() - resumed_at
        at_once = fake_registry.max_concurrent("blob", "GET")
        seen = f"2 x {count:,} x {size // KIB:,} KiB in {took_s:.1f} s, {at_once} of them half fetched before"
        note(record, seen, fake_registry, memory)
        _assert_right(fetched)
        _assert_fetched_once(fake_registry, bodies)
        memory.assert_held()
        assert _kept_bytes(deployment) <= CAP_BYTES * 1.05


def _add_images(fake_registry: FakeRegistry, count: int) -> list[Image]:
    return [fake_registry.add_image("app", f"v{number}", [f"layer {number}".encode()]) for number in range(count)]


def _request_all(
    deployment: Deployment,
    fake_registry: FakeRegistry,
    images: Sequence[Image],
    references: Sequence[str],
    *,
    checks_upstream: bool = True,
) -> float:
    """Request each manifest by a client of its own, all at once; all must be right and fresh. Return the seconds.

    With `checks_upstream`, the upstream is silent until it has as many requests as allowed at a time; time starts then.
    """
    paths = [f"/v2/up.test/app/manifests/{reference}" for reference in references]
    with ThreadPoolExecutor(len(paths)) as pool, set_at_exit(threading.Event()) as resume:
        rule = fake_registry.on("manifest", faults.silent(resume))
        began_at = time.monotonic()
        responses = [pool.submit(send_request, deployment.address, path, timeout_s=TIMEOUT_S) for path in paths]
        if checks_upstream:
            fake_registry.wait_for(lambda: fake_registry.count() >= MAX_REQUESTS, f"{MAX_REQUESTS} at once")
            stays(lambda: fake_registry.count() == MAX_REQUESTS, f"{MAX_REQUESTS} at once", 1.0)
            began_at = time.monotonic()
        resume.set()
        bodies = [response.result().body for response in responses]
        took_s = time.monotonic() - began_at
    fake_registry.remove_rules(rule)
    assert bodies == [image.body for image in images]
    assert all(response.result().header("Warning") is None for response in responses)
    return took_s


@pytest.mark.parametrize("count", COUNTS)
def test_many_tags(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, record_load: RecordLoad, count: int
) -> None:
    """Cold: one HEAD and one GET each. Cached: one HEAD each."""
    images = _add_images(fake_registry, count)
    with record_load("L02", UNDISTURBED, State.TAG_COLD, State.TAG_CACHED) as (cold, cached):
        deployment = full_deployment(make_deployment, upstream={"check_timeout": "60s"})
        with MemoryLimit(deployment) as memory:
            for record, expected_gets in ((cold, count), (cached, 0)):
                fake_registry.clear_exchanges()
                took_s = _request_all(deployment, fake_registry, images, [image.tag for image in images])
                heads, gets = fake_registry.count("manifest", "HEAD"), fake_registry.count("manifest", "GET")
                at_once = fake_registry.max_concurrent("manifest")
                seen = f"{count:,} in {took_s:.1f} s, HEADs: {heads}, GETs: {gets}, {at_once} at once"
                note(record, seen, fake_registry, memory)
                assert (heads, gets) == (count, expected_gets)
                assert at_once <= MAX_REQUESTS
        memory.assert_held()


@pytest.mark.parametrize("count", COUNTS)
def test_many_manifests_by_digest(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, record_load: RecordLoad, count: int
) -> None:
    """Cold: one GET each. Cached: no request."""
    images = _add_images(fake_registry, count)
    digests = [image.digest for image in images]
    with record_load("L02", UNDISTURBED, State.MANIFEST) as (record,):
        deployment = full_deployment(make_deployment, upstream={"check_timeout": "60s"})
        with MemoryLimit(deployment) as memory:
            cold_s = _request_all(deployment, fake_registry, images, digests)
            at_once = fake_registry.max_concurrent("manifest")
            assert sorted(each.request.reference for each in fake_registry.received("manifest", "GET")) == sorted(
                digests
            )
            assert fake_registry.count() == count
            assert at_once <= MAX_REQUESTS
            fake_registry.clear_exchanges()
            cached_s = _request_all(deployment, fake_registry, images, digests, checks_upstream=False)
        seen = f"{count:,} not cached in {cold_s:.1f} s, {at_once} GETs at once; cached in {cached_s:.1f} s"
        note(record, f"{seen}, requests upstream: {fake_registry.count()}", fake_registry, memory)
        assert fake_registry.count() == 0
        memory.assert_held()

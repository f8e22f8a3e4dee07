"""Upstream outages: one check is delayed, the rest is answered at once, and the recovery is noticed."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import pytest

from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.deployment import CHECK_TIMEOUT_S, Deployment, eventually, parse_cache_status
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import Response

FAST_S = 0.05
RECOVERY_S = 5.0
PROBE_EVERY_S = 3.0
CACHED = "/v2/up.test/app/manifests/v1"


def _is_stale(response: Response) -> bool:
    return response.status == 200 and (response.header("Warning") or "").startswith("299 ")


def _go_away(fake_registry: FakeRegistry, how: str) -> None:
    fake_registry.listener.drop_connections()
    if how == "refused":
        fake_registry.listener.close()
    else:
        fake_registry.on(None, faults.silent())


def _return(fake_registry: FakeRegistry, how: str) -> None:
    fake_registry.remove_rules()
    if how == "refused":
        fake_registry.listener.open()


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("how", ["refused", "silent"])
def test_an_outage_costs_one_check(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, how: str, workers: int
) -> None:
    """The first stale tag takes `check_timeout` plus half a second at most, later ones no upstream request."""
    fake_registry.add_image("app", "v1")
    deployment = make_deployment(workers=workers)
    fresh = [deployment.get(CACHED) for _ in range(5 * workers)]
    assert all(response.header("Warning") is None for response in fresh)
    _go_away(fake_registry, how)
    first = deployment.get(CACHED)
    assert _is_stale(first)
    assert is_within(first.took_s, CHECK_TIMEOUT_S + 0.5)
    began, count_before = time.monotonic(), fake_registry.count()
    later = [deployment.get(CACHED) for _ in range(40)]
    probes = 1 + (time.monotonic() - began) // PROBE_EVERY_S
    assert fake_registry.count() - count_before <= probes
    assert all(_is_stale(response) for response in later)
    assert is_within(max(response.took_s for response in later), FAST_S)
    assert parse_cache_status(later[-1])["hit"] is True
    unknown = deployment.get("/v2/up.test/app/manifests/unknown")
    assert unknown.status in (503, 504)
    assert is_within(unknown.took_s, FAST_S)
    assert int(unknown.header("Retry-After") or 0) >= 1
    _return(fake_registry, how)
    eventually(lambda: deployment.get(CACHED).header("Warning") is None, "fresh again", RECOVERY_S)
    fresh_again = [deployment.get(CACHED) for _ in range(5 * workers)]
    assert all(response.header("Warning") is None for response in fresh_again)
    stale_s, *usual_s = (median(response.took_s for response in each_of) for each_of in (later, fresh, fresh_again))
    assert is_within(stale_s, 0, slack_s=FAST_S, control_s=max(usual_s))


def test_many_tags_at_once_of_a_silent_upstream(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Forty tags at once while the upstream does not respond: all are stale after one check, not after forty."""
    tags = [f"v{number}" for number in range(40)]
    for tag in tags:
        fake_registry.add_image("app", tag)
    paths = [f"/v2/up.test/app/manifests/{tag}" for tag in tags]
    deployment = make_deployment(workers=2)
    assert {response.status for response in deployment.get_concurrently(paths)} == {200}
    _go_away(fake_registry, "silent")
    responses = deployment.get_concurrently(paths)
    assert all(_is_stale(response) for response in responses)
    assert is_within(max(response.took_s for response in responses), CHECK_TIMEOUT_S + 0.5)


@pytest.fixture
def memory_directory() -> Iterator[str]:
    """A directory in memory: no request waits for the disk, which other tests use too."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield directory


@pytest.mark.parametrize("how", ["slow", "500"])
def test_a_name_that_fails_does_not_make_others_stale(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, memory_directory: str, how: str
) -> None:
    """One client asks for bad names all the time: cached tags stay fresh, and other uncached ones are fetched."""
    fake_registry.add_image("app", "v1")
    deployment = make_deployment(storage={"directory": memory_directory})
    assert deployment.get(CACHED).status == 200
    change = faults.silent() if how == "slow" else faults.error_response(500)
    fake_registry.on("manifest", change, when=lambda request: request.repo.startswith("bad"))
    with ThreadPoolExecutor(8) as pool:
        bad = [pool.submit(deployment.get, f"/v2/up.test/bad{number % 4}/manifests/v1") for number in range(24)]
        number = 0
        while not all(each.done() for each in bad) or number < 10:
            number += 1
            fake_registry.add_image(f"new{number}", "v1")
            for path in (CACHED, f"/v2/up.test/new{number}/manifests/v1"):
                response = deployment.get(path)
                assert (response.status, response.header("Warning")) == (200, None)
                assert is_within(response.took_s, 0)
            if number > 10:
                time.sleep(0.1)  # the slow ones take seconds
        assert {each.result().status for each in bad} <= {503, 504}


@pytest.mark.parametrize("kind", ["tag", "manifest", "blob", "HEAD of a blob"])
def test_what_is_not_cached_is_fetched_after_its_repository_hung(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, kind: str
) -> None:
    """Nobody has asked since then: the first request notices that the repository is well again."""
    fake_registry.add_image("app", "v1")
    image = fake_registry.add_image("app", "v2")
    deployment = make_deployment(workers=1)
    assert deployment.get(CACHED).status == 200
    hangs = fake_registry.on("manifest", faults.silent(), repo="app")
    assert _is_stale(deployment.get(CACHED))
    fake_registry.remove_rules(hangs)
    time.sleep(PROBE_EVERY_S)  # until a repository that fails may be asked again
    method, path = {
        "tag": ("GET", "manifests/v2"),
        "manifest": ("GET", f"manifests/{image.digest}"),
        "blob": ("GET", f"blobs/{image.layers[0]}"),
        "HEAD of a blob": ("HEAD", f"blobs/{image.layers[0]}"),
    }[kind]
    assert deployment.request(method, f"/v2/up.test/app/{path}").status == 200


def test_an_image_that_is_imported_when_it_is_asked_for_is_waited_for(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Nobody has it, so nothing is gained by giving up after `check_timeout`."""
    image = fake_registry.add_image("imported", "v1")
    is_imported = threading.Event()
    fake_registry.on("manifest", faults.silent(is_imported), method="HEAD")
    deployment = make_deployment()
    timer = threading.Timer(CHECK_TIMEOUT_S + 2, is_imported.set)
    timer.start()
    response = deployment.get("/v2/up.test/imported/manifests/v1")
    timer.join()
    assert (response.status, response.body) == (200, image.body)
    assert response.took_s > CHECK_TIMEOUT_S


def test_repeated_errors_open_the_circuit_breaker(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """After five 503 in a row no more requests are sent; the breaker closes again when the upstream recovers."""
    fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert deployment.get(CACHED).status == 200
    fake_registry.on(None, faults.error_response(503, "UNAVAILABLE"))
    for _ in range(10):
        assert _is_stale(deployment.get(CACHED))
    count_before = fake_registry.count()
    began = time.monotonic()
    for _ in range(10):
        assert _is_stale(deployment.get(CACHED))
    assert fake_registry.count() - count_before <= 1 + (time.monotonic() - began) // PROBE_EVERY_S
    fake_registry.remove_rules()
    eventually(lambda: deployment.get(CACHED).header("Warning") is None, "fresh again", RECOVERY_S)


def test_an_outage_of_one_upstream_does_not_affect_others(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Each upstream has its own circuit breaker: the other upstream is asked as usual."""
    with FakeRegistry() as other:
        fake_registry.add_image("app", "v1")
        other.add_image("app", "v1")
        deployment = make_deployment(
            upstreams=[
                {"prefix": "up.test", "registry": fake_registry.url, "auth": {"type": "anonymous"}},
                {"prefix": "other.test", "registry": other.url, "auth": {"type": "anonymous"}},
            ]
        )
        assert deployment.get(CACHED).status == 200
        _go_away(fake_registry, "refused")
        assert _is_stale(deployment.get(CACHED))
        for _ in range(3):
            response = deployment.get("/v2/other.test/app/manifests/v1")
            assert (response.status, response.header("Warning")) == (200, None)


def test_a_rate_limit_is_respected_until_retry_after(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """429 with `Retry-After: 3`: one upstream request, stale responses until the time is over, then a new request."""
    fake_registry.add_image("app", "v1")
    deployment = make_deployment(workers=2)
    assert deployment.get(CACHED).status == 200
    rule = fake_registry.on(None, faults.error_response(429, "TOOMANYREQUESTS", "3"))
    count_before, limited_at = fake_registry.count(), time.monotonic()
    for _ in range(20):
        assert _is_stale(deployment.get(CACHED))
    unknown = deployment.get("/v2/up.test/app/manifests/unknown")
    assert (unknown.status, unknown.error) == (429, "TOOMANYREQUESTS")
    assert 1 <= int(unknown.header("Retry-After") or 0) <= 3
    if time.monotonic() - limited_at < 2.5:
        assert fake_registry.count() - count_before == 1
    fake_registry.remove_rules(rule)
    eventually(lambda: deployment.get(CACHED).header("Warning") is None, "fresh again", 3 + RECOVERY_S)
    assert time.monotonic() - limited_at > 2


def test_an_outage_is_never_404(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """Never 404 while the upstream is down: unknown tags, digests and blobs are 503 with Retry-After."""
    deployment = make_deployment()
    _go_away(fake_registry, "refused")
    for path in ("manifests/v1", f"manifests/sha256:{'5' * 64}", f"blobs/sha256:{'6' * 64}"):
        response = deployment.get(f"/v2/up.test/app/{path}")
        assert (response.status, response.error) == (503, "UNAVAILABLE")
        assert int(response.header("Retry-After") or 0) >= 1

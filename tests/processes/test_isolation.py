"""An upstream that hangs, and one repository of an upstream that hangs, do not hold up the others."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.busy_machine import is_within
from tests.support.deployment import CHECK_TIMEOUT_S, Deployment, set_at_exit, upstream
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import Response

HANGING_REQUESTS = 200
HANGING_DOWNLOADS = 70
BIG_BYTES = 2 * 1024 * 1024


@pytest.fixture
def is_over() -> Iterator[threading.Event]:
    """What hangs ends when this is set."""
    with set_at_exit(threading.Event()) as event:
        yield event


@contextmanager
def in_background(get: Callable[[str], Response], paths: Sequence[str], is_over: threading.Event) -> Iterator[None]:
    """Send these requests at once and let them wait; they may get any response."""
    with ThreadPoolExecutor(len(paths)) as pool, set_at_exit(is_over):
        for path in paths:
            pool.submit(get, path)
        yield


def test_requests_that_hang_at_one_upstream_do_not_delay_another(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, is_over: threading.Event
) -> None:
    """With 200 tags and 70 layers hanging at one: those of another are served as if it was idle."""
    with FakeRegistry() as other:
        image = other.add_image("app", "v1", [os.urandom(BIG_BYTES), b"cached"])
        deployment = make_deployment(
            upstreams=[upstream("slow.test", fake_registry.url), upstream("other.test", other.url)]
        )
        assert deployment.get("/v2/other.test/app/manifests/v1").status == 200
        assert deployment.get(f"/v2/other.test/app/blobs/{image.layers[1]}").status == 200
        layers = [fake_registry.add_blob(Bytes(os.urandom(BIG_BYTES))) for _ in range(HANGING_DOWNLOADS)]
        fake_registry.on("manifest", faults.silent(is_over))
        fake_registry.on("blob", faults.stalled(1000, is_over), method="GET")
        paths = [f"/v2/slow.test/app-{number % 9}/manifests/v{number}" for number in range(HANGING_REQUESTS)]
        paths += [f"/v2/slow.test/app-{number % 9}/blobs/{layer}" for number, layer in enumerate(layers)]
        with in_background(deployment.get, paths, is_over):
            fake_registry.wait_for(lambda: fake_registry.count("manifest") >= 32, "all threads for checks hang")
            fake_registry.wait_for(lambda: fake_registry.count("blob") >= 60, "the threads for downloads hang")
            other.add_image("new", "v1")
            cold = [f"blobs/{image.layers[0]}", f"blobs/{image.config}", f"blobs/{image.layers[1]}", "manifests/v1"]
            for path in cold:
                response = deployment.get(f"/v2/other.test/app/{path}")
                assert (response.status, response.header("Warning")) == (200, None)
                assert is_within(response.took_s, 0), path
            response = deployment.get("/v2/other.test/new/manifests/v1")
            assert response.status == 200
            assert is_within(response.took_s, 0)
            assert is_within(deployment.get("/v2/other.test/app/tags/list").took_s, 0)


def test_waiting_for_a_thread_counts_within_the_check_timeout(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, is_over: threading.Event
) -> None:
    """Every thread of the upstream hangs: a cached tag of it is served stale when its own time is over."""
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert deployment.get("/v2/up.test/app/manifests/v1").status == 200
    fake_registry.on("manifest", faults.silent(is_over))
    paths = [f"/v2/up.test/app-{number % 9}/manifests/v{number}" for number in range(HANGING_REQUESTS)]
    with in_background(deployment.get, paths, is_over):
        fake_registry.wait_for(lambda: fake_registry.count("manifest") >= 33, "all threads hang")
        response = deployment.get("/v2/up.test/app/manifests/v1")
        assert (response.status, response.body) == (200, image.body)
        assert (response.header("Warning") or "").startswith("299 ")
        assert is_within(response.took_s, CHECK_TIMEOUT_S)


def test_a_repository_that_hangs_does_not_delay_others_of_its_upstream(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, is_over: threading.Event
) -> None:
    """With 200 tags and 70 layers hanging in one repository, another one of the same upstream is served."""
    with ExitStack() as stack:
        image = fake_registry.add_image("app", "v1", [os.urandom(BIG_BYTES)])
        deployment = make_deployment()
        layers = [fake_registry.add_blob(Bytes(os.urandom(BIG_BYTES))) for _ in range(HANGING_DOWNLOADS)]
        fake_registry.on("manifest", faults.silent(is_over), repo="slow")
        fake_registry.on("blob", faults.stalled(1000, is_over), repo="slow", method="GET")
        paths = [f"/v2/up.test/slow/manifests/v{number}" for number in range(HANGING_REQUESTS)]
        paths += [f"/v2/up.test/slow/blobs/{layer}" for layer in layers]
        stack.enter_context(in_background(deployment.get, paths, is_over))
        fake_registry.wait_for(lambda: fake_registry.count("manifest") >= 24, "the threads for checks hang")
        fake_registry.wait_for(lambda: fake_registry.count("blob") >= 48, "the threads for downloads hang")
        for path in ("manifests/v1", f"blobs/{image.layers[0]}"):
            response = deployment.get(f"/v2/up.test/app/{path}")
            assert (response.status, response.header("Warning")) == (200, None)
            assert is_within(response.took_s, 0), path

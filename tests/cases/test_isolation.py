"""An error about one name, scope or client is about that one: the others of the registry are served."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.cases.registries import ScopedTokens, bearer, has_scope, pull_scope, scopes, token_for
from tests.support import faults
from tests.support.busy_machine import is_within
from tests.support.deployment import Deployment, set_at_exit, upstream
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import Response

NAMES = [f"org/app{number}" for number in range(6)]


@pytest.fixture
def is_over() -> Iterator[threading.Event]:
    """What hangs ends when this is set."""
    with set_at_exit(threading.Event()) as event:
        yield event


def get(deployment: Deployment, repo: str, prefix: str = "up.test") -> Response:
    """Pull the tag v1."""
    return deployment.get(f"/v2/{prefix}/{repo}/manifests/v1")


def assert_fresh(deployment: Deployment, repo: str, prefix: str = "up.test") -> None:
    """The tag is served, and not as a stale copy."""
    response = get(deployment, repo, prefix)
    assert (response.status, response.header("Warning")) == (200, None), response


@pytest.mark.parametrize("status", [400, 404, 405, 410, 422])
def test_a_scope_that_the_token_service_refuses_concerns_its_repository_only(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, status: int
) -> None:
    """Cached and uncached tags of other repositories are fresh, also while the bad name is asked for again."""
    for name in (*NAMES, "org/bad"):
        fake_registry.add_image(name, "v1")
    ScopedTokens(
        fake_registry,
        grant=lambda request: status if pull_scope("org/bad") in scopes(request) else token_for(request),
        accepts=lambda request, authorization: has_scope(authorization, pull_scope(request.repo)),
        challenge=lambda request: bearer(f"{fake_registry.url}/token", pull_scope(request.repo)),
    )
    deployment = make_deployment()
    assert_fresh(deployment, NAMES[0])
    for name in NAMES[1:]:
        assert get(deployment, "org/bad").status in {404, 502}
        assert_fresh(deployment, name)
        assert_fresh(deployment, NAMES[0])
    assert all(fake_registry.count("manifest", repo=name) for name in NAMES)


@pytest.mark.parametrize("refusal", [401, 403, 404, None])
def test_each_repository_has_its_own_token_service(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, refusal: int | None
) -> None:
    """One host, several registries behind: each realm refuses what is not its own, or gives a useless token."""
    for name in ("one/app", "two/app", "pub/app"):
        fake_registry.add_image(name, "v1")

    def is_own(request_path: str, repo_scopes: list[str]) -> bool:
        return f"repository:{request_path.rpartition('/')[2]}/app:pull" in repo_scopes

    ScopedTokens(
        fake_registry,
        grant=lambda request: (
            refusal if refusal and not is_own(request.path, scopes(request)) else f"T-{request.path.rpartition('/')[2]}"
        ),
        accepts=lambda request, authorization: (
            request.repo.startswith("pub/") or authorization == f"Bearer T-{request.repo.partition('/')[0]}"
        ),
        challenge=lambda request: bearer(
            f"{fake_registry.url}/token/{request.repo.partition('/')[0]}", pull_scope(request.repo)
        ),
    )
    deployment = make_deployment()
    for _ in range(4):
        for name in ("one/app", "two/app", "pub/app"):
            assert_fresh(deployment, name)


@pytest.mark.parametrize("how", ["500", "slow"])
def test_a_name_with_which_the_registry_fails_fails_alone(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, is_over: threading.Event, how: str
) -> None:
    """Also several times in a row, with no other request between: what comes then is asked and served."""
    for name in (*NAMES, "org/bad"):
        fake_registry.add_image(name, "v1")
    change = {
        "500": faults.error_response(500, "UNKNOWN"),
        "slow": faults.silent(is_over),
    }[how]
    deployment = make_deployment()
    assert_fresh(deployment, NAMES[0])
    fake_registry.on("manifest", change, repo="org/bad")
    with ThreadPoolExecutor(8) as pool:
        bad = [pool.submit(get, deployment, "org/bad") for _ in range(8)]
        fake_registry.wait_for(lambda: fake_registry.count("manifest", repo="org/bad") >= 1, "the bad name is asked")
        for name in NAMES[1:3]:
            assert_fresh(deployment, name)
            assert_fresh(deployment, NAMES[0])
        if how != "slow":
            assert {each.result().status for each in bad} <= {502, 503, 504}
            for _ in range(6):
                get(deployment, "org/bad")
        for name in NAMES[3:]:
            assert_fresh(deployment, name)
            assert_fresh(deployment, NAMES[0])
        is_over.set()
    assert all(fake_registry.count("manifest", repo=name) for name in NAMES)


def test_a_name_that_is_imported_when_it_is_first_asked_for_is_waited_for(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, is_over: threading.Event
) -> None:
    """Nothing is gained by giving up after check_timeout when there is no copy; the others are served after it."""
    images = [fake_registry.add_image(name, "v1") for name in ("org/slow", "org/two")]
    fake_registry.on("manifest", faults.silent(is_over), repo="org/slow", method="HEAD")
    deployment = make_deployment(upstream={"check_timeout": "1s"})
    threading.Timer(2.5, is_over.set).start()
    response = get(deployment, "org/slow")
    assert (response.status, response.body == images[0].body) == (200, True)
    assert_fresh(deployment, "org/two")


def test_a_slow_upstream_does_not_hold_up_another(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, is_over: threading.Event
) -> None:
    """One worker; 200 tags and 70 layers of the first hang, those of the second are served at once."""
    content = os.urandom(1024 * 1024)
    with FakeRegistry() as other, ThreadPoolExecutor(270) as pool, set_at_exit(is_over):
        image = other.add_image("org/app", "v1", [content])
        upstreams = [upstream("slow.test", fake_registry.url), upstream("other.test", other.url)]
        deployment = make_deployment(upstreams=upstreams)
        assert_fresh(deployment, "org/app", "other.test")
        layers = [fake_registry.add_blob(os.urandom(1024 * 1024)) for _ in range(70)]
        fake_registry.on("manifest", faults.silent(is_over))
        fake_registry.on("blob", faults.stalled(1000, is_over), method="GET")
        for number in range(200):
            pool.submit(deployment.get, f"/v2/slow.test/org/app{number}/manifests/v1")
        for layer in layers:
            pool.submit(deployment.get, f"/v2/slow.test/org/app/blobs/{layer}")
        fake_registry.wait_for(lambda: fake_registry.count("blob") >= 8, "downloads hang")
        fake_registry.wait_for(lambda: fake_registry.count("manifest") >= 8, "checks hang")
        took_s = []
        for _ in range(3):  # the first pull competes with those of this process that are still being sent
            began_at = time.monotonic()
            assert_fresh(deployment, "org/app", "other.test")
            response = deployment.get(f"/v2/other.test/org/app/blobs/{image.layers[0]}")
            assert (response.status, response.body == content) == (200, True)
            took_s.append(time.monotonic() - began_at)
        assert is_within(min(took_s), 1)

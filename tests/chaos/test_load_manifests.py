"""L01: a thousand clients on one manifest, by its tag and by its digest, cold and cached.

The smaller number runs every day, the full one with `-m long`.
"""

import threading
import time
from collections.abc import Callable

import pytest

from tests.chaos.bounds import MemoryBound
from tests.chaos.cells import State
from tests.chaos.loads import TOKEN, UNDISTURBED, KeepLoad, note
from tests.chaos.test_load_blobs import full_deployment
from tests.support import misbehaviour as bad
from tests.support.bodies import Bytes
from tests.support.deployment import Deployment, opened_at_exit, stays
from tests.support.fake_registry import FakeRegistry
from tests.support.gatekeeper import TokenService

TAG = "/v2/up.test/app/manifests/latest"
PATIENT = {"check_timeout": "60s"}  # the upstream is silent until the whole herd is there
CLIENTS = [200, pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(300)])]


def _herd(
    deployment: Deployment, origin: FakeRegistry, path: str, truth: Bytes, clients: int, *, asks: bool = True
) -> float:
    """All ask while the upstream is silent, and one of them `asks` it; how long they waited after it spoke."""
    origin.forget()
    with opened_at_exit(threading.Event()) as go_on:
        rule = origin.on("manifest", bad.silent(go_on))
        with deployment.crowd(path, truth, clients) as crowd:
            if asks:
                origin.wait_for(lambda: origin.count("manifest") > 0, "somebody asks")
                stays(lambda: origin.count("manifest") == 1, f"one asks, {clients} wait", 1.0)
            spoke_at = time.monotonic()
            go_on.set()
            crowd.run()
            took_s = time.monotonic() - spoke_at
            assert all(member.is_right for member in crowd.members), crowd.summary()
        origin.mend(rule)
    return took_s


def _describe(clients: int, took_s: float, origin: FakeRegistry) -> str:
    heads, gets = origin.count("manifest", "HEAD"), origin.count("manifest", "GET")
    return f"{clients:,} clients within {took_s:.1f} s of the upstream's answer, HEADs: {heads}, GETs: {gets}"


@pytest.mark.parametrize("clients", CLIENTS)
def test_a_herd_on_one_tag(
    make_deployment: Callable[..., Deployment], origin: FakeRegistry, keep_load: KeepLoad, clients: int
) -> None:
    """One HEAD for all who ask while it runs, cold or cached; cold, one GET as well."""
    truth = Bytes(origin.add_image("app", "latest").body)
    with keep_load("L01", UNDISTURBED, State.TAG_COLD, State.TAG_CACHED) as (cold, cached):
        deployment = full_deployment(make_deployment, upstream=PATIENT)
        with MemoryBound(deployment) as memory:
            for record, gets in ((cold, 1), (cached, 0)):
                took_s = _herd(deployment, origin, TAG, truth, clients)
                note(record, _describe(clients, took_s, origin), origin, memory)
                assert origin.count("manifest", "HEAD") == 1
                assert origin.count("manifest", "GET") == gets
        memory.assert_held()


@pytest.mark.parametrize("clients", CLIENTS)
def test_a_herd_on_one_tag_that_needs_a_token(
    make_deployment: Callable[..., Deployment], origin: FakeRegistry, keep_load: KeepLoad, clients: int
) -> None:
    """One token for all, which the HEAD and the GET share."""
    truth = Bytes(origin.add_image("app", "latest").body)
    tokens = TokenService(origin)
    with keep_load("L01", TOKEN, State.TAG_COLD) as (record,):
        deployment = full_deployment(make_deployment, upstream=PATIENT)
        with MemoryBound(deployment) as memory:
            took_s = _herd(deployment, origin, TAG, truth, clients)
        note(record, f"{_describe(clients, took_s, origin)}, tokens: {len(tokens.requests())}", origin, memory)
        assert len(tokens.requests()) == 1
        let_in = [each.request.method for each in origin.seen("manifest") if each.status == 200]
        assert let_in == ["HEAD", "GET"]
        assert origin.count("manifest") == 3  # the first was told where to get a token


@pytest.mark.parametrize("clients", CLIENTS)
def test_a_herd_on_one_manifest_by_digest(
    make_deployment: Callable[..., Deployment], origin: FakeRegistry, keep_load: KeepLoad, clients: int
) -> None:
    """One GET for all, and none again."""
    image = origin.add_image("app", "latest")
    path, truth = f"/v2/up.test/app/manifests/{image.digest}", Bytes(image.body)
    with keep_load("L01", UNDISTURBED, State.MANIFEST) as (record,):
        deployment = full_deployment(make_deployment, upstream=PATIENT)
        with MemoryBound(deployment) as memory:
            cold_s = _herd(deployment, origin, path, truth, clients)
            assert origin.count("manifest", "GET") == 1
            assert origin.count() == 1
            seen = f"not cached: {_describe(clients, cold_s, origin)}"
            cached_s = _herd(deployment, origin, path, truth, clients, asks=False)
        note(record, f"{seen}; cached: within {cached_s:.1f} s, requests upstream: {origin.count()}", origin, memory)
        assert origin.count() == 0
        memory.assert_held()

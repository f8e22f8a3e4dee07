"""L01: a thousand clients of one manifest, by tag and by digest, cold and cached.

The small size runs by default, the full one with `-m long`.
"""

import threading
import time
from collections.abc import Callable

import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.memory import MemoryLimit
from tests.chaos.load.loads import TOKEN, UNDISTURBED, RecordLoad, note
from tests.chaos.load.test_load_blobs import full_deployment
from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.deployment import Deployment, set_at_exit, stays
from tests.support.fake_auth import FakeTokenService
from tests.support.fake_registry import FakeRegistry

TAG = "/v2/up.test/app/manifests/latest"
LONG_TIMEOUT = {"check_timeout": "60s"}  # the upstream sends nothing until all clients have sent their requests
CLIENTS = [200, pytest.param(1000, marks=[pytest.mark.long])]


def _request_all(
    deployment: Deployment,
    fake_registry: FakeRegistry,
    path: str,
    truth: Bytes,
    clients: int,
    *,
    checks_upstream: bool = True,
) -> float:
    """Send all requests while the upstream is silent; return how long the responses took after its response.

    With `checks_upstream`, exactly one request must reach the upstream meanwhile.
    """
    fake_registry.clear_exchanges()
    with set_at_exit(threading.Event()) as respond:
        rule = fake_registry.on("manifest", faults.silent(respond))
        with deployment.crowd(path, truth, clients) as crowd:
            if checks_upstream:
                fake_registry.wait_for(lambda: fake_registry.count("manifest") > 0, "a request upstream")
                stays(
                    lambda: fake_registry.count("manifest") == 1, f"one request upstream, {clients} clients wait", 1.0
                )
            responded_at = time.monotonic()
            respond.set()
            crowd.run()
            took_s = time.monotonic() - responded_at
            assert all(member.is_right for member in crowd.members), crowd.summary()
        fake_registry.remove_rules(rule)
    return took_s


def _describe(clients: int, took_s: float, fake_registry: FakeRegistry) -> str:
    heads, gets = fake_registry.count("manifest", "HEAD"), fake_registry.count("manifest", "GET")
    return f"{clients:,} clients within {took_s:.1f} s of the response of the upstream, HEADs: {heads}, GETs: {gets}"


@pytest.mark.parametrize("clients", CLIENTS)
def test_many_clients_of_one_tag(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, record_load: RecordLoad, clients: int
) -> None:
    """One HEAD for all requests while it runs, cold or cached; cold, one GET as well."""
    truth = Bytes(fake_registry.add_image("app", "latest").body)
    with record_load("L01", UNDISTURBED, State.TAG_COLD, State.TAG_CACHED) as (cold, cached):
        deployment = full_deployment(make_deployment, upstream=LONG_TIMEOUT)
        with MemoryLimit(deployment) as memory:
            for record, gets in ((cold, 1), (cached, 0)):
                took_s = _request_all(deployment, fake_registry, TAG, truth, clients)
                note(record, _describe(clients, took_s, fake_registry), fake_registry, memory)
                assert fake_registry.count("manifest", "HEAD") == 1
                assert fake_registry.count("manifest", "GET") == gets
        memory.assert_held()


@pytest.mark.parametrize("clients", CLIENTS)
def test_many_clients_of_one_tag_that_needs_a_token(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, record_load: RecordLoad, clients: int
) -> None:
    """One token for all, which the HEAD and the GET share."""
    truth = Bytes(fake_registry.add_image("app", "latest").body)
    tokens = FakeTokenService(fake_registry)
    with record_load("L01", TOKEN, State.TAG_COLD) as (record,):
        deployment = full_deployment(make_deployment, upstream=LONG_TIMEOUT)
        with MemoryLimit(deployment) as memory:
            took_s = _request_all(deployment, fake_registry, TAG, truth, clients)
        note(
            record,
            f"{_describe(clients, took_s, fake_registry)}, tokens: {len(tokens.requests())}",
            fake_registry,
            memory,
        )
        assert len(tokens.requests()) == 1
        accepted = [each.request.method for each in fake_registry.received("manifest") if each.status == 200]
        assert accepted == ["HEAD", "GET"]
        assert fake_registry.count("manifest") == 3  # the first request got the challenge


@pytest.mark.parametrize("clients", CLIENTS)
def test_many_clients_of_one_manifest_by_digest(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, record_load: RecordLoad, clients: int
) -> None:
    """One GET for all requests, and no other later."""
    image = fake_registry.add_image("app", "latest")
    path, truth = f"/v2/up.test/app/manifests/{image.digest}", Bytes(image.body)
    with record_load("L01", UNDISTURBED, State.MANIFEST) as (record,):
        deployment = full_deployment(make_deployment, upstream=LONG_TIMEOUT)
        with MemoryLimit(deployment) as memory:
            cold_s = _request_all(deployment, fake_registry, path, truth, clients)
            assert fake_registry.count("manifest", "GET") == 1
            assert fake_registry.count() == 1
            seen = f"not cached: {_describe(clients, cold_s, fake_registry)}"
            cached_s = _request_all(deployment, fake_registry, path, truth, clients, checks_upstream=False)
        note(
            record,
            f"{seen}; cached: within {cached_s:.1f} s, requests upstream: {fake_registry.count()}",
            fake_registry,
            memory,
        )
        assert fake_registry.count() == 0
        memory.assert_held()

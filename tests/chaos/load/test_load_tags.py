"""L03: many requests for one tag: steady, moved, and when the upstream fails; and for its manifest by digest."""

import time
from collections.abc import Callable
from math import ceil
from statistics import median

import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.limits import FAST_S, PROBE_EVERY_S
from tests.chaos.engine.memory import MemoryLimit
from tests.chaos.load.constant_rate_client import ConstantRateClient, TimedResponse
from tests.chaos.load.loads import FAILS, MOVED, STEADY, RecordLoad, note
from tests.chaos.load.test_load_blobs import full_deployment
from tests.chaos.random_faults.tag_history import Move, Outage, find_violations
from tests.support import faults
from tests.support.busy_machine import SLACK_S, busy_slack_s, is_within
from tests.support.deployment import CHECK_TIMEOUT_S, Deployment
from tests.support.fake_registry import FakeRegistry

CHECK_INTERVAL_S = 1
DELAY_S = CHECK_TIMEOUT_S + CHECK_INTERVAL_S
CONNECTIONS = 100
PATH = "/v2/up.test/app/manifests/latest"
ATTEMPTS = 2  # a request upstream whose connection breaks is sent once more
EVENTS = [STEADY, MOVED, FAILS]
RATES = [
    pytest.param(150, 6, id="150 per second"),
    pytest.param(1000, 60, id="1000 per second", marks=[pytest.mark.long]),
]


def _describe(rate_client: ConstantRateClient, rate_per_s: int, seconds: int) -> str:
    took_s = median(each.took_s for each in rate_client.responses)
    return (
        f"{rate_per_s:,} per second for {seconds} s: {len(rate_client.responses):,} responses, "
        f"median {took_s * 1000:.1f} ms, "
        f"{rate_client.unsent} not sent for want of a connection"
    )


def _cause(fake_registry: FakeRegistry, event: str) -> tuple[list[Move], list[Outage]]:
    """Move the tag, or let the upstream fail, as the variant says."""
    caused_at = time.monotonic()
    if event == MOVED:
        return [Move(fake_registry.add_image("app", "latest", [b"two"]).digest, caused_at, time.monotonic())], []
    if event == FAILS:
        fake_registry.on(None, faults.disconnected("rst"))
        return [], [Outage(caused_at, float("inf"), float("inf"))]
    return [], []


def _assert_all_are_stale(responses: list[TimedResponse], since: float) -> list[TimedResponse]:
    """Check that responses are stale once that can be expected; return these."""
    late = [each for each in responses if each.began_at > since + CHECK_INTERVAL_S + SLACK_S]
    assert late
    assert all(each.is_stale for each in late)
    return late


def _assert_fast(responses: list[TimedResponse], *controls: list[TimedResponse]) -> None:
    """Check that responses are fast; on a busy machine, about as fast as one of the controls."""
    took_s, *usual_s = (median(each.took_s for each in each_of) for each_of in (responses, *controls))
    assert is_within(took_s, 0, slack_s=FAST_S, control_s=max(usual_s))


def _run_again(deployment: Deployment, fake_registry: FakeRegistry, path: str, rate_per_s: int) -> list[TimedResponse]:
    """The same requests once more, with an upstream that is well: the load of the machine varies."""
    fake_registry.remove_rules()
    with ConstantRateClient(deployment.address, path, CONNECTIONS) as rate_client:
        return rate_client.run(rate_per_s, 1.0)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", [State.TAG_CACHED, State.TAG_COLD])
@pytest.mark.parametrize(("rate_per_s", "seconds"), RATES)
def test_many_requests_for_a_tag(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    event: str,
    state: State,
    rate_per_s: int,
    seconds: int,
) -> None:
    """One HEAD at a time, and one per second; what changes half-way is visible to every client in time."""
    began_at = time.monotonic()
    moves = [Move(fake_registry.add_image("app", "latest", [b"one"]).digest, began_at, began_at)]
    with record_load("L03", event, state) as (record,):
        deployment = full_deployment(make_deployment, upstream={"check_interval": f"{CHECK_INTERVAL_S}s"})
        if state is State.TAG_CACHED:
            assert deployment.get(PATH).status == 200
        fake_registry.clear_exchanges()
        with (
            MemoryLimit(deployment) as memory,
            ConstantRateClient(deployment.address, PATH, CONNECTIONS) as rate_client,
        ):
            before = rate_client.run(rate_per_s, seconds / 2)
            heads_before = fake_registry.count("manifest", "HEAD")
            caused_at = time.monotonic()
            later_moves, outages = _cause(fake_registry, event)
            moves += later_moves
            after = rate_client.run(rate_per_s, seconds / 2)
        heads_after = fake_registry.count("manifest", "HEAD") - heads_before
        seen = f"{_describe(rate_client, rate_per_s, seconds)}, HEADs: {heads_before} + {heads_after}"
        note(record, seen, fake_registry, memory)
        responses = rate_client.responses
        assert {each.status for each in responses} == {200}
        assert rate_client.failures == 0
        assert find_violations(moves, responses, outages, DELAY_S + busy_slack_s()) == []
        assert fake_registry.max_concurrent("manifest", "HEAD") == 1
        assert 1 <= heads_before <= seconds / 2 / CHECK_INTERVAL_S + 2
        # One GET for a tag that was not cached, and one for the image that it moved to.
        assert fake_registry.count("manifest", "GET") == (state is State.TAG_COLD) + (event == MOVED)
        if event == FAILS:
            probes = 1 + ceil(seconds / 2 / PROBE_EVERY_S)
            assert heads_after <= 1 + ATTEMPTS * probes  # the first used an open connection
            stale = _assert_all_are_stale(after, caused_at)
            _assert_fast(stale, before, _run_again(deployment, fake_registry, PATH, rate_per_s))
        else:
            assert heads_after <= seconds / 2 / CHECK_INTERVAL_S + 2
            assert not any(each.is_stale for each in responses)
            assert responses[-1].digest == moves[-1].digest
        memory.assert_held()


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(("rate_per_s", "seconds"), RATES)
def test_many_requests_for_a_manifest_by_digest(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    event: str,
    rate_per_s: int,
    seconds: int,
) -> None:
    """Whatever happens to the tag and the upstream: the same bytes, as fast, without requests upstream."""
    image = fake_registry.add_image("app", "latest", [b"one"])
    with record_load("L03", event, State.MANIFEST) as (record,):
        deployment = full_deployment(make_deployment)
        assert deployment.get(PATH).status == 200
        fake_registry.clear_exchanges()
        path = f"/v2/up.test/app/manifests/{image.digest}"
        with (
            MemoryLimit(deployment) as memory,
            ConstantRateClient(deployment.address, path, CONNECTIONS) as rate_client,
        ):
            before = rate_client.run(rate_per_s, seconds / 2)
            _cause(fake_registry, event)
            after = rate_client.run(rate_per_s, seconds / 2)
        seen = f"{_describe(rate_client, rate_per_s, seconds)}, requests upstream: {fake_registry.count()}"
        note(record, seen, fake_registry, memory)
        assert {(each.status, each.digest, each.is_right, each.is_stale) for each in rate_client.responses} == {
            (200, image.digest, True, False)
        }
        assert rate_client.failures == 0
        assert fake_registry.count() == 0
        _assert_fast(after, before, _run_again(deployment, fake_registry, path, rate_per_s))
        memory.assert_held()

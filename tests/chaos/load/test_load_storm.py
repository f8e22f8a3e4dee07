"""L06: every client retries every second while the upstream is down, and when it is up again."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.limits import FAST_S, PROBE_EVERY_S, RECOVERY_S
from tests.chaos.engine.memory import MemoryLimit
from tests.chaos.engine.records import Record
from tests.chaos.load.constant_rate_client import ConstantRateClient, TimedResponse, run_together
from tests.chaos.load.loads import KIB, STORM, RecordLoad, note
from tests.chaos.load.test_load_blobs import full_deployment
from tests.support import faults
from tests.support.bodies import Synthetic
from tests.support.busy_machine import busy_slack_s
from tests.support.deployment import Deployment
from tests.support.fake_registry import FakeRegistry

MAX_CONCURRENT = 64
ATTEMPTS = 2  # a request upstream whose connection breaks is sent once more
SLACK_S = 1.0  # the machine has two cores, which everything that runs shares
COLD = {502, 503}


def _add_objects(fake_registry: FakeRegistry) -> tuple[dict[State, list[str]], list[str]]:
    """Add what is requested; return the paths by state, and those that must be cached before."""
    by_digest, unknown_by_digest = (
        fake_registry.add_image("app", None, [b"one"]),
        fake_registry.add_image("app", None, [b"two"]),
    )
    fake_registry.add_image("app", "known")
    fake_registry.add_image("app", "unknown")
    blob, unknown_blob = (fake_registry.add_blob(Synthetic(64 * KIB, first=number)) for number in (1, 2))
    manifests, blobs = "/v2/up.test/app/manifests", "/v2/up.test/app/blobs"
    paths = {
        State.TAG_CACHED: [f"{manifests}/known"],
        State.TAG_COLD: [f"{manifests}/unknown"],
        State.MANIFEST: [f"{manifests}/{by_digest.digest}", f"{manifests}/{unknown_by_digest.digest}"],
        State.BLOB_CACHED: [f"{blobs}/{blob}"],
        State.BLOB_COLD: [f"{blobs}/{unknown_blob}"],
    }
    return paths, [paths[state][0] for state in (State.TAG_CACHED, State.MANIFEST, State.BLOB_CACHED)]


def _judge_while_down(record: Record, responses: Sequence[TimedResponse], fast_s: float, *, is_cached: bool) -> None:
    found = {(each.status, each.is_stale) for each in responses}
    is_stale = record.case.state is State.TAG_CACHED
    is_right = found == {(200, is_stale)} if is_cached else {status for status, _ in found} <= COLD
    record.check(is_right, f"during the outage: {found}")
    took_s = median(each.took_s for each in responses)
    record.check(took_s <= fast_s, f"half of the responses take longer than {took_s:.3f} s, expected {fast_s:.3f} s")


def _judge_after(record: Record, responses: Sequence[TimedResponse], ended_at: float, *, was_unaffected: bool) -> None:
    late = {(each.status, each.is_stale) for each in responses if each.began_at > ended_at + RECOVERY_S}
    record.check(late == {(200, False)}, f"{RECOVERY_S} s after the outage: {late}")
    record.check(all(each.is_right for each in responses), "WRONG BYTES SERVED WHOLE")
    fresh = [each.ended_at - ended_at for each in responses if (each.status, each.is_stale) == (200, False)]
    if fresh and not was_unaffected:
        record.recovery_s = min(fresh)


@pytest.mark.parametrize(
    ("clients", "seconds"),
    [
        pytest.param(100, 7, id="100 clients"),
        pytest.param(500, 60, id="500 clients", marks=[pytest.mark.long]),
    ],
)
def test_clients_retry_during_an_outage(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    clients: int,
    seconds: int,
) -> None:
    """Each client requests one of six objects: few probes upstream, and few requests when it is up again."""
    paths, cached = _add_objects(fake_registry)
    requests = [(state, path) for state in paths for path in paths[state]]
    of_each = clients // len(requests)
    with record_load("L06", STORM, *paths) as records, contextlib.ExitStack() as stack:
        record_of = dict(zip(paths, records, strict=True))
        deployment = full_deployment(make_deployment)
        # A failure on a keep-alive connection would not count as one.
        closing = fake_registry.on(None, faults.header("Connection", "close"))
        for path in cached:
            assert deployment.get(path).status == 200
        fake_registry.remove_rules(closing)
        memory = stack.enter_context(MemoryLimit(deployment))
        rate_clients = [
            stack.enter_context(ConstantRateClient(deployment.address, path, of_each)) for _, path in requests
        ]
        down = fake_registry.on(None, faults.disconnected("rst"))
        fake_registry.clear_exchanges()
        began_at = time.monotonic()
        responses = run_together(rate_clients, of_each, seconds)
        sent_upstream, took_s = fake_registry.count(), time.monotonic() - began_at
        hits = responses[requests.index((State.BLOB_CACHED, paths[State.BLOB_CACHED][0]))]
        # On a busy machine everything is slow: then a response may take as long as a hit.
        fast_s = busy_slack_s(FAST_S, median(each.took_s for each in hits))
        for (state, path), of_path in zip(requests, responses, strict=True):
            seen = f"{clients} clients for {seconds} s; of all, requests upstream: {sent_upstream}"
            note(record_of[state], seen, fake_registry, memory)
            _judge_while_down(record_of[state], of_path, fast_s, is_cached=path in cached)
        fake_registry.clear_exchanges()
        fake_registry.remove_rules(down)
        ended_at = time.monotonic()
        responses = run_together(rate_clients, of_each, RECOVERY_S + SLACK_S)
        for (state, path), of_path in zip(requests, responses, strict=True):
            was_unaffected = path in cached and state is not State.TAG_CACHED
            _judge_after(record_of[state], of_path, ended_at, was_unaffected=was_unaffected)
        for record in records:
            record.seen += f"; {fake_registry.max_concurrent()} at once afterwards"
        requested = len(requests) - 2  # a cached manifest by digest and a cached blob need no request
        confirmed = 1  # before the circuit breaker opens, one more request confirms that the registry is down
        assert sent_upstream <= ATTEMPTS * (requested + confirmed + took_s / PROBE_EVERY_S)
        assert fake_registry.max_concurrent() <= MAX_CONCURRENT
        fetched = Counter(each.request.reference for each in fake_registry.received(method="GET"))
        assert max(fetched.values()) <= 2, fetched  # by the probe that succeeded, and for all waiting requests
        assert [rate_client.failures for rate_client in rate_clients] == [0] * len(rate_clients)
        memory.assert_held()

"""L06: everybody asks again every second while the upstream is down, and when it is back."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median

import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.limits import FAST_S, MAX_SLOWDOWN, PROBE_EVERY_S, RECOVERY_S
from tests.chaos.engine.memory import MemoryLimit
from tests.chaos.engine.records import Record
from tests.chaos.load.constant_rate_client import ConstantRateClient, TimedResponse, run_together
from tests.chaos.load.loads import KIB, STORM, RecordLoad, note
from tests.chaos.load.test_load_blobs import full_deployment
from tests.support import faults
from tests.support.bodies import Synthetic
from tests.support.deployment import Deployment
from tests.support.fake_registry import FakeRegistry

AT_ONCE = 64
TRIES = 2  # what breaks off is tried once more
SLACK_S = 1.0  # two cores, shared with everything else that runs
COLD = {502, 503}


def _add_things(fake_registry: FakeRegistry) -> tuple[dict[State, list[str]], list[str]]:
    """What is asked for in each state, and which of it must have been asked for before."""
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
    record.check(is_right, f"while it is down: {found}")
    took_s = median(each.took_s for each in responses)
    record.check(took_s <= fast_s, f"half of the responses take longer than {took_s:.3f} s, expected {fast_s:.3f} s")


def _judge_after(record: Record, responses: Sequence[TimedResponse], back_at: float, *, was_well: bool) -> None:
    late = {(each.status, each.is_stale) for each in responses if each.began_at > back_at + RECOVERY_S}
    record.check(late == {(200, False)}, f"{RECOVERY_S} s after its return: {late}")
    record.check(all(each.is_right for each in responses), "WRONG BYTES SERVED WHOLE")
    well = [each.ended_at - back_at for each in responses if (each.status, each.is_stale) == (200, False)]
    if well and not was_well:
        record.recovery_s = min(well)


@pytest.mark.parametrize(
    ("clients", "seconds"),
    [
        pytest.param(100, 7, id="100 clients"),
        pytest.param(500, 60, id="500 clients", marks=[pytest.mark.long, pytest.mark.timeout(180)]),
    ],
)
def test_a_storm_of_retries(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    record_load: RecordLoad,
    clients: int,
    seconds: int,
) -> None:
    """Each wants one of six things: one probe now and then, and no rush when the upstream is back."""
    paths, cached = _add_things(fake_registry)
    wanted = [(state, path) for state in paths for path in paths[state]]
    of_each = clients // len(wanted)
    with record_load("L06", STORM, *paths) as records, contextlib.ExitStack() as stack:
        record_of = dict(zip(paths, records, strict=True))
        deployment = full_deployment(make_deployment)
        closing = fake_registry.on(
            None, faults.header("Connection", "close")
        )  # a try on a kept connection would not count
        for path in cached:
            assert deployment.get(path).status == 200
        fake_registry.remove_rules(closing)
        memory = stack.enter_context(MemoryLimit(deployment))
        rate_clients = [
            stack.enter_context(ConstantRateClient(deployment.address, path, of_each)) for _, path in wanted
        ]
        down = fake_registry.on(None, faults.disconnected("rst"))
        fake_registry.clear_exchanges()
        responses = run_together(rate_clients, of_each, seconds)
        asked = fake_registry.count()
        hits = responses[wanted.index((State.BLOB_CACHED, paths[State.BLOB_CACHED][0]))]
        fast_s = max(
            FAST_S, MAX_SLOWDOWN * median(each.took_s for each in hits)
        )  # where everything is slow, so is a hit
        for (state, path), of_path in zip(wanted, responses, strict=True):
            seen = f"{clients} clients for {seconds} s; of all, requests upstream: {asked}"
            note(record_of[state], seen, fake_registry, memory)
            _judge_while_down(record_of[state], of_path, fast_s, is_cached=path in cached)
        fake_registry.clear_exchanges()
        fake_registry.remove_rules(down)
        back_at = time.monotonic()
        responses = run_together(rate_clients, of_each, RECOVERY_S + SLACK_S)
        for (state, path), of_path in zip(wanted, responses, strict=True):
            was_well = path in cached and state is not State.TAG_CACHED
            _judge_after(record_of[state], of_path, back_at, was_well=was_well)
        for record in records:
            record.seen += f"; {fake_registry.max_concurrent()} at once afterwards"
        questions = len(wanted) - 2  # the manifest by digest and the blob that are cached are never asked for
        assert asked <= TRIES * (questions + seconds / PROBE_EVERY_S)
        assert fake_registry.max_concurrent() <= AT_ONCE
        fetched = Counter(each.request.reference for each in fake_registry.received(method="GET"))
        assert max(fetched.values()) <= 2, fetched  # by the probe that found it well, and for all who wait
        assert [rate_client.failures for rate_client in rate_clients] == [0] * len(rate_clients)
        memory.assert_held()

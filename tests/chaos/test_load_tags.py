"""L03, L06: a herd on one tag, steady, moved and with a dying upstream; and the retries of everybody it turns away.

L05, a thousand hits on an old object, is in `tests/bucket/test_touch.py`.
"""

import threading
import time
from collections.abc import Callable
from math import ceil
from statistics import median

import pytest

from tests import misbehaviour as bad
from tests.chaos.history import Move, Outage, find_violations
from tests.chaos.limits import FAST_S, PROBE_EVERY_S, RECOVERY_S
from tests.chaos.pump import Pump
from tests.chaos.test_load_blobs import full_house
from tests.house import CHECK_TIMEOUT_S, House, eventually
from tests.origin import Origin

CHECK_INTERVAL_S = 1
SLACK_S = 1.0  # two cores, shared with everything else that runs
DELAY_S = CHECK_TIMEOUT_S + CHECK_INTERVAL_S + SLACK_S
CONNECTIONS = 100
PATH = "/v2/up.test/app/manifests/latest"
UNKNOWN = "/v2/up.test/app/manifests/unknown"
AT_ONCE = 64
TRIES = 2  # what breaks off is tried once more


@pytest.mark.parametrize("event", ["nothing", "it moves", "the upstream dies"])
@pytest.mark.parametrize(
    ("rate_per_s", "seconds"),
    [
        pytest.param(150, 6, id="150 a second"),
        pytest.param(1000, 60, id="1000 a second", marks=[pytest.mark.long, pytest.mark.timeout(180)]),
    ],
)
def test_a_herd_on_a_tag(
    make_house: Callable[..., House], origin: Origin, event: str, rate_per_s: int, seconds: int
) -> None:
    """One HEAD at a time and one a second; what happened half-way is seen by everybody in time."""
    began_at = time.monotonic()
    moves = [Move(origin.add_image("app", "latest", [b"one"]).digest, began_at, began_at)]
    outages = []
    house = full_house(make_house, upstream={"check_interval": f"{CHECK_INTERVAL_S}s"})
    assert house.get(PATH).status == 200
    with Pump(house.address, PATH, CONNECTIONS) as pump:
        origin.forget()
        pump.run(rate_per_s, seconds / 2)
        happened_at = time.monotonic()
        if event == "it moves":
            moves.append(Move(origin.add_image("app", "latest", [b"two"]).digest, happened_at, time.monotonic()))
        elif event == "the upstream dies":
            origin.on(None, bad.hanging_up("rst"))
            outages.append(Outage(happened_at, float("inf"), float("inf")))
        heads_before = origin.count("manifest", "HEAD")
        after = pump.run(rate_per_s, seconds / 2)
    answers = pump.answers
    assert {each.status for each in answers} == {200}
    assert pump.failures == 0
    assert find_violations(moves, answers, outages, DELAY_S) == []
    assert origin.at_once("manifest", "HEAD") == 1
    assert 1 <= heads_before <= seconds / 2 / CHECK_INTERVAL_S + 2
    heads_after = origin.count("manifest", "HEAD") - heads_before
    if event == "the upstream dies":
        probes = 1 + ceil(seconds / 2 / PROBE_EVERY_S)
        assert heads_after <= 1 + TRIES * probes  # the first of all found a connection that was open
        late = [each for each in after if each.began_at > happened_at + CHECK_INTERVAL_S + SLACK_S]
        assert late
        assert all(each.is_stale for each in late)
        assert median(each.took_s for each in late) < FAST_S
    else:
        assert heads_after <= seconds / 2 / CHECK_INTERVAL_S + 2
        assert not any(each.is_stale for each in answers)
    if event == "it moves":
        assert answers[-1].digest == moves[-1].digest
    print(  # noqa: T201  the numbers are what the long run is for
        f"{len(answers)} answers, {pump.unasked} not asked for want of a connection, {heads_before} + {heads_after} "
        f"HEADs, median {median(each.took_s for each in answers) * 1000:.1f} ms"
    )


@pytest.mark.parametrize(
    ("clients", "seconds"),
    [
        pytest.param(100, 7, id="100 clients"),
        pytest.param(500, 60, id="500 clients", marks=[pytest.mark.long, pytest.mark.timeout(180)]),
    ],
)
def test_a_storm_of_retries(make_house: Callable[..., House], origin: Origin, clients: int, seconds: int) -> None:
    """Half of them want a cached tag, half one that is not: one probe now and then, and no rush when it is back."""
    origin.add_image("app", "latest")
    origin.add_image("app", "unknown")
    house = full_house(make_house)
    assert house.get(PATH).status == 200
    down = origin.on(None, bad.hanging_up("rst"))
    origin.forget()
    with Pump(house.address, PATH, clients // 2) as cached, Pump(house.address, UNKNOWN, clients // 2) as cold:
        storm = threading.Thread(target=cached.run, args=(clients / 2, seconds))
        storm.start()
        cold.run(clients / 2, seconds)
        storm.join()
        asked = origin.count()
        assert asked <= 4 + 2 * seconds / PROBE_EVERY_S  # two different questions, each once more on a new connection
        assert {(each.status, each.is_stale) for each in cached.answers} == {(200, True)}
        assert {each.status for each in cold.answers} <= {502, 503}
        assert median(each.took_s for each in (*cached.answers, *cold.answers)) < FAST_S
        origin.forget()
        origin.mend(down)
        back_at = time.monotonic()
        storm = threading.Thread(target=cached.run, args=(clients / 2, RECOVERY_S + SLACK_S))
        storm.start()
        cold.run(clients / 2, RECOVERY_S + SLACK_S)
        storm.join()
    for answers in (cached.answers, cold.answers):
        late = [each for each in answers if each.began_at > back_at + RECOVERY_S]
        assert late
        assert {(each.status, each.is_stale) for each in late} == {(200, False)}
    assert origin.at_once() <= AT_ONCE
    assert cached.failures == cold.failures == 0
    eventually(lambda: house.get(UNKNOWN).status == 200, "the other tag", RECOVERY_S)
    print(f"{asked} requests upstream in {seconds} s, {origin.at_once()} at once afterwards")  # noqa: T201  see above

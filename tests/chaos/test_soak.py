"""Many clients, new images all the time, one fault after the other: nothing wrong is served whole, nothing wrong kept.

`pytest tests/chaos/test_soak.py -m long` has more than 100,000 answers under faults, in four runs.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from tests.chaos.pullers import NAME, Pullers, Truth, digests_of
from tests.chaos.town import ALL, Nemesis, Town
from tests.support.deployment import eventually

CLIENTS = 32
LASTING_S = (0.3, 4.0)
CALM_S = (0.05, 0.4)
PUSH_EVERY_S = 0.25
TAGS = 10
LARGE_EVERY = 6
LARGE_BYTES = 2 * 1024 * 1024 + 12_345
SMALL_BYTES = 40_000
LIMIT_S = 330.0
RECOVERY_S = 20.0
SEEDS_OF_THE_LONG = 4
RESPONSES = 100_000 // SEEDS_OF_THE_LONG
RUNS = [
    pytest.param(1, 300, 10.0, id="a few seconds"),
    *(
        pytest.param(
            seed,
            RESPONSES,
            LIMIT_S,
            id=f"{RESPONSES} answers, seed {seed}",
            marks=[pytest.mark.long, pytest.mark.timeout(480)],
        )
        for seed in range(1, SEEDS_OF_THE_LONG + 1)
    ),
]


def push(town: Town, truth: Truth, dice: Random, number: int) -> None:
    """Offer another image under one of the tags, and say so before anybody can see it."""
    size = LARGE_BYTES if number % LARGE_EVERY == 0 else SMALL_BYTES
    layers = [dice.randbytes(dice.randrange(1, SMALL_BYTES)), dice.randbytes(size)]
    truth.blobs.update(digests_of(layers))
    image = town.fake_registry.add_image("app", None, layers)
    truth.manifests[image.digest] = image.body
    tag = f"t{dice.randrange(TAGS)}"
    truth.tags.setdefault(tag, set()).add(image.digest)
    town.fake_registry.add_manifest("app", tag, image.body, image.media_type)


@pytest.mark.parametrize(("seed", "responses", "seconds"), RUNS)
def test_nothing_wrong_under_random_faults(
    make_town: Callable[..., Town], seed: int, responses: int, seconds: float
) -> None:
    """So many answers came while something was wrong, and each complete one is right; so is all that is stored."""
    dice = Random(f"images {seed}")
    truth = Truth()
    town = make_town(upstream={"stall_timeout": "3s"}, logger={"level": "warn"})
    for number in range(TAGS):
        push(town, truth, dice, number)
    done = threading.Event()
    with (
        Nemesis(town, ALL, Random(seed), lasting_s=LASTING_S, calm_s=CALM_S) as nemesis,
        Pullers(town.deployment, truth, CLIENTS, seed, lambda: nemesis.is_on) as pullers,
    ):
        began_at, number = time.monotonic(), TAGS
        while pullers.under_fault < responses and not pullers.wrong and time.monotonic() - began_at < seconds:
            done.wait(PUSH_EVERY_S)
            push(town, truth, dice, number)
            number += 1
        took_s = time.monotonic() - began_at
    said = (
        f"{sum(pullers.outcomes.values())} answers in {took_s:.0f} s, {pullers.under_fault} under faults: "
        f"{dict(pullers.outcomes.most_common())}; {dict(Counter(each.kind for each in nemesis.episodes))}"
    )
    print(said)  # noqa: T201  the numbers are what the long runs are for
    assert pullers.wrong == [], said
    assert pullers.under_fault >= responses, said
    assert town.audit() == []
    town.settle()
    for digest in truth.manifests:
        eventually(lambda: _is_right(town, digest, truth.manifests[digest]), f"{digest} is served", RECOVERY_S)  # noqa: B023


def _is_right(town: Town, digest: str, body: bytes) -> bool:
    reply = town.deployment.get(f"/v2/{NAME}/manifests/{digest}")
    return (reply.status, reply.body) == (200, body)

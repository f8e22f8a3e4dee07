"""Many clients, new images all the time, one fault after the other: nothing wrong is served completely, or stored.

`pytest tests/chaos/random_faults/test_soak.py -m long` has more than 100,000 responses under faults, in four runs.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest

from tests.chaos.random_faults.injector import ALL, FaultInjector, FaultySystem
from tests.chaos.random_faults.pull_clients import NAME, PullClients, Truth, digests_of
from tests.support.deployment import eventually

CLIENTS = 32
DURATION_S = (0.3, 4.0)
PAUSE_S = (0.05, 0.4)
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
            id=f"{RESPONSES} responses, seed {seed}",
            marks=[pytest.mark.long],
        )
        for seed in range(1, SEEDS_OF_THE_LONG + 1)
    ),
]


def push(system: FaultySystem, truth: Truth, rng: Random, number: int) -> None:
    """Push another image to one of the tags; it is added to `truth` before a client can see it."""
    size = LARGE_BYTES if number % LARGE_EVERY == 0 else SMALL_BYTES
    layers = [rng.randbytes(rng.randrange(1, SMALL_BYTES)), rng.randbytes(size)]
    truth.blobs.update(digests_of(layers))
    image = system.fake_registry.add_image("app", None, layers)
    truth.manifests[image.digest] = image.body
    tag = f"t{rng.randrange(TAGS)}"
    truth.tags.setdefault(tag, set()).add(image.digest)
    system.fake_registry.add_manifest("app", tag, image.body, image.media_type)


@pytest.mark.parametrize(("seed", "responses", "seconds"), RUNS)
def test_nothing_wrong_under_random_faults(
    make_system: Callable[..., FaultySystem], seed: int, responses: int, seconds: float
) -> None:
    """Each complete response is right, with so many of them under faults; so is all that is stored."""
    rng = Random(f"images {seed}")
    truth = Truth()
    system = make_system(upstream={"stall_timeout": "3s"}, logger={"level": "warn"})
    for number in range(TAGS):
        push(system, truth, rng, number)
    done = threading.Event()
    with (
        FaultInjector(system, ALL, Random(seed), duration_s=DURATION_S, pause_s=PAUSE_S) as injector,
        PullClients(system.deployment, truth, CLIENTS, seed, lambda: injector.is_on) as pull_clients,
    ):
        began_at, number = time.monotonic(), TAGS
        while pull_clients.under_fault < responses and not pull_clients.wrong and time.monotonic() - began_at < seconds:
            done.wait(PUSH_EVERY_S)
            push(system, truth, rng, number)
            number += 1
        took_s = time.monotonic() - began_at
    summary = (
        f"{sum(pull_clients.outcomes.values())} responses in {took_s:.0f} s, {pull_clients.under_fault} under faults: "
        f"{dict(pull_clients.outcomes.most_common())}; {dict(Counter(each.kind for each in injector.episodes))}"
    )
    print(summary)  # noqa: T201  the numbers of long runs are of interest
    assert pull_clients.wrong == [], summary
    assert pull_clients.under_fault >= responses, summary
    assert system.audit() == []
    system.wait_for_workers()
    for digest in truth.manifests:
        eventually(lambda: _is_right(system, digest, truth.manifests[digest]), f"{digest} is served")  # noqa: B023


def _is_right(system: FaultySystem, digest: str, body: bytes) -> bool:
    response = system.deployment.get(f"/v2/{NAME}/manifests/{digest}")
    return (response.status, response.body) == (200, body)

"""A writer moves a tag, readers request it, faults are injected at random: no response breaks a rule of `tag_history`.

`pytest tests/chaos/random_faults/test_tag_history.py -m long` has twenty runs of a minute.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Self

import pytest

from tests.chaos.load.constant_rate_client import ConstantRateClient, TimedResponse
from tests.chaos.random_faults.injector import HISTORY, OUTAGES, Episode, FaultInjector, FaultySystem
from tests.chaos.random_faults.tag_history import Move, Outage, find_violations
from tests.support.busy_machine import busy_slack_s
from tests.support.fake_registry import FakeRegistry

CHECK_TIMEOUT_S = 2
CHECK_INTERVAL_S = 0.5
DELAY_S = CHECK_TIMEOUT_S + CHECK_INTERVAL_S
SLACK_S = 0.5
RECOVERY_S = 5.0
DURATION_S = (0.5, 6.0)
PAUSE_S = (0.3, 3.0)
MOVE_EVERY_S = (0.1, 1.5)
CONNECTIONS = 24
REQUESTS_PER_S = 60
RUNS = [
    pytest.param(1, 15, id="seed 1"),
    *(pytest.param(seed, 60, id=f"a minute, seed {seed}", marks=[pytest.mark.long]) for seed in range(1, 21)),
]


class Writer:
    """Moves a tag through digests that never repeat while the block runs."""

    def __init__(self, fake_registry: FakeRegistry, rng: Random) -> None:
        self.moves: list[Move] = []
        self._fake_registry = fake_registry
        self._dice = rng
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Self:
        self.move()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def move(self) -> None:
        began_at = time.monotonic()
        image = self._fake_registry.add_image("app", "latest", [f"layer {len(self.moves)}".encode()])
        self.moves.append(Move(image.digest, began_at, time.monotonic()))

    def _write(self) -> None:
        while not self._done.wait(self._dice.uniform(*MOVE_EVERY_S)):
            self.move()


def outages_of(episodes: Sequence[Episode]) -> list[Outage]:
    """When the upstream was unreachable, or may be regarded as that by Dockyard."""
    return [
        Outage(each.began_at, each.ended_at, each.ended_at + RECOVERY_S) for each in episodes if each.kind in OUTAGES
    ]


def describe(responses: Sequence[TimedResponse], rate_client: ConstantRateClient, episodes: Sequence[Episode]) -> str:
    """Describe a run in one line."""
    summary = Counter(f"{each.status}{' stale' * each.is_stale}" for each in responses)
    return (
        f"{dict(summary)}, {rate_client.failures} without a response, {dict(Counter(each.kind for each in episodes))}"
    )


@pytest.mark.parametrize(("seed", "seconds"), RUNS)
def test_the_history_of_a_tag(make_system: Callable[..., FaultySystem], seed: int, seconds: int) -> None:
    """Every response was right at its time, or marked stale if it could not be; no older version came back."""
    rng = Random(seed)
    limits = {"check_timeout": f"{CHECK_TIMEOUT_S}s", "check_interval": f"{CHECK_INTERVAL_S}s"}
    system = make_system(upstream=limits)
    path = "/v2/up.test/app/manifests/latest"
    with (
        Writer(system.fake_registry, Random(f"writer {seed}")) as writer,
        ConstantRateClient(system.deployment.address, path, CONNECTIONS) as rate_client,
    ):
        with FaultInjector(system, HISTORY, rng, duration_s=DURATION_S, pause_s=PAUSE_S) as injector:
            rate_client.run(REQUESTS_PER_S, seconds)
        rate_client.run(REQUESTS_PER_S, 1)
    summary = describe(rate_client.responses, rate_client, injector.episodes)
    responses = [each for each in rate_client.responses if each.status == 200]
    assert len(responses) > REQUESTS_PER_S * seconds / 4, summary
    assert injector.episodes, summary
    violations = find_violations(
        writer.moves, responses, outages_of(injector.episodes), DELAY_S + busy_slack_s(SLACK_S)
    )
    assert violations == [], f"{len(violations)} of {len(responses)} responses; {summary}"
    assert system.audit() == []

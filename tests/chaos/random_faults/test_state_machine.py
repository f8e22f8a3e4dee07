"""Random sequences of requests and faults, by a Hypothesis state machine.

`pytest tests/chaos/random_faults/test_state_machine.py -m long --hypothesis-seed=7` runs more sequences, others with
each seed.
"""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.chaos.random_faults.injector import FaultySystem
from tests.chaos.random_faults.state_machine import Machine

STEPS = 30
# Failures are not shrunk: the system keeps its state between examples, and each attempt takes seconds.
BASE = settings(
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize(
    ("examples", "is_fixed"),
    [
        pytest.param(3, True, id="default"),
        pytest.param(25, False, id="long", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_any_order_of_events(make_system: Callable[..., FaultySystem], examples: int, is_fixed: bool) -> None:  # noqa: FBT001
    """The invariants hold after each step, whatever happens in whatever order."""
    system = make_system(workers=2, upstream={"stall_timeout": "3s"})
    run_state_machine_as_test(
        lambda: Machine(system), settings=settings(BASE, max_examples=examples, derandomize=is_fixed)
    )

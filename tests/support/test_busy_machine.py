"""The limits of time on an idle machine and on a busy one."""

import time

import pytest

from tests.support import busy_machine
from tests.support.busy_machine import MAX_SLOWDOWN, busy_slack_s, is_within, measure_work_s
from tests.support.deployment import eventually


@pytest.fixture(params=[0.02, 0.5], ids=["idle", "busy"])
def work_s(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """How long some work takes now."""
    seconds = float(request.param)
    monkeypatch.setattr(busy_machine, "measure_work_s", lambda: seconds)
    return seconds


def test_a_promise_has_the_slack_of_the_machine_as_it_is_now(work_s: float) -> None:
    """A second on an idle machine, a multiple of what some work takes on a busy one."""
    slack_s = max(1.0, MAX_SLOWDOWN * work_s)
    assert busy_slack_s() == slack_s
    assert is_within(2 + slack_s - 0.01, 2)
    assert not is_within(2 + slack_s + 0.01, 2)


def test_the_slack_may_depend_on_a_control(work_s: float) -> None:
    """Then the work does not count."""
    assert is_within(0.05, 0, slack_s=0.05, control_s=0.001)
    assert not is_within(0.06, 0, slack_s=0.05, control_s=0.001)
    assert is_within(0.1, 0, slack_s=0.05, control_s=0.02)
    assert not is_within(0.11, 0, slack_s=0.05, control_s=0.02)


def test_what_does_not_come_within_its_limit_is_an_error(work_s: float) -> None:
    """The wait ends with the slack of now."""
    began_at = time.monotonic()
    with pytest.raises(AssertionError, match=r"not within .* s: something"):
        eventually(lambda: False, "something", within_s=0, slack_s=0.1)
    assert time.monotonic() - began_at > max(0.1, MAX_SLOWDOWN * work_s)


def test_work_takes_its_processor_time_at_least() -> None:
    """A busy machine takes longer."""
    assert measure_work_s() >= 0.02

"""Limits of time that hold on a busy machine, which tests share with their servers, each other and other programs.

An event that must come is awaited for EVENT_TIMEOUT_S: this only ends a test that would hang, and says nothing about
how fast something is. A limit that is a promise ("stale within `check_timeout`") is checked with `is_within`: what the
promise does not cover (processes that are scheduled, requests that are parsed) may take a slack on an idle machine, and
MAX_SLOWDOWN times as long as a control takes now on a busy one. The control is something of the same kind without the
fault, such as a cached response, or else a fixed amount of work.
"""

import time

EVENT_TIMEOUT_S = 120.0
SLACK_S = 1.0
MAX_SLOWDOWN = 5

_WORK_S = 0.02
_REPEATS = 5


def is_within(took_s: float, limit_s: float, *, slack_s: float = SLACK_S, control_s: float | None = None) -> bool:
    """Whether something took no longer than its limit, on the machine as it is now.

    `control_s` is how long the control takes now; by default it is some work, which is measured when it matters.
    """
    return took_s <= limit_s + slack_s or took_s <= limit_s + busy_slack_s(slack_s, control_s)


def busy_slack_s(slack_s: float = SLACK_S, control_s: float | None = None) -> float:
    """The slack on the machine as it is now."""
    return max(slack_s, MAX_SLOWDOWN * (measure_work_s() if control_s is None else control_s))


def measure_work_s() -> float:
    """How long 20 ms of processor time take this thread now, the longest of five times."""
    return max(_work() for _ in range(_REPEATS))


def _work() -> float:
    began_at, used_s = time.monotonic(), time.thread_time()
    while time.thread_time() - used_s < _WORK_S:
        pass
    return time.monotonic() - began_at

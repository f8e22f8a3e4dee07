"""The judge of histories: what it accepts, and what it must refuse."""

import attrs
import pytest

from tests.chaos.load.constant_rate_client import TimedResponse
from tests.chaos.random_faults.tag_history import Move, Outage, find_violations

DELAY_S = 3.0
MOVES = [Move(f"v{number}", 10.0 * number, 10.0 * number + 0.1) for number in range(5)]  # v0 at 0, v1 at 10, …
OUTAGE = Outage(12.0, 24.0, 28.0)


def said(version: int, at: float, *, took_s: float = 0.1, is_stale: bool = False) -> TimedResponse:
    """An answer."""
    return TimedResponse(at, at + took_s, 200, f"v{version}", is_stale=is_stale, is_right=True)


ACCEPTED = {
    "what the tag means": [said(0, 5), said(1, 15), said(4, 45)],
    "the old one while it is moved": [said(0, 9.99), said(0, 10.05)],
    "the new one while it is moved": [said(1, 9.95)],
    "the old one for as long as a check may take": [said(0, 13.0)],
    "a slow answer that was right when it was begun": [said(0, 5, took_s=30)],
    "a slow answer that was right when it ended": [said(2, 5, took_s=16)],
    "back by one within the delay": [said(1, 10.05), said(0, 12)],
    "fresh, though marked stale": [said(1, 15, is_stale=True)],
}
ACCEPTED_IN_OUTAGE = {
    "stale and old": [said(0, 20, is_stale=True)],
    "stale and of the time before": [said(1, 20, is_stale=True)],
    "checked just before": [said(1, 12.5)],
    "checked just after": [said(2, 24.1)],
    "stale until it is found to be back": [said(1, 27, is_stale=True)],
}
REFUSED = {
    "(a)": {
        "older than a check may take": [said(0, 13.2)],
        "one that was replaced long ago": [said(1, 45)],
        "one that is to come": [said(3, 25)],
        "old and marked stale, though the upstream was there": [said(0, 20, is_stale=True)],
    },
    "(c)": {
        "back behind a finished read": [said(1, 10.05), said(0, 13.2)],
        "back and forth": [said(2, 20.05), said(1, 23.17), said(2, 23.3)],
    },
    "(d)": {
        "a digest that was never the tag's": [attrs.evolve(said(0, 5), digest="v9")],
        "no digest": [attrs.evolve(said(0, 5), digest="")],
        "other bytes": [attrs.evolve(said(0, 5), is_right=False)],
    },
}
REFUSED_IN_OUTAGE = {
    "(b)": {
        "not checked and not marked": [said(1, 19)],
        "old and not marked": [said(0, 16)],
    },
    "(a)": {"stale long after it is back": [said(1, 31.5, is_stale=True)]},
    "(c)": {"an older stale one than was answered before": [said(1, 12.5), said(0, 20, is_stale=True)]},
}


@pytest.mark.parametrize("responses", ACCEPTED.values(), ids=ACCEPTED)
def test_a_right_history(responses: list[TimedResponse]) -> None:
    """Accepted while the upstream is there, and the more so when it was away."""
    assert find_violations(MOVES, responses, [], DELAY_S) == []


@pytest.mark.parametrize("responses", ACCEPTED_IN_OUTAGE.values(), ids=ACCEPTED_IN_OUTAGE)
def test_a_right_history_with_an_outage(responses: list[TimedResponse]) -> None:
    """Accepted while the upstream is out of reach."""
    assert find_violations(MOVES, responses, [OUTAGE], DELAY_S) == []


def _cases(table: dict[str, dict[str, list[TimedResponse]]]) -> list[object]:
    return [
        pytest.param(rule, responses, id=name) for rule, cases in table.items() for name, responses in cases.items()
    ]


@pytest.mark.parametrize(("rule", "responses"), _cases(REFUSED))
def test_a_wrong_history(rule: str, responses: list[TimedResponse]) -> None:
    """Refused by its rule."""
    assert rule in {each[:3] for each in find_violations(MOVES, responses, [], DELAY_S)}


@pytest.mark.parametrize(("rule", "responses"), _cases(REFUSED_IN_OUTAGE))
def test_a_wrong_history_with_an_outage(rule: str, responses: list[TimedResponse]) -> None:
    """Refused by its rule, outage or not."""
    assert rule in {each[:3] for each in find_violations(MOVES, responses, [OUTAGE], DELAY_S)}


def test_the_order_of_the_answers_is_of_no_account() -> None:
    """Readers log when they please."""
    responses = [said(1, 10.05), said(0, 13.2), said(1, 15)]
    assert find_violations(MOVES, responses, [], DELAY_S) == find_violations(MOVES, responses[::-1], [], DELAY_S)


def test_two_outages_that_meet_are_one() -> None:
    """No instant between them: what is not marked cannot have been checked."""
    halves = [Outage(12.0, 18.0, 22.0), Outage(18.0, 24.0, 28.0)]
    assert [each[:3] for each in find_violations(MOVES, [said(1, 19)], halves, DELAY_S)] == ["(b)"]
    assert find_violations(MOVES, [said(1, 19)], [Outage(12.0, 17.0, 18.0), halves[1]], DELAY_S) == []

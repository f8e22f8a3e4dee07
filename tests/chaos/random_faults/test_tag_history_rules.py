"""The rules of tag histories: what is accepted, and what is rejected."""

import attrs
import pytest

from tests.chaos.load.constant_rate_client import TimedResponse
from tests.chaos.random_faults.tag_history import Move, Outage, find_violations

DELAY_S = 3.0
MOVES = [Move(f"v{number}", 10.0 * number, 10.0 * number + 0.1) for number in range(5)]  # v0 at 0, v1 at 10, …
OUTAGE = Outage(12.0, 24.0, 28.0)


def response_with(version: int, at: float, *, took_s: float = 0.1, is_stale: bool = False) -> TimedResponse:
    """A response with a version of the tag."""
    return TimedResponse(at, at + took_s, 200, f"v{version}", is_stale=is_stale, is_right=True)


ACCEPTED = {
    "the current one": [response_with(0, 5), response_with(1, 15), response_with(4, 45)],
    "the old one while it is moved": [response_with(0, 9.99), response_with(0, 10.05)],
    "the new one while it is moved": [response_with(1, 9.95)],
    "the old one for as long as a check may take": [response_with(0, 13.0)],
    "a slow response that was right when it was begun": [response_with(0, 5, took_s=30)],
    "a slow response that was right when it ended": [response_with(2, 5, took_s=16)],
    "an older one within the delay": [response_with(1, 10.05), response_with(0, 12)],
    "fresh, though marked stale": [response_with(1, 15, is_stale=True)],
}
ACCEPTED_IN_OUTAGE = {
    "stale and old": [response_with(0, 20, is_stale=True)],
    "stale and of the time before": [response_with(1, 20, is_stale=True)],
    "checked just before": [response_with(1, 12.5)],
    "checked just after": [response_with(2, 24.1)],
    "stale until it is found to be back": [response_with(1, 27, is_stale=True)],
}
REJECTED = {
    "(a)": {
        "older than a check may take": [response_with(0, 13.2)],
        "one that was replaced long ago": [response_with(1, 45)],
        "a later one": [response_with(3, 25)],
        "old and marked stale, though the upstream was reachable": [response_with(0, 20, is_stale=True)],
    },
    "(c)": {
        "back behind a finished read": [response_with(1, 10.05), response_with(0, 13.2)],
        "back and forth": [response_with(2, 20.05), response_with(1, 23.17), response_with(2, 23.3)],
    },
    "(d)": {
        "a digest that was never the tag's": [attrs.evolve(response_with(0, 5), digest="v9")],
        "no digest": [attrs.evolve(response_with(0, 5), digest="")],
        "other bytes": [attrs.evolve(response_with(0, 5), is_right=False)],
    },
}
REJECTED_IN_OUTAGE = {
    "(b)": {
        "not checked and not marked": [response_with(1, 19)],
        "old and not marked": [response_with(0, 16)],
    },
    "(a)": {"stale long after it is back": [response_with(1, 31.5, is_stale=True)]},
    "(c)": {"an older stale one than before": [response_with(1, 12.5), response_with(0, 20, is_stale=True)]},
}


@pytest.mark.parametrize("responses", ACCEPTED.values(), ids=ACCEPTED)
def test_a_right_history(responses: list[TimedResponse]) -> None:
    """Accepted while the upstream is reachable."""
    assert find_violations(MOVES, responses, [], DELAY_S) == []


@pytest.mark.parametrize("responses", ACCEPTED_IN_OUTAGE.values(), ids=ACCEPTED_IN_OUTAGE)
def test_a_right_history_with_an_outage(responses: list[TimedResponse]) -> None:
    """Accepted while the upstream is unreachable."""
    assert find_violations(MOVES, responses, [OUTAGE], DELAY_S) == []


def _cases(table: dict[str, dict[str, list[TimedResponse]]]) -> list[object]:
    return [
        pytest.param(rule, responses, id=name) for rule, cases in table.items() for name, responses in cases.items()
    ]


@pytest.mark.parametrize(("rule", "responses"), _cases(REJECTED))
def test_a_wrong_history(rule: str, responses: list[TimedResponse]) -> None:
    """Rejected by its rule."""
    assert rule in {each[:3] for each in find_violations(MOVES, responses, [], DELAY_S)}


@pytest.mark.parametrize(("rule", "responses"), _cases(REJECTED_IN_OUTAGE))
def test_a_wrong_history_with_an_outage(rule: str, responses: list[TimedResponse]) -> None:
    """Rejected by its rule, with or without an outage."""
    assert rule in {each[:3] for each in find_violations(MOVES, responses, [OUTAGE], DELAY_S)}


def test_the_order_of_responses_does_not_matter() -> None:
    """Readers log in any order."""
    responses = [response_with(1, 10.05), response_with(0, 13.2), response_with(1, 15)]
    assert find_violations(MOVES, responses, [], DELAY_S) == find_violations(MOVES, responses[::-1], [], DELAY_S)


def test_two_adjacent_outages_are_one() -> None:
    """There is no time between them: what is not marked stale cannot have been checked."""
    halves = [Outage(12.0, 18.0, 22.0), Outage(18.0, 24.0, 28.0)]
    assert [each[:3] for each in find_violations(MOVES, [response_with(1, 19)], halves, DELAY_S)] == ["(b)"]
    assert find_violations(MOVES, [response_with(1, 19)], [Outage(12.0, 17.0, 18.0), halves[1]], DELAY_S) == []

"""The record of a load is kept whatever its result is, and an empty record does not pass."""

import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.records import Record
from tests.chaos.load.loads import LOADS, STEADY, UNDISTURBED, record_load_cases
from tests.chaos.matrix import all_faults, cases_of


def test_the_matrix_has_the_loads() -> None:
    """Each of the six loads has cases, and a text for each."""
    faults = {fault.id: fault for fault in all_faults()}
    assert [fault.id for fault in LOADS] == ["L01", "L02", "L03", "L04", "L05", "L06"]
    for load in LOADS:
        cases = list(cases_of(faults[load.id]))
        assert cases
        assert all(outcome.says for _, outcomes in cases for outcome in outcomes)


def test_a_load_that_passes_has_no_problem() -> None:
    """One record for each state, in the same order."""
    lines: list[Record] = []
    with record_load_cases(lines.append, "L01", UNDISTURBED, State.BLOB_COLD, State.BLOB_CACHED) as (cold, cached):
        cold.seen, cached.seen = "first", "second"
    assert [(line.case.state, line.seen, line.problems) for line in lines] == [
        (State.BLOB_COLD, "first", []),
        (State.BLOB_CACHED, "second", []),
    ]


def test_an_exception_is_kept_and_raised_again() -> None:
    """The exception is a problem of all records."""
    lines: list[Record] = []
    with (
        pytest.raises(ZeroDivisionError),
        record_load_cases(lines.append, "L01", UNDISTURBED, State.BLOB_COLD, State.BLOB_CACHED),
    ):
        raise ZeroDivisionError("by zero")
    assert [line.problems for line in lines] == [["ZeroDivisionError: by zero"]] * 2


def test_a_problem_of_one_record_fails_the_test() -> None:
    """The other record has no problem."""
    lines: list[Record] = []

    def run() -> None:
        with record_load_cases(lines.append, "L01", UNDISTURBED, State.BLOB_COLD, State.BLOB_CACHED) as (cold, cached):
            cold.seen = cached.seen = "much"
            cold.check(False, "too slow")

    with pytest.raises(AssertionError, match="too slow"):
        run()
    assert [line.problems for line in lines] == [["too slow"], []]


def test_an_empty_record_is_a_problem() -> None:
    """A record must say what was seen."""
    lines: list[Record] = []
    with pytest.raises(AssertionError), record_load_cases(lines.append, "L01", UNDISTURBED, State.BLOB_COLD):
        pass
    assert lines[0].problems == ["the record does not say what was seen"]


def test_an_unknown_case_cannot_be_kept() -> None:
    """No line is written that the page would not show."""
    lines: list[Record] = []
    with pytest.raises(KeyError), record_load_cases(lines.append, "L03", STEADY, State.BLOB_COLD):
        pass
    assert lines == []

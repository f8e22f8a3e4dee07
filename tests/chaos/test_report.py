"""The page for users is made from records and from the matrix, and no case counts as passed that has not run."""

from tests.chaos.engine.outcomes import describe
from tests.chaos.engine.records import Record
from tests.chaos.matrix import all_faults, cases_of
from tests.chaos.report import FAILED, PAGE, parse_page, write_page


def test_a_case_without_a_record_has_failed() -> None:
    """Each case has a line; those with a problem and those without a record have failed."""
    fault = all_faults()[0]
    cases = list(cases_of(fault))
    records = [Record(case, fault.title, describe(outcomes), seen="200", recovery_s=0.1) for case, outcomes in cases]
    records[1].problems.append("a problem")
    page = write_page([fault], records[:-1])
    assert list(parse_page(page)) == [case for case, _ in cases]
    assert page.count(f"| {FAILED}: a problem") == 1
    assert page.count(f"| {FAILED}: no record") == 1


def test_measurements_of_other_faults_are_kept() -> None:
    """Records of one fault do not change what was measured for the others."""
    first, second = all_faults()[:2]
    records = [
        Record(case, fault.title, describe(outcomes), seen=f"seen with {fault.id}", recovery_s=0.1)
        for fault in (first, second)
        for case, outcomes in cases_of(fault)
    ]
    before = write_page([first, second], records)
    case, outcomes = next(iter(cases_of(first)))
    after = write_page([first, second], [Record(case, first.title, describe(outcomes), seen="as expected")], before)
    kept, measured = parse_page(before), parse_page(after)
    assert measured[case].seen == "as expected"
    assert FAILED not in before
    assert [measured[each] for each, _ in cases_of(second)] == [kept[each] for each, _ in cases_of(second)]
    assert all(measured[each].seen == f"{FAILED}: no record" for each, _ in list(cases_of(first))[1:])


def test_the_page_has_a_line_for_every_case() -> None:
    """The page was made from a run of the whole matrix, in which no case failed."""
    page = PAGE.read_text()
    assert list(parse_page(page)) == [case for fault in all_faults() for case, _ in cases_of(fault)]
    assert FAILED not in page


def test_the_page_says_what_the_matrix_says() -> None:
    """Apart from the measured columns, the page is what the matrix makes it."""
    page = PAGE.read_text()
    assert write_page(all_faults(), [], page) == page

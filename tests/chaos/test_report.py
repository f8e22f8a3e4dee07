"""The page that users read is made of records, and takes nothing for passed that did not run."""

from tests.chaos.cells import Cell, Record, State
from tests.chaos.matrix import all_rows, cells_of
from tests.chaos.outcomes import describe
from tests.chaos.report import FAILED, PAGE, cells_in, split_page, write_page


def test_a_cell_without_a_record_has_failed() -> None:
    """Nothing is taken for passed that did not run."""
    row = all_rows()[0]
    cells = list(cells_of(row))
    records = [Record(cell, row.title, describe(outcomes), seen="200", recovery_s=0.1) for cell, outcomes in cells]
    records[1].problems.append("a problem")
    page = write_page([row], records[:-1])
    assert cells_in(page) == [cell for cell, _ in cells]
    assert page.count(f"| {FAILED}: a problem") == 1
    assert page.count(f"| {FAILED}: no record") == 1


def test_other_sections_stay() -> None:
    """Records of one fault leave what is said of the others as it is."""
    first, second = all_rows()[:2]
    cell, outcomes = next(iter(cells_of(first)))
    before = write_page([first, second], [])
    after = write_page([first, second], [Record(cell, first.title, describe(outcomes), seen="as expected")], before)
    assert split_page(after)[second.id] == split_page(before)[second.id]
    assert "as expected" in split_page(after)[first.id]
    assert Cell(first.id, cell.variant, State(cell.state)) in cells_in(after)


def test_the_page_has_a_line_for_every_cell() -> None:
    """The page that is read was made of a run of the whole matrix, and nothing failed in it."""
    page = PAGE.read_text()
    assert cells_in(page) == [cell for row in all_rows() for cell, _ in cells_of(row)]
    assert FAILED not in page

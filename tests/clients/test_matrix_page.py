"""The page of what each client does has all rows, and says of no closed way that it asks the registry."""

from pathlib import Path

import pytest

from tests.clients.matrix_page import FRONTS, PAGE, STATES, VERSION, parse_page, read_rows, record, write_page
from tests.clients.ways import ROWS, Row


def test_the_page_has_all_rows_in_their_order() -> None:
    """It is what would be written from its own cells."""
    cells = read_rows()
    assert list(cells) == [row.key for row in ROWS]
    assert PAGE.read_text() == write_page(cells)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_a_row_has_all_cells(row: Row) -> None:
    """Every pull is right, and only open ways ask the registry, after a 404 and while Dockyard is down."""
    cells = read_rows()[row.key]
    after_error = "asks the registry" if row.form == "open" else "fails"
    right = dict.fromkeys((*STATES, *FRONTS), "right")
    assert cells == right | {"wrong tag": after_error, "Dockyard down": after_error, VERSION: cells[VERSION]}
    assert cells[VERSION]


def test_cells_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Those of one row; others are kept."""
    page = tmp_path / "page.md"
    record(ROWS[0].key, {"cold": "right", FRONTS[1]: "right", VERSION: "1.2.3"}, page)
    record(ROWS[-1].key, {"cold": "fails"}, page)
    cells = parse_page(page.read_text())
    assert cells[ROWS[0].key]["cold"] == cells[ROWS[0].key][FRONTS[1]] == "right"
    assert cells[ROWS[0].key][VERSION] == "1.2.3"
    assert cells[ROWS[-1].key]["cold"] == "fails"

"""The reference of settings: the page in `ops/` is what the code generates, and is complete."""

import re

from dockyard.config.loader import load, show
from dockyard.config.reference import make_page
from tests.support.paths import ROOT

PAGE = ROOT / "ops" / "SETTINGS.md"


def rows() -> list[list[str]]:
    """The cells of all keys."""
    return [line.strip("| ").split(" | ") for line in make_page().splitlines() if line.startswith("| `")]


def test_the_page_is_what_the_code_generates() -> None:
    """Run `python -m dockyard.config.reference ops/SETTINGS.md` after a change of `dockyard/config/settings.py`."""
    assert PAGE.read_text(encoding="utf-8") == make_page()


def test_the_page_has_each_key_with_type_default_and_meaning() -> None:
    """No key that `dockyard config` prints is missing, and no cell is empty."""
    names = {re.split(r"[.\]]+", row[0].strip("`"))[-1] for row in rows()}
    printed = {line.strip(" -").partition(":")[0] for line in show(load(None, {})).splitlines()}

    assert printed - names == {"logger", "server", "log", "storage", "upstream", "upstreams", "auth"}
    assert {len(row) for row in rows()} == {4, 5}
    assert [row for row in rows() if not all(cell.strip() for cell in row)] == []


def test_the_page_has_the_environment_variable_of_each_key_outside_lists() -> None:
    """Keys in a list have none."""
    assert {"`DOCKYARD_SERVER_LOG_IGNORE_PATHS`", "`DOCKYARD_STORAGE_SECRET_KEY`"} <= {row[3] for row in rows()}
    assert [row[0] for row in rows() if len(row) == 4 and not row[0].startswith("`upstreams[].")] == []

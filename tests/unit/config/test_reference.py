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

    assert printed - names == {"logger", "server", "log", "storage", "upstream", "upstreams", "auth"}  # the sections
    assert {len(row) for row in rows()} == {4, 5}
    assert [row for row in rows() if not all(cell.strip() for cell in row)] == []


def test_the_page_has_the_environment_variable_of_each_key_outside_lists() -> None:
    """Keys in a list of sections have none, and the list itself has none."""
    variables = {row[0].strip("`"): row[3].strip("`") for row in rows() if len(row) == 5}

    assert variables["server.log.ignore_paths"] == "DOCKYARD_SERVER_LOG_IGNORE_PATHS"
    assert variables["storage.secret_key"] == "DOCKYARD_STORAGE_SECRET_KEY"
    assert {key for key, variable in variables.items() if variable == "none"} == {
        "access.jwt",
        "access.networks",
        "access.groups",
        "access.rules",
    }
    assert [row[0] for row in rows() if (len(row) == 4) != ("[]." in row[0])] == []


def test_a_list_of_sections_in_a_section_has_its_own_table() -> None:
    """The keys of `access.rules` are below a heading of their own, to which the row of the list links."""
    page = make_page()
    _, found, table = page.partition("\n## access.rules[]\n")

    assert found
    assert "\n| `access.rules[].repositories` | list | empty |" in table.partition("\n## ")[0]
    assert "\n| `access.rules` | [list](#accessrules) | empty | none |" in page
    keys = [row[0] for row in rows()]
    assert len(set(keys)) == len(keys)

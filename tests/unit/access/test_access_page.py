"""The examples of rules in `ops/ACCESS.md` decide as the tables below them say."""

import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from dockyard.access.principals import Principal
from dockyard.access.rules import Action, Rules, find_groups
from dockyard.config.loader import load_all
from dockyard.config.settings import AccessSettings, Settings
from dockyard.oci.reference import Name
from tests.support.paths import ROOT

PAGE = (ROOT / "ops" / "ACCESS.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- rules -->\n```yaml\n(.*?)```\n\n\|[^\n]*\n\|[-|]*\n(.*?)\n\n", PAGE, re.DOTALL)


@attrs.frozen
class Row:
    """A line of a table."""

    client: str
    action: Action
    repository: str
    decision: str
    rule: str

    def principal(self, access: AccessSettings) -> Principal:
        """The client as it is written: a name, `from network:NAME`, or `without a login`."""
        if self.client == "without a login":
            return Principal()
        if self.client.startswith("from network:"):
            return Principal(networks=frozenset({self.client.removeprefix("from network:")}))
        source = "jwt" if ":" in self.client else "htpasswd"
        return Principal(self.client, find_groups(access.groups, self.client, source), source=source)


def rows(table: str) -> Iterator[Row]:
    """The lines of a table."""
    for line in table.splitlines():
        client, action, repository, decision, rule = (cell.strip(" `") for cell in line.strip("|").split("|"))
        yield Row(client, Action(action), repository, decision, rule)


def load_example(text: str, path: Path) -> Settings:
    """The settings of an example, whose htpasswd file does not exist here."""
    path.write_text(text)
    loaded = load_all(path, {})
    assert [error for error in loaded.errors if not error.startswith("access.htpasswd = ")] == []
    return loaded.settings


def test_the_page_has_examples() -> None:
    """Each has a table."""
    assert len(EXAMPLES) == PAGE.count("<!-- rules -->") >= 2


@pytest.mark.parametrize(("text", "table"), EXAMPLES)
def test_the_examples_decide_as_their_tables_say(text: str, table: str, tmp_path: Path) -> None:
    """Row by row; and each rule decides in a row at least once."""
    settings = load_example(text, tmp_path / "config.yaml")
    rules = Rules(settings.access, settings.upstreams)
    decided = set()
    for row in rows(table):
        name = Name.parse(row.repository) if row.repository else None
        decision = rules.decide(row.principal(settings.access), row.action, name)
        written = "allowed" if decision.is_allowed else "hidden" if decision.is_hidden else "denied"
        assert (row, written, decision.rule) == (row, row.decision, row.rule)
        decided.add(decision.rule)
    assert {f"rules[{index}]" for index in range(len(settings.access.rules))} <= decided

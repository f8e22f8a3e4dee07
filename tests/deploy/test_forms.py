"""The forms for issues: GitHub shows them only if they follow its schema, and they ask for what a report needs.

https://docs.github.com/en/communities/using-templates-to-encourage-useful-issues-and-pull-requests/syntax-for-issue-forms
"""

import re
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
FORM_KEYS = {"name", "description", "title", "labels", "assignees", "projects", "type", "body"}
# For each type of field: the attributes that it must have, and those that it may have.
ATTRIBUTES = {
    "markdown": ({"value"}, set[str]()),
    "input": ({"label"}, {"description", "placeholder", "value"}),
    "textarea": ({"label"}, {"description", "placeholder", "value", "render"}),
    "dropdown": ({"label", "options"}, {"description", "multiple", "default"}),
    "checkboxes": ({"label", "options"}, {"description"}),
}


def read_form(name: str) -> dict[str, Any]:
    """The content of a form."""
    form = yaml.safe_load((FORMS / name).read_text())
    assert isinstance(form, dict)
    return form


def find_mistakes(form: dict[str, Any]) -> list[str]:
    """What GitHub would reject: keys, types, attributes, and ids and labels that are used twice."""
    mistakes = [f"unknown key {key}" for key in form.keys() - FORM_KEYS]
    mistakes += [f"no {key}" for key in ("name", "description", "body") if not form.get(key)]
    fields = form.get("body", [])
    for field in fields:
        allowed = {"type", "attributes"} if field["type"] == "markdown" else {"type", "attributes", "id", "validations"}
        required, optional = ATTRIBUTES[field["type"]]
        found = field["attributes"].keys()
        mistakes += [f"unknown key {key} of a field" for key in field.keys() - allowed]
        mistakes += [f"no attribute {key}" for key in required - found]
        mistakes += [f"unknown attribute {key}" for key in found - required - optional]
        options = field["attributes"].get("options", [])
        if len(options) != len(set(map(str, options))):
            mistakes.append(f"options of {field['attributes']['label']} are used twice")
        if set(field.get("validations", {"required": True})) != {"required"}:
            mistakes.append("unknown validation")
        if not re.fullmatch(r"[\w-]+", field.get("id", "none")):
            mistakes.append(f"id {field['id']}")
    for values in (
        [field["id"] for field in fields if "id" in field],
        [field["attributes"]["label"] for field in fields if "label" in field["attributes"]],
    ):
        mistakes += [f"{value} is used twice" for value in set(values) if values.count(value) > 1]
    if all(field["type"] == "markdown" for field in fields):
        mistakes.append("no field to fill in")
    return mistakes


@pytest.mark.parametrize("name", ["bug_report.yml", "feature_request.yml"])
def test_github_accepts_the_form(name: str) -> None:
    """Each form follows the schema."""
    assert find_mistakes(read_form(name)) == []


def test_a_mistake_is_found() -> None:
    """The test above can fail."""
    field = {"type": "input", "id": "a b", "attributes": {"label": "Version", "render": "text"}}
    assert find_mistakes({"name": "n", "description": "d", "boddy": [], "body": [field, field]}) == [
        "unknown key boddy",
        *(["unknown attribute render", "id a b"] * 2),
        "a b is used twice",
        "Version is used twice",
    ]


def test_a_bug_report_has_what_a_diagnosis_needs() -> None:
    """The version, the output of `dockyard check`, the log and how the server runs, all of them required."""
    fields = {field["id"]: field for field in read_form("bug_report.yml")["body"] if "id" in field}
    required = {name for name, field in fields.items() if field.get("validations", {}).get("required")}
    assert {"version", "check", "log", "runs"} <= required
    assert "dockyard check" in fields["check"]["attributes"]["description"]


def test_vulnerabilities_are_reported_privately() -> None:
    """The bug form names SECURITY.md, which names no address that does not exist."""
    text = (ROOT / "SECURITY.md").read_text()
    assert "SECURITY.md" in str(read_form("bug_report.yml")["body"][0])
    assert "private vulnerability reporting" in text
    assert not re.search(r"\S@\S|example\.(com|org)", text)

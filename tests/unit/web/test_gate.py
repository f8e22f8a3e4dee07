"""The gate: it alone can route."""

import ast

from tests.support.paths import ROOT


def test_only_the_gate_has_a_router() -> None:
    """So that no handler gets a target, and with it content, without the gate."""
    users = []
    for path in (ROOT / "dockyard").rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(function, ast.Name) and function.id == "Router" for function in calls):
            users.append(str(path.relative_to(ROOT)))
    assert users == ["dockyard/web/gate.py"]

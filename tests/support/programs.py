"""Which real servers and clients this machine has: asked of `ops/test_servers.py`."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import attrs
import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "ops" / "test_servers.py"
FIND_LIMIT_S = 3600.0  # the first time, servers are built from source


@attrs.frozen
class Programs:
    """Paths of the programs that can be had, and the reasons for those that cannot; each is asked for when needed."""

    _answers: dict[str, Mapping[str, str]] = attrs.field(factory=dict, init=False)

    def need(self, name: str, *, as_root: bool = False) -> Path:
        """Return the path of a program. Without it the running test is skipped; on CI it fails."""
        if name not in self._answers:
            self._answers[name] = _ask(name)
        answer = self._answers[name]
        if "missing" in answer:
            cannot_run(answer["missing"])
        if as_root and os.geteuid() != 0:
            cannot_run(f"{name} unpacks images only as root")
        return Path(answer["path"])


def _ask(name: str) -> Mapping[str, str]:
    environ = {**os.environ, "CI": ""}  # what is missing is said by the test that needs it
    asked = subprocess.run(
        [sys.executable, SCRIPT, "--json", name],
        stdout=subprocess.PIPE,
        env=environ,
        timeout=FIND_LIMIT_S,
        check=True,
    )
    return dict(json.loads(asked.stdout)[name])


def cannot_run(reason: str) -> NoReturn:
    """Skip the running test; on CI it fails."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)

"""The programs that the measurements need: found on PATH, or built, by `ops/test_servers.py`.

A build that failed is not tried again before its mark in the cache directory is removed: registries that refuse once
refuse always.
"""

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import attrs

SCRIPT = Path(__file__).parents[2] / "ops" / "test_servers.py"
URL = re.compile(r"https?://\S+")


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("test_servers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["test_servers"] = module
    spec.loader.exec_module(module)
    return module


@attrs.frozen
class Had:
    """A program: where it is and what it says of its version; or no path, and the reason."""

    path: Path | None
    said: str


class Programs:
    """Every program by name, looked for once."""

    def __init__(self) -> None:
        self._finder = _load()
        self._known = {program.name: program for program in self._finder.PROGRAMS}
        for program in (
            self._finder.Program("docker-registry", package="docker-registry"),
            self._finder.Program("zot", module="zotregistry.io/zot", command="cmd/zot", version="v1.4.3"),
        ):
            self._known[program.name] = program
        self._had: dict[str, Had] = {}

    def find(self, name: str) -> Had:
        if name not in self._had:
            self._had[name] = self._look(name)
        return self._had[name]

    def need(self, name: str) -> Path:
        """The path of a program without which nothing can be measured."""
        had = self.find(name)
        if had.path is None:
            raise SystemExit(had.said)
        return had.path

    def _look(self, name: str) -> Had:
        if name == "wrk":  # it has no option that says its version and succeeds
            on_path = shutil.which(name)
            return Had(Path(on_path), "wrk") if on_path else Had(None, "wrk is not on PATH (Debian package wrk)")
        program = self._known[name]
        cache = self._finder.cache_directory()
        refused = cache / f"{name}-{program.version}.failed"
        if program.module and refused.exists():
            return Had(None, refused.read_text())
        answer = self._finder.find(program, cache)
        if isinstance(answer, self._finder.Found):
            return Had(answer.path, answer.version)
        reason = URL.sub("the module proxy:", answer.reason)
        if program.module:
            refused.parent.mkdir(parents=True, exist_ok=True)
            refused.write_text(reason)
        return Had(None, reason)

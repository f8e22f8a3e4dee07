"""The programs for the benchmarks: found on PATH, or built, by `ops/test_servers.py`.

A failed build is recorded in a file in the cache directory, and not attempted again until that file is deleted.
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
class ProgramResult:
    """The path of a program and its version; or no path, and the reason."""

    path: Path | None
    version: str = ""
    reason: str = ""


class Programs:
    """All programs by name. Each is searched for once."""

    def __init__(self) -> None:
        self._finder = _load()
        self._known = {program.name: program for program in self._finder.PROGRAMS}
        for program in (
            self._finder.Program("docker-registry", package="docker-registry"),
            self._finder.Program("zot", module="zotregistry.io/zot", command="cmd/zot", version="v1.4.3"),
        ):
            self._known[program.name] = program
        self._results: dict[str, ProgramResult] = {}

    def find(self, name: str) -> ProgramResult:
        if name not in self._results:
            self._results[name] = self._search(name)
        return self._results[name]

    def need(self, name: str) -> Path:
        """The path of a required program. Exits with the reason if it is not available."""
        result = self.find(name)
        if result.path is None:
            raise SystemExit(result.reason)
        return result.path

    def _search(self, name: str) -> ProgramResult:
        if name == "wrk":  # it has no option that prints its version and exits with status 0
            on_path = shutil.which(name)
            if on_path:
                return ProgramResult(Path(on_path), version="wrk")
            return ProgramResult(None, reason="wrk is not on PATH (Debian package wrk)")
        program = self._known[name]
        cache = self._finder.cache_directory()
        failure_file = cache / f"{name}-{program.version}.failed"
        if program.module and failure_file.exists():
            return ProgramResult(None, reason=failure_file.read_text())
        found = self._finder.find(program, cache)
        if isinstance(found, self._finder.Found):
            return ProgramResult(found.path, found.version)
        reason = URL.sub("the module proxy:", found.reason)
        if program.module:
            failure_file.parent.mkdir(parents=True, exist_ok=True)
            failure_file.write_text(reason)
        return ProgramResult(None, reason=reason)

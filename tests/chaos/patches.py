"""Constants of Dockyard that no setting reaches, changed in its processes: a module that Python imports by itself."""

from pathlib import Path

from tests.support.paths import ROOT


def patched(directory: Path, code: str) -> dict[str, str]:
    """Write the code where the processes find it; their environment."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{directory}:{ROOT}"}

"""Change constants of Dockyard that have no setting, by a `sitecustomize` module, which Python imports at start."""

from pathlib import Path

from tests.support.paths import ROOT


def install_patch(directory: Path, code: str) -> dict[str, str]:
    """Write the module to a directory; the environment of a process that imports it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{directory}:{ROOT}"}

"""Bugs that are put into Dockyard from outside, to see that the matrix finds them.

Each is a directory with a `sitecustomize`, which Python runs at the start of every process that has the directory on
its path: there, and in the workers forked from it, Dockyard is one with that bug.
"""

from pathlib import Path

HERE = Path(__file__).parent


def environ_of(name: str) -> dict[str, str]:
    """The environment of a Dockyard that has the bug."""
    directory = HERE / name
    assert (directory / "sitecustomize.py").is_file(), f"no such bug: {name}"
    return {"PYTHONPATH": str(directory)}

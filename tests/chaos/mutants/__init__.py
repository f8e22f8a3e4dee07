"""Mutants: bugs that are put into Dockyard from outside, to see that the matrix finds them.

Each is a directory with a `sitecustomize` module, which Python imports at the start of every process that has the
directory on its path. Workers that are forked from such a process have the bug, too.
"""

from pathlib import Path

DIRECTORY = Path(__file__).parent


def environ_of(mutant: str) -> dict[str, str]:
    """The environment of a Dockyard that has the bug."""
    directory = DIRECTORY / mutant
    assert (directory / "sitecustomize.py").is_file(), f"no such mutant: {mutant}"
    return {"PYTHONPATH": str(directory)}

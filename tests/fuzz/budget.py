"""How long the fuzz tests run: what is quick enough for each run of the tests, times `DOCKYARD_FUZZ_TIMES`."""

import os


def runs(usual: int) -> int:
    """How many examples a test has."""
    return usual * int(os.environ.get("DOCKYARD_FUZZ_TIMES", "1"))

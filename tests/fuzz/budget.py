"""How many examples the fuzz tests try: few enough for each run, times `DOCKYARD_FUZZ_TIMES`."""

import os


def runs(usual: int) -> int:
    """The number of examples of a test."""
    return usual * int(os.environ.get("DOCKYARD_FUZZ_TIMES", "1"))

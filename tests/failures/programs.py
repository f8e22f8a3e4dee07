"""Run the command line: until it ends, or, for a server that starts, until it has logged what it starts with."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.processes import Process, descendants, kill_leftovers, wait_until

ENDED_WITHIN_S = 60.0


def run(
    directory: Path,
    arguments: Sequence[str],
    environ: Mapping[str, str] | None = None,
    *,
    is_seen: Callable[[str], bool] = lambda _: False,
    wrapper: Sequence[str] = (),
    stdout: Path | None = None,
) -> str:
    """Run `dockyard` in a directory until it ends, or until `is_seen` is true of its output; return that.

    With `stdout`, standard output goes to that file, and is not part of the result.
    """
    log = directory / "output.log"
    process = Process.start(
        ["env", "-C", str(directory), *wrapper, sys.executable, "-m", "dockyard", *arguments],
        log=log,
        output=stdout,
        environ={"PATH": os.environ["PATH"], "HOME": str(directory), "NO_COLOR": "1", **(environ or {})},
    )
    try:
        wait_until(
            lambda: not process.is_running or is_seen(log.read_text(errors="replace")),
            "end of the program, or the line",
            ENDED_WITHIN_S,
        )
        return log.read_text(errors="replace")
    finally:
        started = descendants(process.pid)
        if process.is_running:
            process.end()
        kill_leftovers(started)


def warnings_and_errors(output: str) -> list[str]:
    """The lines of a log that an operator looks for."""
    return [line for line in output.splitlines() if line[25:30] in ("warn ", "error")]

"""Run a program that operators use on a file of ops/."""

import os
import subprocess
from pathlib import Path

from tests.support.busy_machine import EVENT_TIMEOUT_S


def run(*argv: str | Path, text: str | None = None, fails: bool = False) -> str:
    """Run the program and return its output; with `fails` it must fail, otherwise succeed."""
    done = subprocess.run(
        argv,
        input=text or "",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=EVENT_TIMEOUT_S,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LC_ALL": "C.UTF-8"},
    )
    assert (done.returncode != 0) == fails, f"{argv} -> {done.returncode}\n{done.stdout}"
    return done.stdout

"""The real servers and clients of this machine, found by `ops/test_servers.py`."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import attrs
import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "ops" / "test_servers.py"
NEED_ROOT_MOUNT = {"dockerd", "dockerd-29", "podman"}
FIND_TIMEOUT_S = 3600.0  # the first time, servers are built from source


@attrs.frozen
class Programs:
    """Paths of the available programs, and why others are missing; each is looked up when it is first needed."""

    _found: dict[str, Mapping[str, str]] = attrs.field(factory=dict, init=False)

    def need(self, name: str, *, as_root: bool = False) -> Path:
        """Return the path of a program. Without it the running test is skipped; on CI it fails."""
        if name not in self._found:
            self._found[name] = find_program(name)
        found = self._found[name]
        if "missing" in found:
            cannot_run(found["missing"])
        if as_root and os.geteuid() != 0:
            cannot_run(f"{name} works only as root")
        if (name in NEED_ROOT_MOUNT or (name == "image-library" and as_root)) and not is_root_a_mount_point():
            cannot_run(f"{name} unpacks images only where / is a mount point, which it is not in a plain chroot")
        return Path(found["path"])

    def version(self, name: str) -> str:
        """Return the version of a program that is available: its number, with a `v` if the module has one."""
        text = self._found[name]["version"]
        found = re.search(r"v?\d+\.\d+[\w.~+-]*", text)
        return found[0] if found else text


def is_root_a_mount_point() -> bool:
    """Return whether `/` is where a file system is mounted: not in a plain chroot."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == "/" for line in mounts)


def find_program(name: str) -> Mapping[str, str]:
    """Find or build a program: its `path` and `version`, or the reason why it is `missing`."""
    environ = {**os.environ, "CI": ""}  # the test that needs the program reports that it is missing
    process = subprocess.run(
        [sys.executable, SCRIPT, "--json", name],
        stdout=subprocess.PIPE,
        env=environ,
        timeout=FIND_TIMEOUT_S,
        check=True,
    )
    return dict(json.loads(process.stdout)[name])


def need_on_path(name: str) -> None:
    """Skip the running test without a program that has a Debian package of the same name; on CI it fails."""
    if shutil.which(name) is None:
        cannot_run(f"{name} is not on PATH: apt-get install {name}")


def need_root(what: str) -> None:
    """Skip the running test for an ordinary user; on CI it fails. `what` needs root."""
    if os.geteuid() != 0:
        cannot_run(f"{what} needs root")


def cannot_run(reason: str) -> NoReturn:
    """Skip the running test; on CI it fails."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)

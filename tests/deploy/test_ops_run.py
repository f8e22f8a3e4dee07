"""`ops/run` finds Python, installs Dockyard once and becomes the server; without Python it says what to install."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import Process, free_port

TOOLS = ("cat", "cksum", "dirname", "env", "flock", "id", "readlink", "rm", "sed", "sh")
INSTALL_LIMIT_S = 300.0
NEEDS = ("dockyard", "ops/run", "ops/venv.sh", "pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.timeout(2 * INSTALL_LIMIT_S)


class FakeSystem:
    """A PATH with few tools, and the Pythons and packages that a test adds."""

    def __init__(self, directory: Path, candidates: Mapping[str, str] | None, user: int = 0) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        for name in TOOLS:
            (self.bin / name).symlink_to(str(shutil.which(name)))
        self.put("id", f"echo {user}")
        if candidates is not None:
            known = "".join(
                f"{name}) printf '{name}:\\n  Installed: (none)\\n  Candidate: {version}\\n' ;;\n"
                for name, version in candidates.items()
            )
            self.put("apt-cache", f'case "$2" in\n{known}esac')
        checkout = directory / "checkout"
        (checkout / "ops").mkdir(parents=True)
        for name in ("ops/run", "ops/venv.sh", "pyproject.toml"):
            shutil.copy(ROOT / name, checkout / name)
        self._script = checkout / "ops" / "run"

    def put(self, name: str, text: str) -> None:
        """Add a program."""
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    def put_python(self, name: str, minor: int, *, has_venv: bool) -> None:
        """Add a Python whose virtual environments have only a program that prints its version."""
        self.put(
            name,
            f"""case "$*" in
            *"version_info[:2]"*) echo 3.{minor} ;;
            *version_info*) exit {int(minor < 11)} ;;
            *ensurepip*) exit {int(not has_venv)} ;;
            --version) echo Python 3.{minor}.0 ;;
            "-m venv "*) echo "made with 3.{minor}"; exit 7 ;;
            esac""",
        )

    def run(self) -> subprocess.CompletedProcess[str]:
        """Run `ops/run`."""
        return subprocess.run(
            [self._script], env={"PATH": str(self.bin)}, capture_output=True, text=True, timeout=60, check=False
        )


TRIXIE = {"python3": "3.13.5-1", "python3-venv": "3.13.5-1", "python3.13-venv": "3.13.5-2"}
JAMMY = {"python3": "3.10.6-1~22.04.1", "python3-venv": "3.10.6-1~22.04.1", "python3.11-venv": "3.11.0~rc1-1~22.04"}
BULLSEYE = {"python3": "3.9.2-3", "python3-venv": "3.9.2-3"}


@pytest.mark.parametrize(
    ("candidates", "pythons", "problem", "cure"),
    [
        (TRIXIE, {}, "there is no python3 on PATH", "run: apt-get install python3-venv"),
        ({}, {}, "there is no python3 on PATH", "run: apt-get update && apt-get install python3-venv"),
        (None, {}, "there is no python3 on PATH", "install Python 3.11 or newer with its modules venv and ensurepip"),
        (TRIXIE, {"python3": 13}, "python3 cannot make a virtual environment", "run: apt-get install python3-venv"),
        (TRIXIE, {"python3": 9}, "python3 is Python 3.9", "run: apt-get install python3-venv"),
        (JAMMY, {"python3": 10}, "python3 is Python 3.10", "run: apt-get install python3.11-venv"),
        (
            JAMMY,
            {"python3": 10, "python3.11": 11},
            "python3.11 cannot make a virtual environment",
            "run: apt-get install python3.11-venv",
        ),
        (BULLSEYE, {"python3": 9}, "python3 is Python 3.9", "this system has no package of a newer one"),
    ],
)
def test_one_line_says_what_to_install(
    tmp_path: Path, candidates: Mapping[str, str] | None, pythons: Mapping[str, int], problem: str, cure: str
) -> None:
    """The command is one that this system can run."""
    system = FakeSystem(tmp_path, candidates)
    for name, minor in pythons.items():
        system.put_python(name, minor, has_venv=False)
    done = system.run()
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("ops/run: ")
    assert problem in line
    assert cure in line


def test_an_ordinary_user_gets_a_command_for_root(tmp_path: Path) -> None:
    """Only root installs packages: by sudo, if that is installed."""
    system = FakeSystem(tmp_path, TRIXIE, user=1000)
    assert "run as root: apt-get install python3-venv\n" in system.run().stderr
    system.put("sudo", "exit 1")
    assert "run: sudo apt-get install python3-venv\n" in system.run().stderr


@pytest.mark.parametrize(
    ("pythons", "used"),
    [
        ({"python3": (11, True), "python3.12": (12, True), "python3.14": (14, True)}, 14),
        ({"python3": (11, True), "python3.14": (14, False)}, 11),
        ({"python3": (9, True), "python3.12": (12, True)}, 12),
    ],
)
def test_the_newest_usable_python_is_used(tmp_path: Path, pythons: Mapping[str, tuple[int, bool]], used: int) -> None:
    """One that cannot make virtual environments is passed over."""
    system = FakeSystem(tmp_path, TRIXIE)
    for name, (minor, has_venv) in pythons.items():
        system.put_python(name, minor, has_venv=has_venv)
    done = system.run()
    assert f"with Python 3.{used}.0" in done.stderr
    assert done.stdout == f"made with 3.{used}\n"
    assert "cannot make" in done.stderr
    assert done.returncode == 1


def _copy_checkout(directory: Path) -> Path:
    for name in NEEDS:
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    return directory / "ops" / "run"


def _run(script: Path, *arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [script, *arguments],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=INSTALL_LIMIT_S,
        check=False,
    )


def test_it_installs_once_repairs_what_was_interrupted_and_becomes_the_server(tmp_path: Path) -> None:
    """In a path with spaces, from another directory, through a link, with another virtual environment active."""
    script = _copy_checkout(tmp_path / "a checkout")
    link = tmp_path / "link"
    link.symlink_to(script)
    offline = {"PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    venv = tmp_path / "a checkout" / ".venv"

    (venv / "bin").mkdir(parents=True)  # what an interrupted `python -m venv` leaves behind
    (venv / "bin" / "python").symlink_to("/nonexistent/python")
    failed = _run(link, cwd=tmp_path, **offline)
    assert failed.returncode == 1
    assert "ops/run: cannot install Dockyard: the error of pip is above" in failed.stderr
    installed = _run(link, "--help", cwd=tmp_path, VIRTUAL_ENV=sys.prefix, PYTHONHOME="/nonexistent")
    assert "ops/run: installing Dockyard" in installed.stderr
    assert installed.stdout.startswith("Usage: dockyard server")
    assert (venv / "bin" / "dockyard").exists()

    again = _run(link, "--help", cwd=tmp_path, **offline)
    assert (again.returncode, again.stderr) == (0, "")
    (tmp_path / "wrong.yaml").write_text("server: {port: 70000}\n")
    assert _run(link, "-c", "wrong.yaml", cwd=tmp_path, **offline).returncode == 2  # the status of the server

    port = free_port()
    environ = {
        **os.environ,
        **offline,
        "DOCKYARD_SERVER_HOST": "127.0.0.1",
        "DOCKYARD_SERVER_PORT": str(port),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    process = Process.start([link], log=tmp_path / "log", environ=environ)
    try:
        process.wait_until(lambda: f"docker pull 127.0.0.1:{port}/docker.io/" in process.tail(), "listening", 60)
    finally:
        status = process.end(signal.SIGINT, 60)
    assert status == 0, process.tail()

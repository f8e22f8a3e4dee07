"""The script that finds or builds test servers: it says why a program is missing, and fails only on CI."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.paths import ROOT

SCRIPT = ROOT / "ops" / "test_servers.py"


def run(tmp_path: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a PATH that contains only what the test put there."""
    return subprocess.run(
        [sys.executable, SCRIPT, *words],
        env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), **environ},
        capture_output=True,
        text=True,
        timeout=EVENT_TIMEOUT_S,
        check=False,
    )


def put(path: Path, prints: str) -> None:
    """Write a program that prints one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{prints}'\n")
    path.chmod(0o755)


def test_a_missing_client_is_reported_with_the_reason(tmp_path: Path) -> None:
    """Outside of CI a missing client is no failure."""
    done = run(tmp_path, "podman")
    assert done.returncode == 0
    assert "podman is not on PATH (Debian package podman)" in done.stdout


@pytest.mark.parametrize(("words", "environ"), [(["--require-all"], {}), ([], {"CI": "true"})])
def test_a_missing_client_fails_where_all_are_required(
    tmp_path: Path, words: list[str], environ: dict[str, str]
) -> None:
    """On CI no program may be missing."""
    assert run(tmp_path, "podman", *words, **environ).returncode == 1


def test_a_program_on_path_is_used(tmp_path: Path) -> None:
    """A program of this machine is not built again."""
    put(tmp_path / "bin" / "crane", "0.20.1")
    found = json.loads(run(tmp_path, "crane", "--json").stdout)
    assert found == {"crane": {"path": str(tmp_path / "bin" / "crane"), "version": "0.20.1"}}


def test_another_program_of_the_same_name_is_not_used(tmp_path: Path) -> None:
    """`registry` is a common name: its version output decides, and the one built before is found."""
    put(tmp_path / "bin" / "registry", "npm registry 1.0")
    built = tmp_path / "cache" / "dockyard-test-servers" / "registry-v3.1.1" / "registry"
    put(built, "registry github.com/distribution/distribution/v3 v3.1.1")
    found = json.loads(run(tmp_path, "registry", "--json", XDG_CACHE_HOME=str(tmp_path / "cache")).stdout)
    assert found["registry"]["path"] == str(built)


def test_a_failed_build_is_reported_as_the_reason(tmp_path: Path) -> None:
    """The last line of the build output says why, and no incomplete program is left behind."""
    put(tmp_path / "bin" / "go", "go version go1.26.8 linux/amd64")
    (tmp_path / "bin" / "go").write_text(
        '#!/bin/sh\n[ "$1" = version ] && echo "go version go1.26.8 linux/amd64" && exit\necho no route >&2\nexit 3\n'
    )
    done = run(tmp_path, "crane", XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "could not be built" in done.stdout
    assert "exited 3: no route" in done.stdout
    assert not (tmp_path / "cache" / "dockyard-test-servers" / "crane-v0.21.6").exists()

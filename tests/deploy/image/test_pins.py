"""The inputs of the image are pinned: base images by digest, Python and Go packages by version and hash."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

LOCKS = ("dockyard", "build")
PIN = re.compile(
    r"^(?P<name>[a-z0-9-]+)==(?P<version>\S+)(?: ; (?P<marker>.+?))?(?P<hashes>(?: --hash=sha256:[0-9a-f]{64})+)$"
)
PYTHON = "3.13"
DOWNLOAD_LIMIT_S = 300
GLIBC = (
    "manylinux_2_28",
    "manylinux_2_26",
    "manylinux_2_17",
    "manylinux2014",
)  # as trixie accepts them, and older ones


def pins(lock: str) -> dict[str, str]:
    """The version of each package in a lock file; every line must be a version with its hashes."""
    text = (ROOT / "ops" / "image" / f"{lock}.txt").read_text().replace(" \\\n   ", "")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = [PIN.fullmatch(line) for line in lines]
    assert [line for line, match in zip(lines, found, strict=True) if match is None] == []
    return {match["name"]: match["version"] for match in found if match is not None}


def project() -> dict[str, dict[str, list[str]]]:
    """The content of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def unmet(requirements: list[str], lock: str) -> list[str]:
    """The requirements that a lock file does not meet."""
    pinned = pins(lock)
    parsed = [Requirement(each) for each in requirements]
    return [str(each) for each in parsed if pinned.get(canonicalize_name(each.name), "none") not in each.specifier]


def test_requirements_are_locked() -> None:
    """A requirement that changes in pyproject.toml changes the lock file too: `tox -e lock`."""
    assert unmet(project()["project"]["dependencies"], "dockyard") == []
    assert {"setproctitle", "uvloop"} <= pins("dockyard").keys(), "granian's extras"


def test_build_requirements_are_locked() -> None:
    """The build backend of pyproject.toml, and the tool that writes the bill of materials."""
    text = (ROOT / "ops" / "image" / "build.in").read_text()
    assert unmet(project()["build-system"]["requires"], "build") == []
    assert unmet([line for line in text.splitlines() if not line.startswith("#")], "build") == []


def test_an_unmet_requirement_is_found() -> None:
    """The two tests above can fail."""
    assert unmet(["falcon<4", "no-such-package>=1"], "dockyard") == ["falcon<4", "no-such-package>=1"]


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.timeout(DOWNLOAD_LIMIT_S + 20)
def test_there_are_wheels_for_both_platforms(tmp_path: Path, lock: str, architecture: str) -> None:
    """Each package has a wheel for both platforms, and its hash is in the lock file."""
    subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--require-hashes",
                "--no-deps",
                "--only-binary=:all:",
            ),
            *(f"--platform={glibc}_{architecture}" for glibc in GLIBC),
            *(f"--python-version={PYTHON}", f"--dest={tmp_path}"),
            f"--requirement={ROOT / 'ops' / 'image' / f'{lock}.txt'}",
        ],
        timeout=DOWNLOAD_LIMIT_S,
        check=True,
    )
    assert len(list(tmp_path.glob("*.whl"))) == len(pins(lock))


def test_base_images_are_pinned() -> None:
    """Every stage starts from another stage or from an argument whose default has a tag and a digest."""
    text = (ROOT / "Dockerfile").read_text()
    bases = dict(re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", text, re.MULTILINE))
    stages = re.findall(r"^FROM (?:--platform=\$BUILDPLATFORM )?(\S+)", text, re.MULTILINE)
    assert len(stages) == text.count("\nFROM ") == 3
    assert set(stages) == {f"${{{name}}}" for name in bases}
    for name, base in bases.items():
        assert re.fullmatch(r"docker\.io/library/\w+:[\w.-]+@sha256:[0-9a-f]{64}", base), name
    assert f"/python:{PYTHON}." in bases["PYTHON_IMAGE"]
    assert f"--python-version {PYTHON} " in (ROOT / "tox.ini").read_text()


def test_every_go_module_has_its_hash() -> None:
    """go.sum has each module of go.mod, and the build may change neither."""
    directory = ROOT / "ops" / "image" / "ecr-login"
    wanted = set(re.findall(r"^\t(\S+ v\S+)", (directory / "go.mod").read_text(), re.MULTILINE))
    hashed = set(re.findall(r"^(\S+ v[^/\s]+) h1:", (directory / "go.sum").read_text(), re.MULTILINE))
    assert len(wanted) >= 20
    assert wanted <= hashed
    assert "-mod=readonly" in (ROOT / "Dockerfile").read_text()

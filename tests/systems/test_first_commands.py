"""The first two commands of the README in a minimal Debian, as root and as an ordinary user.

The long form, with all systems and all tests, is `python -m tests.systems`.
"""

from pathlib import Path

import pytest

from ops.test_servers import cache_directory
from tests.support.fake_registry import FakeRegistry
from tests.support.programs import Programs
from tests.systems.first_hour import install_python, run_and_pull, run_tests
from tests.systems.minimal_system import RELEASES, USERS, copied, make_base

SYSTEM = "trixie"
LIMIT_S = 1200.0


@pytest.mark.timeout(3 * LIMIT_S)
@pytest.mark.parametrize("user", USERS)
def test_both_commands_work_on_a_minimal_system(
    user: str, programs: Programs, fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """`ops/run` says what to install, then it installs and serves; `ops/test` runs the tests that it is asked for."""
    debootstrap = programs.need("debootstrap", as_root=True)
    base = make_base(RELEASES[SYSTEM], cache_directory() / "systems", debootstrap)
    image = fake_registry.add_image("org/app", "v1")
    archives = base.parent / f"{SYSTEM}-archives"
    archives.mkdir(exist_ok=True)
    with copied(base, user, {"/var/cache/apt/archives": archives}) as system:
        assert install_python(system).endswith("apt-get install python3-venv")
        run_and_pull(system, fake_registry, image)
        run_and_pull(system, fake_registry, image, is_cached=True)
        log = tmp_path / "log"
        assert run_tests(system, ["-e", "tests", "--", "tests/unit/oci"], log, LIMIT_S) == 0, log.read_text()
        lines = log.read_text().splitlines()
        assert lines[0].startswith("ops/test: this takes up to ")
        assert lines[-1].strip().startswith("congratulations")

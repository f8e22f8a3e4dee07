"""A minimal system in which systemd runs, booted by systemd-nspawn. Its network is that of this machine."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.support.processes import Process, SetupError, children, wait_until
from tests.systems.minimal_system import CHECKOUT, MinimalSystem, registry_settings

INSTALL_LIMIT_S = 900.0
BOOT_LIMIT_S = 120.0
COMMAND_SOCKET = "run/systemd/private"  # of the first process
# systemd needs control groups of version 2, also where this machine has those of version 1. The group is removed when
# the system has ended.
BOOT = """
set -e
group=/sys/fs/cgroup/dockyard-$$
if [ "$(stat --file-system --format=%T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount --recursive /sys/fs/cgroup
    mount -t cgroup2 none /sys/fs/cgroup
fi
mkdir "$group"
echo $$ >"$group/cgroup.procs"
status=0
systemd-nspawn --quiet --directory "$0" --boot --register=no --keep-unit --link-journal=no --resolv-conf=off \
    --console=pipe || status=$?
echo $$ >/sys/fs/cgroup/cgroup.procs
find "$group" -depth -type d -exec rmdir {} +
exit $status
"""


class CannotBoot(Exception):
    """systemd-nspawn cannot boot a system on this machine. The message is the end of what it said."""


@attrs.frozen
class BootedSystem:
    """A system whose first process is `pid`, with this checkout in the home directory of root."""

    system: MinimalSystem
    pid: int

    def run(self, script: str, *, limit_s: float, fails: bool = False) -> str:
        """Run a shell script as root in the checkout, until its first error, and return its output."""
        variables = {
            "HOME": self.system.home,
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND": "noninteractive",
            **registry_settings(),
        }
        go_there = f'cd "{self.system.home}/{CHECKOUT}" && exec sh -e -s'
        done = subprocess.run(
            [
                *("nsenter", "--all", f"--target={self.pid}", "env", "--ignore-environment"),
                *(f"{name}={value}" for name, value in variables.items()),
                *("sh", "-c", go_there),
            ],
            input=script,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit_s,
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{script}-> {done.returncode}\n{done.stdout}"
        return done.stdout

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, such as ActiveState."""
        return self.run(f"systemctl show --property={name} --value {unit}", limit_s=30).strip()

    def journal(self, unit: str) -> list[str]:
        """The messages of a unit since the boot."""
        return self.run(f"journalctl --unit={unit} --output=cat --no-pager", limit_s=30).splitlines()


def install_systemd(system: MinimalSystem) -> None:
    """Install systemd as the first process of the system."""
    get = "apt-get update -qq && apt-get install -qq --yes --no-install-recommends systemd systemd-sysv dbus"
    environ = {"DEBIAN_FRONTEND": "noninteractive"}
    done = system.run("sh", "-c", get, limit_s=INSTALL_LIMIT_S, environ=environ, user="root")
    assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def booted(system: MinimalSystem, log: Path) -> Iterator[BootedSystem]:
    """Boot the system, and end all its processes afterwards. Raises CannotBoot."""
    words = ["unshare", "--mount", "--propagation=private", "sh", "-c", BOOT, str(system.root)]
    process = Process.start(words, log=log)
    try:
        first = _wait_for_first_process(process)
        booted_system = BootedSystem(system, first)
        try:
            booted_system.run("systemctl is-system-running --wait >/dev/null || true", limit_s=BOOT_LIMIT_S)
            yield booted_system
        finally:
            os.kill(first, signal.SIGKILL)  # and so all processes of its namespace
            wait_until(lambda: not process.is_running, "ended", BOOT_LIMIT_S)
    finally:
        process.end_all()


def _wait_for_first_process(process: Process) -> int:
    """Return the first process of the system when its systemd takes commands."""
    found: list[int] = []

    def has_booted() -> bool:
        processes = [first.pid for nspawn in children(process.pid) for first in children(nspawn.pid)]
        found[:] = [pid for pid in processes if Path("/proc", str(pid), "root", COMMAND_SOCKET).exists()]
        return bool(found)

    try:
        process.wait_until(has_booted, "booted", BOOT_LIMIT_S)
    except SetupError as exc:
        raise CannotBoot(str(exc)) from exc
    return found[0]

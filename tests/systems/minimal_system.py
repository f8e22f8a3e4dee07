"""A minimal system made by debootstrap, in which commands run as root or as an ordinary user.

The system has what `--variant=minbase` installs, and a copy of this checkout. A command has its own mount and pid
namespaces: its mounts and its processes end with it. The network is that of this machine.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import attrs

from tests.deploy.image.bases import GO_SETTINGS, PIP_SETTINGS, PROXY_SETTINGS
from tests.support.paths import ROOT
from tests.support.processes import SetupError

MAKE_LIMIT_S = 1800.0
MAKE_ATTEMPTS = 2  # a mirror fails now and then
MAX_REPORT_CHARACTERS = 2000
CERTIFICATE_SETTINGS = ("PIP_CERT", "SSL_CERT_FILE")  # of pip; of OpenSSL and Go
MADE_HERE = (".git", ".venv", ".tox", ".*_cache", ".hypothesis", ".benchmarks", "__pycache__", "*.egg-info")
CHECKOUT = "dockyard"  # in the home directory of the user
DEBIAN, UBUNTU = "http://deb.debian.org/debian", "http://archive.ubuntu.com/ubuntu"
# /dev and /sys are those of this machine: the tests as root mount file systems and make control groups.
ENTER = """
set -e
root=$1; shift
mount --bind "$root" "$root" # pivot_root needs a mount point
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do mount --bind "$1" "$root$2"; shift 2; done; shift
cd "$root"
mkdir -p .outside
pivot_root . .outside # chroot would leave the root of the mount namespace, where `docker exec` would start
umount --lazy .outside
"$@"
exit $?
"""


@attrs.frozen
class Release:
    """A release of a distribution."""

    name: str
    python: str
    mirror: str = DEBIAN
    components: str = "main"
    keyring: str = ""  # with a keyring that debootstrap does not find by itself: its name, and that of its package
    package: str = ""
    may_be_old: bool = False  # a mirror of it may be some weeks behind: its index is used after its expiry
    script: str = ""  # for releases that are newer than this machine's debootstrap


RELEASES = {
    release.name: release
    for release in (
        Release("bookworm", "3.11"),
        Release(
            "noble",
            "3.12",
            UBUNTU,
            "main,universe",
            keyring="ubuntu-archive-keyring.gpg",
            package="ubuntu-keyring",
            script="jammy",
        ),
        Release("trixie", "3.13"),
        Release("sid", "3.14", may_be_old=True),
    )
}
USERS = {"root": "/root", "newcomer": "/home/newcomer"}


class MinimalSystem:
    """A system at `root`. `mounts` are directories of this machine that its commands see, by their path in it."""

    def __init__(self, root: Path, user: str, mounts: Mapping[str, Path]) -> None:
        self.root = root
        self.user = user
        self.home = USERS[user]
        self.checkout = root / self.home[1:] / CHECKOUT
        self.mounts = mounts

    def start(
        self, command: Sequence[str], *, environ: Mapping[str, str], output: IO[bytes] | int | None, user: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a command in the checkout, by default as the user of the system, in a session of its own."""
        user = user or self.user
        variables = {
            "HOME": USERS[user],
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "USER": user,
            **registry_settings(),
            **environ,
        }
        go_there = ["sh", "-c", 'cd "$0" && exec "$@"', f"{self.home}/{CHECKOUT}"]
        mounts = [str(word) for place, path in self.mounts.items() for word in (path, place)]
        enter = [
            "unshare",
            "--mount",
            "--propagation=private",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            ENTER,
            "sh",
        ]
        identity = ["chroot", f"--userspec={user}:{user}", "/"]
        variable_words = ["env", "--ignore-environment", *(f"{name}={value}" for name, value in variables.items())]
        return subprocess.Popen(
            [*enter, self.root, *mounts, "--", *identity, *variable_words, *go_there, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
        )

    def run(
        self, *command: str, limit_s: float, environ: Mapping[str, str] | None = None, user: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command and return its status and its output."""
        process = self.start(command, environ=environ or {}, output=subprocess.PIPE, user=user)
        try:
            output = process.communicate(timeout=limit_s)[0].decode(errors="replace")
        finally:
            end(process)
        return subprocess.CompletedProcess(command, process.returncode, output)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command that has not ended, with all that it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)  # --kill-child ends the first process of its namespace, and so all of them
        process.wait()


def make_base(release: Release, directory: Path, debootstrap: Path) -> Path:
    """Return the directory of a minimal system that is not changed; it is made if it is not there."""
    directory.mkdir(parents=True, exist_ok=True)
    base = directory / release.name
    with (directory / f"{release.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            for attempt in range(1, MAKE_ATTEMPTS + 1):
                try:
                    _make(release, directory, debootstrap)
                    break
                except SetupError:
                    if attempt == MAKE_ATTEMPTS:
                        raise
    return base


def _make(release: Release, directory: Path, debootstrap: Path) -> None:
    incomplete = Path(tempfile.mkdtemp(prefix=f"{release.name}-", dir=directory))
    try:
        _bootstrap(release, directory, debootstrap, incomplete)
        incomplete.rename(directory / release.name)
    except BaseException:
        shutil.rmtree(incomplete)
        raise


@contextlib.contextmanager
def copied(base: Path, user: str, mounts: Mapping[str, Path] | None = None) -> Iterator[MinimalSystem]:
    """A copy of a minimal system with this checkout in it; it is removed afterwards."""
    root = Path(tempfile.mkdtemp(prefix=f"{base.name}-{user}-", dir=base.parent))
    try:
        subprocess.run(["cp", "--archive", "--reflink=auto", f"{base}/.", root], check=True)
        root.chmod(0o755)  # not every debootstrap lets ordinary users in
        (root / "etc" / "resolv.conf").unlink(missing_ok=True)
        shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")
        (root / "etc" / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        for name in CERTIFICATE_SETTINGS:
            if name in os.environ:
                shutil.copy(os.environ[name], root / _certificates_path(name)[1:])
        if user != "root":
            subprocess.run(["chroot", root, "useradd", "--create-home", user], check=True)
        system = MinimalSystem(root, user, mounts or {})
        for place in system.mounts:
            (root / place[1:]).mkdir(parents=True, exist_ok=True)
        _copy_checkout(system.checkout)
        subprocess.run(["chroot", root, "chown", "-R", f"{user}:{user}", system.home], check=True)
        yield system
    finally:
        shutil.rmtree(root)


def _bootstrap(release: Release, directory: Path, debootstrap: Path, root: Path) -> None:
    options = ["--variant=minbase", f"--components={release.components}"]
    if release.keyring:
        options.append(f"--keyring={_find_keyring(release, directory, debootstrap)}")
    arguments: list[str | Path] = [release.name, root, release.mirror]
    if not Path(f"/usr/share/debootstrap/scripts/{release.name}").exists() and release.script:
        arguments.append(f"/usr/share/debootstrap/scripts/{release.script}")
    done = subprocess.run(
        [debootstrap, *options, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MAKE_LIMIT_S,
        check=False,
    )
    if done.returncode:
        raise SetupError(f"debootstrap has failed ({done.returncode}):\n{done.stdout[-MAX_REPORT_CHARACTERS:]}")
    if release.may_be_old:
        (root / "etc" / "apt" / "apt.conf.d" / "expired").write_text('Acquire::Check-Valid-Until "false";\n')


def _find_keyring(release: Release, directory: Path, debootstrap: Path) -> Path:
    """Return the file with the keys of the distribution: that of this machine, else the one that Debian 13 packages."""
    installed = Path("/usr/share/keyrings", release.keyring)
    if installed.exists():
        return installed
    kept = directory / release.keyring
    if not kept.exists():
        with copied(make_base(RELEASES["trixie"], directory, debootstrap), "root") as system:
            get = f"apt-get update -qq && apt-get install -qq --yes --no-install-recommends {release.package}"
            done = system.run("sh", "-c", get, limit_s=MAKE_LIMIT_S)
            if done.returncode:
                raise RuntimeError(f"cannot install {release.package}: {done.stdout}")
            shutil.copy(system.root / "usr" / "share" / "keyrings" / release.keyring, kept)
    return kept


def _copy_checkout(target: Path) -> None:
    """Copy this checkout, which may be an unpacked archive, without what was made in it."""
    shutil.copytree(ROOT, target, ignore=shutil.ignore_patterns(*MADE_HERE), symlinks=True)


def _certificates_path(name: str) -> str:
    return f"/opt/{name.lower()}.pem"


def registry_settings() -> dict[str, str]:
    """How this machine reaches package registries: its settings of pip, Go, proxies and certificates."""
    names = (*PIP_SETTINGS, *PROXY_SETTINGS, *GO_SETTINGS)
    certificates = {name: _certificates_path(name) for name in CERTIFICATE_SETTINGS if name in os.environ}
    return {**{name: os.environ[name] for name in names if name in os.environ}, **certificates}

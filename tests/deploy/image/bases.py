"""The two base images of the Dockerfile, made here: the tests reach package registries, but no image registry.

Debian's Python stands for the Python image, and with this machine's Go also for the Go image. Both get this machine's
access to package registries: its certificates, and the settings of pip and Go in its environment.
"""

import hashlib
import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs

from ops import test_servers
from tests.support.image_clients import DockerDaemon

SUITE = "trixie"
PACKAGES = "ca-certificates,python3,python3-pip"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
PIP_SETTINGS = ("PIP_DEFAULT_TIMEOUT", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_TRUSTED_HOST")
PROXY_SETTINGS = ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy")
GO_SETTINGS = ("GOINSECURE", "GONOPROXY", "GONOSUMDB", "GOPRIVATE", "GOPROXY", "GOSUMDB")
MAKE_LIMIT_S = 900.0


@attrs.frozen
class Bases:
    """The names of the two images, in the daemon that builds with them."""

    python: str
    golang: str


def make_bases(docker: DockerDaemon, debootstrap: Path, directory: Path) -> Bases:
    """Make the images that the daemon does not have; they are made again when their inputs have changed."""
    go = test_servers.find_go(test_servers.cache_directory())
    go_root = Path(_output_of(go, "env", "GOROOT").strip())
    python_environ = {name: os.environ[name] for name in (*PIP_SETTINGS, *PROXY_SETTINGS) if name in os.environ}
    go_environ = {
        **{name: value for name, value in json.loads(_output_of(go, "env", "-json", *GO_SETTINGS)).items() if value},
        "GOTOOLCHAIN": "local",
        "PATH": "/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    certificates = _certificates().read_bytes()
    pip_config = Path("/etc/pip.conf").read_bytes() if Path("/etc/pip.conf").exists() else b""
    what = repr((SUITE, PACKAGES, python_environ, go_environ, _output_of(go, "version"), certificates, pip_config))
    key = hashlib.sha256(what.encode()).hexdigest()[:12]
    bases = Bases(f"dockyard-test/python:{key}", f"dockyard-test/golang:{key}")
    if not docker.has_image(bases.python):
        root, archive = directory / "root", directory / "root.tar"
        _run(debootstrap, "--variant=minbase", f"--include={PACKAGES}", SUITE, root)
        (root / CERTIFICATES).write_bytes(certificates)
        (root / "etc" / "pip.conf").write_bytes(pip_config)
        (root / "usr" / "local" / "bin" / "python").symlink_to("/usr/bin/python3")
        _run(
            "tar",
            "--create",
            f"--file={archive}",
            f"--directory={root}",
            "--exclude=./dev/*",
            "--exclude=./proc/*",
            ".",
        )
        changes = [f"--change=ENV {line}" for line in _lines(python_environ)]
        docker.run("import", *changes, archive, bases.python, limit_s=MAKE_LIMIT_S)
        shutil.rmtree(root)
        archive.unlink()
    if not docker.has_image(bases.golang):
        recipe = directory / "Dockerfile"
        lines = [f"FROM {bases.python}", "COPY . /usr/local/go", *(f"ENV {line}" for line in _lines(go_environ))]
        recipe.write_text("\n".join(lines))
        docker.run("build", "--quiet", "--tag", bases.golang, "--file", recipe, go_root, limit_s=MAKE_LIMIT_S)
    return bases


def _lines(environ: Mapping[str, str]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in environ.items()]


def _run(*command: str | Path) -> None:
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=MAKE_LIMIT_S, check=True)


def _certificates() -> Path:
    """Return the file of certificates that this machine trusts."""
    return Path(ssl.get_default_verify_paths().cafile or Path("/", CERTIFICATES))


def _output_of(program: Path, *words: str) -> str:
    return subprocess.run([program, *words], stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout

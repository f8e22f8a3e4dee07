"""Real clients of images, each with a state that a test can wipe: Docker, containerd, skopeo, podman, crane.

They do not see the user's configuration or credentials. A client that falls back to the real Docker Hub fails at once:
its HTTPS proxy is a closed port.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.images import THIS_ARCHITECTURE
from tests.support.processes import Process

PULL_TIMEOUT_S = 300.0
DEAD_PROXY = "http://127.0.0.1:9"
ACCEPT_ANY_SIGNATURE = {"default": [{"type": "insecureAcceptAnything"}]}


PARTIAL_PULLS = """\
[storage]
driver = "overlay"
graphroot = "{root}"
runroot = "{run}"
[storage.options]
pull_options = {{enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}}
"""


class ClientError(Exception):
    """A client failed; the text contains its output."""


@attrs.frozen
class PulledFiles:
    """A pulled image as files: the digest of its top manifest, and the digests of all files that the client wrote."""

    top: str
    digests: frozenset[str]


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a client: nothing of the user's, and no access to real registries."""
    no_credentials = home / "auth.json"
    no_credentials.write_text("{}")
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "DOCKER_CONFIG": str(home),
        "REGISTRY_AUTH_FILE": str(no_credentials),
        "HTTPS_PROXY": DEAD_PROXY,
        "NO_PROXY": "127.0.0.1",
        **more,
    }


def forget_logins(home: Path) -> None:
    """Remove the logins that clients have stored in their directory."""
    (home / "config.json").unlink(missing_ok=True)
    (home / "auth.json").write_text("{}")


def run(
    argv: Sequence[str | Path],
    environ: Mapping[str, str],
    limit_s: float = PULL_TIMEOUT_S,
    directory: Path | None = None,
) -> str:
    """Run a client, in `directory` if given, and return its standard output; raise ClientError when it fails."""
    try:
        done = subprocess.run(
            argv,
            env=environ,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise ClientError(f"{_words(argv)}\nnot ready after {limit_s:.0f} s\n{exc.stdout!r}\n{exc.stderr!r}") from exc
    if done.returncode != 0:
        raise ClientError(f"{_words(argv)}\nexit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Containerd:
    """containerd and its client `ctr`; images are unpacked by the native snapshotter."""

    def __init__(self, containerd: Path, ctr: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self.address = directory / "containerd.sock"
        self._ctr = ctr
        self._environ = environment(directory, **environ)
        config = directory / "config.toml"
        config.write_text(
            f"""\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{self.address}"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux/{THIS_ARCHITECTURE}"
  snapshotter = "native"
"""
        )
        self._process = Process.start(
            [containerd, "--config", config], log=directory / "containerd.log", environ=self._environ
        )

    def wait(self) -> None:
        """Wait until it answers."""
        self._process.wait_until(self._is_answering, "answering")

    def stop(self) -> None:
        self._process.end_all()
        shutil.rmtree(self.directory, ignore_errors=True)

    def pull(self, reference: str, *options: str | Path) -> None:
        """Pull an image of this machine's platform; `options` are `--hosts-dir DIR`, `--plain-http` or `--user`."""
        run([*self.pull_command(*options), reference], self._environ)

    def pull_command(self, *options: str | Path) -> list[str | Path]:
        """The command that pulls the image whose name is put after it."""
        return [*self._command, "images", "pull", "--snapshotter", "native", *options]

    def digest(self, reference: str) -> str:
        """Return the digest that the image's name points to."""
        for line in self._run("images", "list", f"name=={reference}").splitlines()[1:]:
            return line.split()[2]
        raise ClientError(f"containerd has no image {reference}")

    def content(self) -> frozenset[str]:
        """Return the digests of everything in the content store."""
        return frozenset(self._run("content", "list", "--quiet").split())

    def wipe(self) -> None:
        """Remove all images and their content."""
        names = self._run("images", "list", "--quiet").split()
        if names:
            self._run("images", "remove", "--sync", *names)
        left = self.content()
        assert not left, f"containerd kept {left}"

    @property
    def _command(self) -> list[str | Path]:
        return [self._ctr, "--address", self.address, "--namespace", "test"]

    def _run(self, *words: str | Path) -> str:
        return run([*self._command, *words], self._environ)

    def _is_answering(self) -> bool:
        try:
            self._run("version")
        except ClientError:
            return False
        return True


class DockerDaemon:
    """dockerd with its classic image store, on a containerd of the tests; `use_mirrors` reconfigures it while it runs.

    `data` is its data root, if that is kept for a later daemon; it then uses its default storage driver.
    """

    def __init__(
        self,
        dockerd: Path,
        docker: Path,
        containerd: Containerd,
        directory: Path,
        data: Path | None = None,
        **environ: str,
    ) -> None:
        self.directory = directory
        self._docker = docker
        self._socket = directory / "docker.sock"
        self._config = directory / "daemon.json"
        self._environ = environment(directory, **environ)
        self._config.write_text("{}")
        options = {
            "config-file": self._config,
            "containerd": containerd.address,
            "data-root": data or directory / "data",
            "exec-root": directory / "exec",
            "pidfile": directory / "docker.pid",
            "host": f"unix://{self._socket}",
            **({} if data else {"storage-driver": "vfs"}),
            "iptables": "false",
            "ip6tables": "false",
            "bridge": "none",
        }
        self._process = Process.start(
            [dockerd, *(f"--{name}={value}" for name, value in options.items())],
            log=directory / "dockerd.log",
            environ=self._environ,
        )

    def wait(self) -> None:
        """Wait until it answers."""
        self._process.wait_until(self._is_answering, "answering")

    def stop(self) -> None:
        self._process.end_all()
        _unmount_below(self.directory)  # the network namespace of its containers
        shutil.rmtree(self.directory, ignore_errors=True)

    def use_mirrors(self, *urls: str) -> None:
        """Set `registry-mirrors`; the daemon reads its configuration file again."""
        self.use_config(json.dumps({"registry-mirrors": urls}))

    def use_config(self, text: str) -> None:
        """Use this daemon.json, of which only the mirrors are waited for."""
        self._config.write_text(text)
        self._process.send(signal.SIGHUP)
        wanted = [f"{url}/" for url in json.loads(text)["registry-mirrors"]]
        self._process.wait_until(lambda: self._mirrors() == wanted, "using its new mirrors")

    def log_in(self, host: str, user: str, password: str) -> None:
        """Log in, until `forget_logins`."""
        self.run("login", "--username", user, "--password", password, host)

    def forget_logins(self) -> None:
        forget_logins(self.directory)

    def pull(self, reference: str) -> None:
        """Pull an image of this machine's platform."""
        self.run("pull", "--quiet", reference)

    def digest(self, reference: str) -> str:
        """Return the digest that the reference was pulled by."""
        (digest,) = {name.partition("@")[2] for name in self.inspect(reference)["RepoDigests"]}
        return str(digest)

    def identifier(self, reference: str) -> str:
        """Return the image's id: the digest of its configuration."""
        return str(self.inspect(reference)["Id"])

    def wipe(self) -> None:
        """Remove all images."""
        images = self.run("image", "list", "--quiet", "--no-trunc").split()
        if images:
            self.run("image", "rm", "--force", *sorted(set(images)))

    def run(self, *words: str | Path, limit_s: float = PULL_TIMEOUT_S) -> str:
        """Run the `docker` client, with BuildKit for builds, and return its output."""
        environ = {**self._environ, "DOCKER_BUILDKIT": "1"}
        return run([self._docker, "--host", f"unix://{self._socket}", *words], environ, limit_s)

    def has_image(self, reference: str) -> bool:
        """Whether it has an image of this name."""
        return bool(self.run("image", "list", "--quiet", reference).strip())

    def inspect(self, name: str) -> dict[str, Any]:
        """Return what `docker inspect` says of an image or a container."""
        (found,) = json.loads(self.run("inspect", name))
        return dict(found)

    def _mirrors(self) -> list[str]:
        return list(json.loads(self.run("info", "--format", "{{json .RegistryConfig.Mirrors}}")) or [])

    def _is_answering(self) -> bool:
        try:
            self.run("version")
        except ClientError:
            return False
        return True


class Skopeo:
    """skopeo; it keeps only its last copy."""

    def __init__(self, program: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self.target = directory / "pulled"
        self._program = program
        self._environ = environment(directory, **environ)

    def pull(
        self, reference: str, *options: str, registries: str = "", is_plain_http: bool | None = None
    ) -> PulledFiles:
        """Copy an image into a directory; `registries` is the text of a registries.conf.

        It says for each mirror whether that is plain HTTP; without it, all are, unless `is_plain_http` is given.
        """
        self.wipe()
        (self.directory / "registries.conf").write_text(registries)
        command: list[str | Path] = [
            self._program,
            "--insecure-policy",
            f"--registries-conf={self.directory / 'registries.conf'}",
        ]
        is_plain_http = not registries if is_plain_http is None else is_plain_http
        plain_http = ["--src-tls-verify=false"] if is_plain_http else []
        source, target = f"docker://{reference}", f"dir:{self.target}"
        run([*command, "copy", "--quiet", *plain_http, *options, source, target], self._environ)
        digests = {_digest(path) for path in self.target.iterdir() if path.name != "version"}
        return PulledFiles(_digest(self.target / "manifest.json"), frozenset(digests))

    def log_in(self, host: str, user: str, password: str) -> None:
        """Log in, until `forget_logins`."""
        words = ["login", "--tls-verify=false", f"--username={user}", f"--password={password}", host]
        run([self._program, *words], self._environ)

    def forget_logins(self) -> None:
        forget_logins(self.directory)

    def wipe(self) -> None:
        """Remove the last copy."""
        shutil.rmtree(self.target, ignore_errors=True)


class ImageLibrary:
    """The library of CRI-O, Podman and Skopeo in its newest version; it keeps only its last copy.

    The program is `tests/support/image_library`. `pull_into_storage` pulls as CRI-O and Podman do, into the storage of
    `directory`: of zstd:chunked layers only what it does not have.
    """

    def __init__(self, program: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self.target = directory / "pulled"
        self._program = program
        storage = directory / "storage.conf"
        storage.write_text(PARTIAL_PULLS.format(root=directory / "root", run=directory / "run"))
        self._environ = environment(directory, CONTAINERS_STORAGE_CONF=str(storage), **environ)

    def pull(self, reference: str, *options: str, registries: str = "", is_plain_http: bool = False) -> PulledFiles:
        """Copy an image into a directory; `registries` is the text of a registries.conf."""
        self.wipe()
        plain_http = ["--plain-http"] if is_plain_http else []
        top = self._copy(reference, f"dir:{self.target}", *plain_http, *options, registries=registries)
        return PulledFiles(top, frozenset(_digest(path) for path in self.target.iterdir() if path.name != "version"))

    def pull_into_storage(self, reference: str, name: str, *options: str, registries: str = "") -> str:
        """Pull an image into the storage, and return the digest of its manifest."""
        return self._copy(reference, f"containers-storage:{name}", *options, registries=registries)

    def push_chunked(self, layout: Path, reference: str) -> str:
        """Push the image of an OCI layout, with its layers as zstd:chunked, and return the digest of its manifest."""
        words = ["--plain-http", "--compress=zstd:chunked", f"oci:{layout}", f"docker://{reference}"]
        return run([self._program, *words], self._environ).strip()

    def wipe(self) -> None:
        """Remove the last copy."""
        shutil.rmtree(self.target, ignore_errors=True)

    def close(self) -> None:
        """Remove the storage."""
        _unmount_below(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _copy(self, reference: str, target: str, *options: str, registries: str) -> str:
        (self.directory / "registries.conf").write_text(registries)
        words = [f"--registries-conf={self.directory / 'registries.conf'}"]
        return run([self._program, *words, *options, f"docker://{reference}", target], self._environ).strip()


class Regctl:
    """regctl; it keeps only its last copy."""

    def __init__(self, program: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self.target = directory / "pulled"
        self._program = program
        self._environ = environment(directory, **environ)

    def use_config(self, text: str) -> None:
        """Use this config.json from the next pull on."""
        (self.directory / ".regctl").mkdir(exist_ok=True)
        (self.directory / ".regctl" / "config.json").write_text(text)

    def pull(self, reference: str) -> PulledFiles:
        """Copy an image, of an index the images of all platforms, into an OCI layout."""
        self.wipe()
        run([self._program, "image", "copy", reference, f"ocidir://{self.target}:pulled"], self._environ)
        (top,) = json.loads((self.target / "index.json").read_text())["manifests"]
        digests = {_digest(path) for path in (self.target / "blobs" / "sha256").iterdir()}
        return PulledFiles(top["digest"], frozenset(digests))

    def wipe(self) -> None:
        """Remove the last copy."""
        shutil.rmtree(self.target, ignore_errors=True)


class Podman:
    """podman with its own storage.

    `pulls_partially`: of zstd:chunked layers it requests the table of contents, then only what its storage does not
    have. This needs the overlay driver.
    """

    def __init__(self, program: Path, directory: Path, *, pulls_partially: bool = False, **environ: str) -> None:
        self.directory = directory
        self._program = program
        self._environ = environment(directory, **environ)
        self._driver = "overlay" if pulls_partially else "vfs"
        if pulls_partially:
            storage = directory / "storage.conf"
            storage.write_text(PARTIAL_PULLS.format(root=directory / "root", run=directory / "run"))
            self._environ["CONTAINERS_STORAGE_CONF"] = str(storage)
        self._policy = directory / "policy.json"
        self._policy.write_text(json.dumps(ACCEPT_ANY_SIGNATURE))

    def pull(self, reference: str, *options: str, registries: str = "", is_plain_http: bool | None = None) -> None:
        """Pull an image of this machine's platform; `registries` is the text of a registries.conf.

        It says for each mirror whether that is plain HTTP; without it, all are, unless `is_plain_http` is given.
        """
        with tempfile.NamedTemporaryFile("w", dir=self.directory, suffix=".conf", delete=False) as file:
            file.write(registries)  # a file for each pull: several may run at once
        environ = {**self._environ, "CONTAINERS_REGISTRIES_CONF": file.name}
        is_plain_http = not registries if is_plain_http is None else is_plain_http
        plain_http = ["--tls-verify=false"] if is_plain_http else []
        policy = f"--signature-policy={self._policy}"
        run([*self._command, "pull", "--quiet", policy, *plain_http, *options, reference], environ)

    def log_in(self, host: str, user: str, password: str) -> None:
        """Log in, until `forget_logins`."""
        words = ["login", "--tls-verify=false", f"--username={user}", f"--password={password}", host]
        run([*self._command, *words], self._environ)

    def forget_logins(self) -> None:
        forget_logins(self.directory)

    def digests(self, reference: str) -> frozenset[str]:
        """Return the digests of the image: the index's and the platform's."""
        (image,) = json.loads(run([*self._command, "image", "inspect", reference], self._environ))
        return frozenset({image["Digest"], *(name.partition("@")[2] for name in image["RepoDigests"])})

    def identifier(self, reference: str) -> str:
        """Return the image's id: the digest of its configuration."""
        (image,) = json.loads(run([*self._command, "image", "inspect", reference], self._environ))
        return f"sha256:{image['Id']}"

    def wipe(self) -> None:
        """Remove all images."""
        run([*self._command, "image", "rm", "--all", "--force"], self._environ)

    def read_files(self, reference: str) -> dict[str, str]:
        """Return the digest of each file of the image, by its name."""
        directory = Path(run([*self._command, "image", "mount", reference], self._environ).strip())
        try:
            files = [path for path in directory.rglob("*") if path.is_file()]
            return {str(path.relative_to(directory)): _digest(path) for path in files}
        finally:
            run([*self._command, "image", "unmount", reference], self._environ)

    def unmount(self) -> None:
        """Unmount what the overlay driver has mounted in the directory, which can then be removed."""
        _unmount_below(self.directory)

    @property
    def _command(self) -> list[str | Path]:
        return [
            self._program,
            f"--root={self.directory / 'root'}",
            f"--runroot={self.directory / 'run'}",
            f"--tmpdir={self.directory / 'tmp'}",
            f"--storage-driver={self._driver}",
            "--cgroup-manager=cgroupfs",
            "--events-backend=none",
        ]


class Crane:
    """crane; it keeps only its last pull."""

    def __init__(self, program: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self.target = directory / "pulled"
        self._program = program
        self._environ = environment(directory, **environ)

    def pull(self, reference: str) -> PulledFiles:
        """Pull an image (for an index, the images of all platforms) into an OCI layout."""
        self.wipe()
        run([self._program, "pull", "--insecure", "--format=oci", reference, self.target], self._environ)
        (top,) = json.loads((self.target / "index.json").read_text())["manifests"]
        digests = {_digest(path) for path in (self.target / "blobs" / "sha256").iterdir()}
        return PulledFiles(top["digest"], frozenset(digests))

    def log_in(self, host: str, user: str, password: str) -> None:
        """Store a login, until `forget_logins`. It is not verified before the next pull."""
        run([self._program, "auth", "login", f"--username={user}", f"--password={password}", host], self._environ)

    def forget_logins(self) -> None:
        forget_logins(self.directory)

    def tags(self, repository: str) -> list[str]:
        """List the tags of a repository."""
        return run([self._program, "ls", "--insecure", repository], self._environ).split()

    def digest(self, reference: str) -> str:
        """Read a digest with HEAD."""
        return run([self._program, "digest", "--insecure", reference], self._environ).strip()

    def wipe(self) -> None:
        """Remove the last pull."""
        shutil.rmtree(self.target, ignore_errors=True)


def _unmount_below(directory: Path) -> None:
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for path in reversed(mounted):
        if Path(path).is_relative_to(directory):
            subprocess.run(["umount", path], check=True, timeout=EVENT_TIMEOUT_S)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _words(argv: Sequence[str | Path]) -> str:
    return " ".join(str(word) for word in argv)

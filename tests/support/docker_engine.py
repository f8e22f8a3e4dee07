"""Docker Engine 29 and newer with the containerd image store, used through its API."""

import contextlib
import json
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors

from tests.support.image_clients import PULL_TIMEOUT_S, ClientError, _unmount_below, environment
from tests.support.processes import Process

ETC = Path("/etc/docker")
API_VERSION = "1.44"  # the oldest that Docker 29 has


class DockerEngine:
    """dockerd on a containerd of the tests. Its `/etc/docker` is a directory of its own, in a mount namespace."""

    def __init__(self, dockerd: Path, containerd: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self.certs = directory / "etc" / "certs.d"
        self._url = f"unix://{directory / 'docker.sock'}"
        self.certs.mkdir(parents=True)
        ETC.mkdir(exist_ok=True)  # as dockerd does
        (directory / "daemon.json").write_text("{}")
        options = {
            "config-file": directory / "daemon.json",
            "containerd": containerd,
            "data-root": directory / "data",
            "exec-root": directory / "exec",
            "pidfile": directory / "docker.pid",
            "host": self._url,
            "storage-driver": "native",
            "iptables": "false",
            "ip6tables": "false",
            "bridge": "none",
        }
        in_namespace = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"']
        self._process = Process.start(
            [*in_namespace, directory / "etc", ETC, dockerd, *(f"--{name}={value}" for name, value in options.items())],
            log=directory / "dockerd.log",
            environ=environment(directory, **environ),
        )

    def wait(self) -> None:
        """Wait until it answers."""
        self._process.wait_until(self._is_answering, "answering")

    def stop(self) -> None:
        self._process.end_all()
        _unmount_below(self.directory)
        shutil.rmtree(self.directory, ignore_errors=True)

    def use_hosts(self, text: str, registry: str = "_default") -> None:
        """Use one hosts.toml and no other, from the next pull on, and no other mirrors."""
        self.use_config('{"registry-mirrors": []}')
        (self.certs / registry).mkdir()
        (self.certs / registry / "hosts.toml").write_text(text)

    def use_config(self, text: str) -> None:
        """Use this daemon.json, of which only the mirrors are waited for, and no hosts.toml."""
        for old in self.certs.iterdir():
            shutil.rmtree(old)
        (self.directory / "daemon.json").write_text(text)
        self._process.send(signal.SIGHUP)
        wanted = [f"{url}/" for url in json.loads(text)["registry-mirrors"]]
        self._process.wait_until(lambda: self._mirrors() == wanted, "using its new mirrors")

    def pull(self, reference: str) -> None:
        """Pull an image of this machine's platform, without a login."""
        repository, _, tag = reference.rpartition(":")
        with self._client() as client, _errors(reference):
            events = list(client.pull(repository, tag=tag, stream=True, decode=True, auth_config={}))
        errors = [event["error"] for event in events if "error" in event]
        if errors:
            raise ClientError(f"docker pull {reference}: {errors}")

    def digest(self, reference: str) -> str:
        """Return the digest that the reference was pulled by."""
        with self._client() as client, _errors(reference):
            (digest,) = {name.partition("@")[2] for name in client.inspect_image(reference)["RepoDigests"]}
        return str(digest)

    def wipe(self) -> None:
        """Remove all images."""
        with self._client() as client, _errors("all"):
            for image in client.images(quiet=True):
                client.remove_image(image, force=True)

    @contextlib.contextmanager
    def _client(self) -> Iterator[docker.APIClient]:
        with contextlib.closing(docker.APIClient(self._url, version=API_VERSION, timeout=PULL_TIMEOUT_S)) as client:
            yield client

    def _mirrors(self) -> list[str]:
        with self._client() as client:
            return list(client.info()["RegistryConfig"]["Mirrors"] or [])

    def _is_answering(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:  # of docker-py, a failed attempt remains open
                probe.connect(self._url.removeprefix("unix://"))
            with self._client() as client:
                return bool(client.ping())
        except (OSError, docker.errors.DockerException):
            return False


@contextlib.contextmanager
def _errors(reference: str) -> Iterator[None]:
    try:
        yield
    except docker.errors.APIError as exc:
        raise ClientError(f"docker {reference}: {exc.explanation or exc}") from exc

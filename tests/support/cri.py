"""containerd as the kubelet uses it: pulls through its CRI plugin, with the login of a pod or of the node."""

import json
import shutil
from pathlib import Path

from tests.support.image_clients import ClientError, environment, run
from tests.support.processes import Process

CONFIG = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{directory}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{directory}/certs.d"
"""


class Cri:
    """containerd of any version with its CRI plugin, and `crictl`. Versions from 2 on convert the configuration."""

    def __init__(self, containerd: Path, crictl: Path, directory: Path, **environ: str) -> None:
        self.directory = directory
        self.certs = directory / "certs.d"
        self._crictl = crictl
        self._environ = environment(directory, **environ)
        config = directory / "config.toml"
        config.write_text(CONFIG.format(directory=directory))
        self._process = Process.start(
            [containerd, "--config", config], log=directory / "containerd.log", environ=self._environ
        )

    def wait(self) -> None:
        """Wait until it answers."""
        self._process.wait_until(self._is_answering, "answering")

    def stop(self) -> None:
        self._process.end_all()
        shutil.rmtree(self.directory, ignore_errors=True)

    def read_log(self) -> str:
        """Return the whole log of the daemon."""
        return (self.directory / "containerd.log").read_text(errors="replace")

    def use_hosts(self, text: str, registry: str = "_default") -> None:
        """Use one hosts.toml and no other, from the next pull on."""
        shutil.rmtree(self.certs, ignore_errors=True)
        (self.certs / registry).mkdir(parents=True)
        (self.certs / registry / "hosts.toml").write_text(text)

    def pull(self, reference: str, login: str = "") -> None:
        """Pull an image, with a login of the pod as `user:password`. The kubelet sends it for any server likewise."""
        self._run("pull", *(["--creds", login] if login else []), reference)

    def digest(self, reference: str) -> str:
        """Return the digest that an image was pulled by."""
        images = json.loads(self._run("images", "--output", "json"))["images"]
        (digests,) = (image["repoDigests"] for image in images if reference in image["repoTags"])
        return str(digests[0].partition("@")[2])

    def wipe(self) -> None:
        """Remove all images."""
        self._run("rmi", "--all")

    def _run(self, *words: str) -> str:
        address = f"unix://{self.directory}/containerd.sock"
        return run(
            [self._crictl, "--runtime-endpoint", address, "--image-endpoint", address, "--timeout", "300s", *words],
            self._environ,
        )

    def _is_answering(self) -> bool:
        try:
            self._run("images")
        except ClientError:
            return False
        return True

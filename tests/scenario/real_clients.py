"""Real clients on nodes: crane, and containerd with its client `ctr`. Both verify digests themselves."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.scenario.layout import PREFIX, sizes_of
from tests.scenario.nodes import Node, Pull
from tests.support.image_clients import ClientError, Containerd
from tests.support.images import PushedImage

LIMIT_S = 300.0
MAX_CONTAINERD_PULLS = 3  # as the kubelet, which tries again
# `server` is asked after all hosts: containerd never asks the registry itself.
HOSTS = """\
server = "http://{last}"
{others}"""
HOST = """
[host."http://{host}"]
"""


def pull_with_crane(crane: Path, node: Node, image: PushedImage) -> Pull:
    """Pull an image from the first host of the node."""
    pull = Pull(node.name, f"{image.repository}:{image.tag}", time.monotonic())
    host, port = node.hosts[0]
    name = f"{host}:{port}/{PREFIX}/{image.repository}:{image.tag}"
    with tempfile.TemporaryDirectory(prefix="dockyard-crane-") as directory, node.machine.namespace.entered():
        try:
            done = subprocess.run(
                [crane, "pull", "--format", "oci", name, directory],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=LIMIT_S,
                env={"HOME": directory, "PATH": "/usr/bin:/bin"},
            )
        except subprocess.TimeoutExpired:
            pull.problem = f"crane has not ended within {LIMIT_S:.0f} s"
            return pull
        pull.took_s = time.monotonic() - pull.began_at
        for digest, size in sizes_of(image).items():
            file = Path(directory, "blobs", *digest.split(":"))
            if not file.is_file() or file.stat().st_size != size:
                pull.problem = f"crane has not written {digest}"
            else:
                pull.verified_bytes += size
    if done.returncode:
        pull.problem = f"crane: {done.stdout.strip().splitlines()[-1]}"
    return pull


@attrs.frozen
class ContainerdNode:
    """containerd on a node, with the hosts of the node in `hosts.toml`."""

    node: Node
    containerd: Containerd
    certificates: Path

    def pull(self, image: PushedImage) -> Pull:
        """Pull an image; try again if that fails."""
        pull = Pull(self.node.name, f"{image.repository}:{image.tag}", time.monotonic())
        name = f"{PREFIX}/{image.repository}:{image.tag}"
        with self.node.machine.namespace.entered():
            while pull.retries < MAX_CONTAINERD_PULLS:
                try:
                    self.containerd.pull(name, "--hosts-dir", self.certificates)
                except ClientError as exc:
                    pull.retries += 1
                    pull.problem = f"ctr: {str(exc).strip().splitlines()[-1]}"
                    continue
                pull.problem = self._find_problem(name, image)
                break
        pull.took_s = time.monotonic() - pull.began_at
        if pull.is_right:
            pull.verified_bytes = sum(sizes_of(image).values())
        return pull

    def _find_problem(self, name: str, image: PushedImage) -> str:
        if self.containerd.digest(name) != image.digest:
            return f"containerd has {self.containerd.digest(name)}, not {image.digest}"
        missing = sizes_of(image).keys() - self.containerd.content()
        return f"containerd does not have {', '.join(sorted(missing))}" if missing else ""


@contextlib.contextmanager
def open_containerd(containerd: Path, ctr: Path, node: Node) -> Iterator[ContainerdNode]:
    """Start containerd on a node; end it with the block."""
    with tempfile.TemporaryDirectory(prefix="dockyard-containerd-", ignore_cleanup_errors=True) as directory:
        certificates = Path(directory, "certs.d")
        (certificates / PREFIX).mkdir(parents=True)
        *first, last = [f"{host}:{port}" for host, port in node.hosts]
        text = HOSTS.format(last=last, others="".join(HOST.format(host=host) for host in first))
        (certificates / PREFIX / "hosts.toml").write_text(text)
        own = Path(directory, "containerd")
        own.mkdir()
        with node.machine.namespace.entered():
            # Without a proxy: `ctr` 1.7 tries HTTPS first, also where a host has `http:`.
            started = Containerd(containerd, ctr, own, NO_PROXY="*")
        try:
            with node.machine.namespace.entered():
                started.wait()
            yield ContainerdNode(node, started, certificates)
        finally:
            started.stop()

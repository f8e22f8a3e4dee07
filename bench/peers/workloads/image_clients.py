"""The real clients that pull whole images: crane, skopeo and containerd.

Daemons are started before a pull is measured. containerd fetches into its content store and does not unpack: that would
take most of the time, and has nothing to do with the cache.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from bench.peers.accounting import ControlGroup
from tests.support.image_clients import Containerd, Crane, Skopeo, environment, run


class ImageClient(ABC):
    """A client with a directory of its own. `programs` are the paths of its programs, in the order of the names."""

    text = ""
    programs: tuple[str, ...] = ()
    needs_root = False

    @abstractmethod
    def __init__(self, programs: Sequence[Path], home: Path) -> None: ...

    @abstractmethod
    def pull(self, reference: str) -> None:
        """Pull an image of the architecture of the benchmark. Raises ClientError."""

    @abstractmethod
    def digests(self) -> frozenset[str]:
        """The digests of all files of the last pull."""

    @abstractmethod
    def wipe(self) -> None:
        """Remove what was pulled."""

    def close(self) -> None:
        """Stop its processes."""
        self.wipe()

    def cpu_s(self) -> float:
        """CPU seconds that it has used."""
        times = os.times()
        return times.children_user + times.children_system


class CommandClient(ImageClient):
    """A client that is one command, without a daemon. `kind` runs it."""

    kind: type[Crane | Skopeo]

    def __init__(self, programs: Sequence[Path], home: Path) -> None:
        self._client = self.kind(programs[0], home)
        self._digests: frozenset[str] = frozenset()

    def pull(self, reference: str) -> None:
        self._digests = self._client.pull(reference).digests

    def digests(self) -> frozenset[str]:
        return self._digests

    def wipe(self) -> None:
        self._client.wipe()


class CraneClient(CommandClient):
    """crane."""

    text = "crane"
    programs = ("crane",)
    kind = Crane


class SkopeoClient(CommandClient):
    """Skopeo, which has the library of Podman and CRI-O."""

    text = "skopeo"
    programs = ("skopeo",)
    kind = Skopeo


class ContainerdClient(ImageClient):
    """containerd, by `ctr content fetch`."""

    text = "containerd"
    programs = ("containerd-2", "ctr-2")
    needs_root = True

    def __init__(self, programs: Sequence[Path], home: Path) -> None:
        self._group = ControlGroup.make("containerd")
        with self._group.entered():
            self._client = Containerd(programs[0], programs[1], home)
        self._ctr = programs[1]
        self._home = home
        self._client.wait()

    def pull(self, reference: str) -> None:
        command: list[str | Path] = [self._ctr, "--address", self._client.address, "--namespace", "test"]
        command += ["content", "fetch", "--plain-http", "--platform", "linux/amd64", reference]
        run(command, environment(self._home))

    def digests(self) -> frozenset[str]:
        return self._client.content()

    def wipe(self) -> None:
        self._client.wipe()

    def close(self) -> None:
        self._client.stop()
        self._group.remove()

    def cpu_s(self) -> float:
        return super().cpu_s() + (self._group.cpu_s() if self._group.directory else 0.0)

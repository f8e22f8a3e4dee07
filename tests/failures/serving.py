"""Failures of the directory and the bucket of a server that runs: clients get their images, the log has a line."""

import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import attrs

from tests.cases.file_systems import make_read_only, mounted, use_all_inodes
from tests.failures.failure import Failure, Seen, replace_variables
from tests.failures.programs import warnings_and_errors
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually, open_deployment
from tests.support.fake_registry import FakeRegistry

MIB = 1024 * 1024
LOGGED_WITHIN_S = 30.0


@attrs.define
class Service:
    """A server that runs, and what a failure needs: the disk below its directory."""

    deployment: Deployment
    disk: Path
    names: dict[str, str] = attrs.field(factory=dict)

    def pull(self, content: bytes) -> str:
        """Pull a layer, which works; return its digest."""
        digest = self.deployment.fake_registry.add_blob(content)
        response = self.deployment.get(f"/v2/up.test/org/app/blobs/{digest}")
        assert digest_of(response.body) == digest
        return digest

    def pull_and_store(self, content: bytes) -> Path:
        """Pull a layer and wait until it is stored, which is after the response; return its file."""
        digest = self.pull(content)
        (file,) = eventually(lambda: self.deployment.stored_files(digest), "the layer is stored")
        return file


@attrs.frozen
class ServingFailure(Failure):
    """A failure while the server runs. `fail` causes it."""

    fail: Callable[[Service], object]
    storage: dict[str, Any] = attrs.field(factory=dict, eq=False)
    needs_root: bool = True


def observe(failure: ServingFailure, directory: Path) -> Seen:
    """Let it fail, and wait for the first line of the log that is a warning or an error."""
    with ExitStack() as stack:
        registry = stack.enter_context(FakeRegistry())
        disk = directory / "disk"
        if failure.needs_root:
            stack.enter_context(mounted(disk, "size=16m,nr_inodes=400"))
        storage = {"directory": str(disk / "storage"), **failure.storage}
        deployment = stack.enter_context(open_deployment(registry, directory / "server", storage=storage))
        deployment.dockyard.storage = disk / "storage"
        service = Service(deployment, disk, {str(directory): "/DIRECTORY"})
        failure.fail(service)
        lines = eventually(
            lambda: warnings_and_errors(deployment.dockyard.read_log()), "a line of the log", LOGGED_WITHIN_S
        )
        return Seen(replace_variables(lines[0], service.names), output=deployment.dockyard.read_log())


def _be_full(service: Service) -> None:
    service.pull_and_store(b"the first layer")
    with contextlib.suppress(OSError), (service.disk / "other").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    service.pull(Random(1).randbytes(MIB))


def _have_no_inodes(service: Service) -> None:
    service.pull_and_store(b"the first layer")
    use_all_inodes(service.disk / "others")
    service.pull(Random(1).randbytes(MIB))


def _be_read_only(service: Service) -> None:
    service.pull_and_store(b"the first layer")
    make_read_only(service.disk)
    service.pull(Random(1).randbytes(MIB))


def _damage_layer(service: Service) -> None:
    content = Random(2).randbytes(MIB)
    file = service.pull_and_store(content)
    file.write_bytes(bytes(MIB))
    service.pull(content)


SERVING = (
    ServingFailure("the disk becomes full", "storage.directory", "0 MiB free", "free disk space", _be_full),
    ServingFailure(
        "the disk has no inodes left while the server runs",
        "/DIRECTORY/disk/storage",
        "No space left on device",
        "df -i",
        _have_no_inodes,
    ),
    ServingFailure(
        "the file system becomes read-only", "/DIRECTORY/disk/storage", "Read-only file system", "dmesg", _be_read_only
    ),
    ServingFailure(
        "another program changes a cached layer",
        "/DIRECTORY/disk/storage",
        "digest",
        "dmesg",
        _damage_layer,
        needs_root=False,
    ),
)

"""Failures of a start: the port, the host and the directory. The server ends, or starts with a warning."""

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import yaml

from tests.cases.file_systems import make_read_only, mounted, use_all_inodes
from tests.chaos.engine.patches import install_patch
from tests.failures.failure import Failure, Seen, replace_variables
from tests.failures.programs import run, warnings_and_errors
from tests.support.dockyard import Dockyard
from tests.support.processes import free_port

MIB = 1024 * 1024
WITHOUT_PRIVILEGES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
NO_LOCKS = """\
import errno, fcntl, os

def _refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

fcntl.flock = fcntl.lockf = _refuse
"""


@attrs.define
class Machine:
    """What a failure arranges before the server starts, and what is started instead of the plain server."""

    directory: Path
    undo: ExitStack
    server: dict[str, Any] = attrs.field(factory=dict)
    storage: dict[str, Any] = attrs.field(factory=dict)
    environ: dict[str, str] = attrs.field(factory=dict)
    names: dict[str, str] = attrs.field(factory=dict)
    wrapper: Sequence[str] = ()

    def disk(self, options: str) -> Path:
        """A small file system for the storage directory; needs root."""
        disk = self.undo.enter_context(mounted(self.directory / "disk", options))
        self.storage["directory"] = str(disk / "storage")
        return disk


@attrs.frozen
class StartFailure(Failure):
    """A failure of a start, and how it is made. `needs_root` is for mounts."""

    arrange: Callable[[Machine], object]
    needs_root: bool = False


def observe(failure: StartFailure, directory: Path) -> Seen:
    """Start a server there; it ends at once, or goes on with a warning."""
    with ExitStack() as undo:
        machine = Machine(directory, undo)
        machine.names[str(directory)] = "/DIRECTORY"
        machine.server |= {"host": "127.0.0.1", "port": str(free_port())}
        machine.storage["directory"] = str(directory / "storage")
        failure.arrange(machine)
        config = directory / "config.yaml"
        config.write_text(yaml.safe_dump({"server": machine.server, "storage": machine.storage}))
        output = run(
            directory,
            ["server", "-c", "config.yaml"],
            machine.environ,
            is_seen=lambda text: "Dockyard is starting" in text,
            wrapper=machine.wrapper,
        )
        lines = warnings_and_errors(output)
        assert len(lines) == 1, output
        return Seen(replace_variables(lines[0], machine.names), output=output)


def _use_port(machine: Machine) -> None:
    listening = machine.undo.enter_context(socket.create_server(("127.0.0.1", 0)))
    machine.server["port"] = str(listening.getsockname()[1])
    machine.names |= {machine.server["port"]: "PORT", Path("/proc/self/comm").read_text().strip(): "PROGRAM"}


def _use_privileged_port(machine: Machine) -> None:
    machine.server["port"] = "80"
    machine.wrapper = WITHOUT_PRIVILEGES if os.geteuid() == 0 else ()


def _use_another_host(machine: Machine) -> None:
    machine.server["host"] = "192.0.2.1"
    machine.names[machine.server["port"]] = "PORT"


def _use_file(machine: Machine) -> None:
    (machine.directory / "storage").write_text("a file")


def _use_file_in_path(machine: Machine) -> None:
    (machine.directory / "mnt").write_text("a file")
    machine.storage["directory"] = str(machine.directory / "mnt" / "dockyard")


def _forbid_writing(machine: Machine) -> None:
    storage = machine.directory / "storage"
    storage.mkdir(mode=0o555)
    machine.undo.callback(storage.chmod, 0o755)
    machine.wrapper = WITHOUT_PRIVILEGES if os.geteuid() == 0 else ()


def _forbid_creating(machine: Machine) -> None:
    parent = machine.directory / "mnt"
    parent.mkdir(mode=0o555)
    machine.undo.callback(parent.chmod, 0o755)
    machine.storage["directory"] = str(parent / "dockyard")
    machine.wrapper = WITHOUT_PRIVILEGES if os.geteuid() == 0 else ()


def _be_read_only(machine: Machine) -> None:
    make_read_only(machine.disk("size=4m"))


def _be_full(machine: Machine) -> None:
    disk = machine.disk("size=1m")
    with contextlib.suppress(OSError), (disk / "other").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def _have_no_inodes(machine: Machine) -> None:
    disk = machine.disk("size=4m,nr_inodes=20")
    (disk / "storage").mkdir()
    use_all_inodes(disk / "others")


def _be_used(machine: Machine) -> None:
    other = Dockyard(machine.directory / "other", [])
    del other.settings["upstreams"]
    other.storage = machine.directory / "storage"
    other.settings["storage"] = {"directory": str(other.storage)}
    machine.undo.callback(other.kill)
    other.start(wait=True)


def _refuse_locks(machine: Machine) -> None:
    machine.environ |= install_patch(machine.directory / "patch", NO_LOCKS)


PORTS = (
    StartFailure("the port is in use", "port PORT of 127.0.0.1", "in use by process PID", "server.port", _use_port),
    StartFailure(
        "a port below 1024 as an ordinary user",
        "127.0.0.1:80",
        "Permission denied",
        "CAP_NET_BIND_SERVICE",
        _use_privileged_port,
    ),
    StartFailure(
        "the host is not one of this machine",
        "192.0.2.1",
        "not an address of this machine",
        "server.host",
        _use_another_host,
    ),
)

DISKS = (
    StartFailure("the directory is a file", "/DIRECTORY/storage", "Not a directory", "storage.directory", _use_file),
    StartFailure(
        "a part of its path is a file",
        "/DIRECTORY/mnt/dockyard",
        "Not a directory",
        "storage.directory",
        _use_file_in_path,
    ),
    StartFailure(
        "the directory belongs to another user",
        "/DIRECTORY/storage",
        "Permission denied",
        "change its owner",
        _forbid_writing,
    ),
    StartFailure(
        "the directory cannot be created", "/DIRECTORY/mnt", "Permission denied", "change its owner", _forbid_creating
    ),
    StartFailure(
        "the file system is read-only",
        "/DIRECTORY/disk/storage",
        "Read-only file system",
        "storage.directory",
        _be_read_only,
        needs_root=True,
    ),
    StartFailure(
        "the disk is full",
        "/DIRECTORY/disk/storage",
        "No space left on device",
        "storage.directory",
        _be_full,
        needs_root=True,
    ),
    StartFailure(
        "the disk has no inodes left",
        "/DIRECTORY/disk/storage",
        "No space left on device",
        "storage.directory",
        _have_no_inodes,
        needs_root=True,
    ),
    StartFailure(
        "another server uses the directory", "/DIRECTORY/storage", "process PID", "storage.directory", _be_used
    ),
    StartFailure(
        "a file system without locks", "/DIRECTORY/storage", "No locks available", "storage.directory", _refuse_locks
    ),
)

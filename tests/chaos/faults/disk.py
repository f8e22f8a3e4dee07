"""The directory: the disk is full, read-only or without inodes, removed, its files damaged: S08, S13 to S15."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.deployment_case import (
    LOCAL_STEPS,
    DeploymentCaseRun,
    Steps,
    request_cached_blob,
    request_cold_blob,
)
from tests.chaos.engine.isolated_upstream import REPO, wait_for
from tests.chaos.engine.outcomes import Outcome, cut, either, hit, hit1, new, passed
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import MIB, DeploymentVariant, Fault
from tests.support import btrfs
from tests.support.bodies import digest_of
from tests.support.deployment import stays
from tests.support.dockyard import delete_in_use
from tests.support.http_client import send_request
from tests.support.programs import Programs

DISK_MIB = 64
MAX_INODES = 2000
WORKERS = 2
RESPONSE_WITHIN_S = 30.0
ALIVE_FOR_S = 0.5
FILLER = "filler"


def mount_small_disk(run: Run) -> None:
    """Mount a small file system as the directory of Dockyard."""
    if os.geteuid() and not os.environ.get("CI"):
        pytest.skip("only root mounts a small tmpfs")
    directory = run.directory / "deployment" / "storage"
    directory.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m,nr_inodes={MAX_INODES}", "tmpfs", directory], check=True
    )
    run.environment.stack.callback(subprocess.run, ["umount", "--lazy", directory], check=True)


def fill_up(run: Run) -> None:
    """Leave no block free."""
    with (run.deployment.dockyard.storage / FILLER).open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))
        with contextlib.suppress(OSError):
            while True:
                file.write(b"x")
    found = os.statvfs(run.deployment.dockyard.storage)
    assert found.f_bavail == 0, f"the disk has {found.f_bavail} blocks left"


def free_space(run: Run) -> None:
    """End `fill_up`."""
    (run.deployment.dockyard.storage / FILLER).unlink()


def wait_until_stored(run: Run) -> None:
    """Pull a new layer and wait until it is stored."""
    upstream, body = run.control, b"free space" * 100_000
    path = f"/v2/{upstream.prefix}/{REPO}/blobs/{upstream.fake_registry.add_blob(body)}"
    assert send_request(run.deployment.address, path).body == body
    wait_for(lambda: run.deployment.stored_files(digest_of(body)), "stored")


def _request_when_full(case: DeploymentCaseRun) -> None:
    """Request a layer when the disk is full already."""
    request_cold_blob(case)
    stays(case.deployment.dockyard.is_answering, "the process is alive", ALIVE_FOR_S)


# A layer that does not fit is passed on to the clients; each worker fetches it for its own clients.
_PASSED = attrs.evolve(passed(), gets=(1, WORKERS), within_s=RESPONSE_WITHIN_S)
_STEPS = {**LOCAL_STEPS, State.BLOB_COLD: _request_when_full}
_OUTCOMES: dict[State, tuple[Outcome, ...]] = {
    State.TAG_CACHED: (hit1(),),
    State.TAG_COLD: (passed(),),
    State.MANIFEST: (hit(), passed()),
    State.BLOB_CACHED: (either(hit(), _PASSED),),
    State.BLOB_COLD: (_PASSED,),
    State.BLOB_DOWNLOAD: (_PASSED,),
}


def _disk_variant(name: str, *, steps: Mapping[State, Steps] = _STEPS, **more: Any) -> DeploymentVariant:
    return DeploymentVariant(
        name, steps=steps, wait_until_recovered=wait_until_stored, workers=WORKERS, layer_bytes=6 * MIB, **more
    )


FULL = Fault(
    "S08",
    "The disk is full",
    (
        _disk_variant(
            "before a fetch, and at 50 % of one",
            outcomes=_OUTCOMES,
            prepare=mount_small_disk,
            inject=fill_up,
            end=free_space,
            reason="no response is cut: unused layers are evicted first; what does not fit is passed on from memory",
        ),
    ),
)

# S13


def _make_read_only(run: Run) -> None:
    """Mount the directory over itself, read-only: what is opened by its path from now on cannot be written."""
    storage = run.deployment.dockyard.storage
    subprocess.run(["mount", "-o", "bind,ro", storage, storage], check=True)


def _make_writable(run: Run) -> None:
    subprocess.run(["umount", "--lazy", run.deployment.dockyard.storage], check=True)


def _use_all_inodes(run: Run) -> None:
    directory = run.deployment.dockyard.storage / FILLER
    directory.mkdir()
    with contextlib.suppress(OSError):
        for number in range(MAX_INODES):
            (directory / str(number)).touch()
    assert not os.statvfs(directory).f_favail, "the disk has inodes left"


def _free_inodes(run: Run) -> None:
    shutil.rmtree(run.deployment.dockyard.storage / FILLER)


_KEPT_OR_PASSED = attrs.evolve(_PASSED, is_stored=None, says="from the upstream, stored if there is room")
_READ_ONLY_OUTCOMES: dict[State, tuple[Outcome, ...]] = {
    **_OUTCOMES,
    State.TAG_CACHED: (hit1(),),
    State.BLOB_CACHED: (hit(),),
    State.BLOB_DOWNLOAD: (attrs.evolve(_KEPT_OR_PASSED, says="from the upstream"),),
}
_NO_INODES_OUTCOMES: dict[State, tuple[Outcome, ...]] = {
    **dict.fromkeys(_OUTCOMES, (_KEPT_OR_PASSED,)),
    State.TAG_CACHED: (hit1(),),
    State.MANIFEST: (hit(), _KEPT_OR_PASSED),
    State.BLOB_CACHED: (either(hit(), _KEPT_OR_PASSED),),
}
UNWRITABLE = Fault(
    "S13",
    "The directory cannot be written",
    (
        _disk_variant(
            "read-only file system",
            outcomes=_READ_ONLY_OUTCOMES,
            prepare=mount_small_disk,
            inject=_make_read_only,
            end=_make_writable,
        ),
        _disk_variant(
            "no inodes left",
            outcomes=_NO_INODES_OUTCOMES,
            prepare=mount_small_disk,
            inject=_use_all_inodes,
            end=_free_inodes,
        ),
    ),
)

# S14


def _remove(run: Run) -> None:
    delete_in_use(run.deployment.dockyard.storage)


_FETCHED = attrs.evolve(_PASSED, is_stored=None, gets=(0, WORKERS), says="from memory or the upstream")
REMOVED = Fault(
    "S14",
    "The directory is removed while Dockyard runs",
    (
        _disk_variant(
            "at 50 % of a fetch",
            outcomes={state: (_FETCHED,) * (1 + (state is State.MANIFEST)) for state in _OUTCOMES},
            inject=_remove,
            recovery_s=15.0,
            reason="what was cached is fetched again; directories and sockets are made again within seconds",
        ),
    ),
)

# S15


def _damage(run: Run) -> None:
    """Flip a bit of a cached blob, without changing its size or its times."""
    [file] = run.deployment.stored_files(run.upstreams[State.BLOB_CACHED].layers["cached"].digest)
    before, body = file.stat(), bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    with file.open("r+b") as opened:
        opened.write(body)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _mount_btrfs(run: Run) -> None:
    """Mount a file system that verifies checksums as the directory of Dockyard."""
    storage = run.directory / "deployment" / "storage"
    run.data["disk"] = run.environment.stack.enter_context(btrfs.mounted(Programs(), storage))


def _break_sector(run: Run) -> None:
    """Change a byte of a cached blob on the disk: the file system does not return it any more."""
    [file] = run.deployment.stored_files(run.upstreams[State.BLOB_CACHED].layers["cached"].digest)
    run.data["disk"].break_page(file, file.stat().st_size // 2)


def _request_cached_blob_twice(case: DeploymentCaseRun) -> None:
    """Request a layer that is in the local store, and again."""
    request_cached_blob(case)
    truth, path = case.upstream.layers["cached"], case.upstream.blob_path("cached")
    case.request_and_judge(path, truth.data, case.outcomes[1], truth.digest)


_CUT = attrs.evolve(cut(5.0), requests=(0, 0), is_stored=None)
DAMAGED = Fault(
    "S15",
    "A stored file is damaged",
    (
        _disk_variant(
            "a flipped bit",
            outcomes={State.BLOB_CACHED: (new(),)},
            inject=_damage,
            reason="the damage is found before the response starts, and the blob is fetched again",
        ),
        _disk_variant(
            "a sector that cannot be read",
            steps={**_STEPS, State.BLOB_CACHED: _request_cached_blob_twice},
            outcomes={State.BLOB_CACHED: (_CUT, new())},
            prepare=_mount_btrfs,
            inject=_break_sector,
            reason="the file was verified before; it is verified again before its next use, and fetched again",
        ),
    ),
)

FAULTS = (FULL, UNWRITABLE, REMOVED, DAMAGED)

"""The disk is full: S08."""

import contextlib
import os
import subprocess

import attrs
import pytest

from tests.chaos.engine.case import State
from tests.chaos.engine.deployment_case import LOCAL_STEPS, DeploymentCaseRun, request_cold_blob
from tests.chaos.engine.isolated_upstream import REPO, wait_for
from tests.chaos.engine.outcomes import Outcome, either, hit, hit1, passed
from tests.chaos.engine.run import Run
from tests.chaos.engine.variant import MIB, DeploymentVariant, Fault
from tests.support.bodies import digest_of
from tests.support.deployment import stays
from tests.support.http_client import send_request

DISK_MIB = 64
WORKERS = 2
RESPONSE_WITHIN_S = 30.0
ALIVE_FOR_S = 0.5
FILLER = "filler"


def _small_disk(run: Run) -> None:
    """Mount a small file system as the directory of Dockyard."""
    if os.geteuid() and not os.environ.get("CI"):
        pytest.skip("only root mounts a small tmpfs")
    directory = run.directory / "deployment" / "storage"
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", directory], check=True)
    run.environment.stack.callback(subprocess.run, ["umount", "--lazy", directory], check=True)


def _fill_up(run: Run) -> None:
    with (run.deployment.dockyard.storage / FILLER).open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))
        with contextlib.suppress(OSError):
            while True:
                file.write(b"x")
    found = os.statvfs(run.deployment.dockyard.storage)
    assert found.f_bavail == 0, f"the disk has {found.f_bavail} blocks left"


def _free_space(run: Run) -> None:
    (run.deployment.dockyard.storage / FILLER).unlink()


def _wait_until_stored(run: Run) -> None:
    """Pull a new layer and wait until it is stored."""
    upstream, body = run.control, b"free space" * 100_000
    path = f"/v2/{upstream.prefix}/{REPO}/blobs/{upstream.fake_registry.add_blob(body)}"
    assert send_request(run.deployment.address, path).body == body
    wait_for(lambda: run.deployment.stored_files(digest_of(body)), "stored", 5.0)


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

FULL = Fault(
    "S08",
    "The disk is full",
    (
        DeploymentVariant(
            "before a fetch, and at 50 % of one",
            steps=_STEPS,
            outcomes=_OUTCOMES,
            prepare=_small_disk,
            inject=_fill_up,
            end=_free_space,
            wait_until_recovered=_wait_until_stored,
            workers=WORKERS,
            layer_bytes=6 * MIB,
            reason="no response is cut: unused layers are evicted first; what does not fit is passed on from memory",
        ),
    ),
)

FAULTS = (FULL,)

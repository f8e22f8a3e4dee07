"""Section S of the matrix, the disk: no room for what is being fetched."""

import contextlib
import os
import subprocess

import attrs
import pytest

from tests.chaos.bucket_scenes import TELL as TELL_WITH_BUCKET
from tests.chaos.cells import State
from tests.chaos.clock_plots import TELL as TELL_CACHED
from tests.chaos.lanes import REPO, wait_for
from tests.chaos.outcomes import Outcome, either, hit, hit1, passed
from tests.chaos.scenes import MIB, Fault, Part, Plot, Scene, Tell
from tests.support.bodies import digest_of
from tests.support.deployment import stays
from tests.support.http_client import send_request

DISK_MIB = 64
WORKERS = 2
WAIT_S = 30.0
STAYS_S = 0.5
IN_THE_WAY = "in-the-way"


def _small_disk(scene: Scene) -> None:
    """Dockyard's directory is a file system of its own."""
    if os.geteuid() and not os.environ.get("CI"):
        pytest.skip("only root mounts a small tmpfs")
    directory = scene.directory / "deployment" / "storage"
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", directory], check=True)
    scene.stack.callback(subprocess.run, ["umount", "--lazy", directory], check=True)


def _fill_up(scene: Scene) -> None:
    with (scene.deployment.dockyard.storage / IN_THE_WAY).open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB))
        with contextlib.suppress(OSError):
            while True:
                file.write(b"x")
    found = os.statvfs(scene.deployment.dockyard.storage)
    assert found.f_bavail == 0, f"the disk has {found.f_bavail} blocks left"


def _give_room(scene: Scene) -> None:
    (scene.deployment.dockyard.storage / IN_THE_WAY).unlink()


def _keeps_again(scene: Scene) -> None:
    """A new layer is stored."""
    lane, body = scene.control, b"room again" * 100_000
    path = f"/v2/{lane.prefix}/{REPO}/blobs/{lane.fake_registry.add_blob(body)}"
    assert send_request(scene.deployment.address, path).body == body
    wait_for(lambda: scene.deployment.stored_files(digest_of(body)), "stored again", 5.0)


def _fetched_when_full(part: Part) -> None:
    """The disk is full before the fetch begins."""
    truth = part.lane.layers["cold"]
    part.meet()
    part.see(part.lane.blob_path("cold"), truth.data, part.outcomes[0], truth.digest)
    stays(part.deployment.dockyard.is_answering, "the process is alive", STAYS_S)


# What comes from the upstream is passed on; each worker fetches for its own clients what does not fit.
_PASSED = attrs.evolve(passed(), gets=(1, WORKERS), within_s=WAIT_S)
_TELL: dict[State, Tell] = {**TELL_WITH_BUCKET, **TELL_CACHED, State.BLOB_COLD: _fetched_when_full}
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
        Plot(
            "before a fetch, and at 50 % of one",
            tell=_TELL,
            outcomes=_OUTCOMES,
            prepare=_small_disk,
            strike=_fill_up,
            mend=_give_room,
            recover=_keeps_again,
            workers=WORKERS,
            layer_bytes=6 * MIB,
            reason="nobody is cut: what does not fit goes on in memory; layers that nobody uses make room first",
        ),
    ),
)

FAULTS = (FULL,)

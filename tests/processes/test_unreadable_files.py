"""Files of the local store that the disk cannot read any more: bad sectors, wrong checksums, storage that is not local.

No sign of it is in the file itself: size and times are as before, and it was verified when it was written.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from threading import Event

import pytest

from tests.support import btrfs, faults
from tests.support.btrfs import BtrfsDisk
from tests.support.deployment import Deployment, eventually, open_deployment, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.programs import Programs

MIB = 1024 * 1024
UNREADABLE = "cannot read a cached blob"
# Blobs of these sizes are read at once, sent by Granian, and sent with sendfile.
SIZES = (100_000, 700_000, 6 * MIB)


@pytest.fixture
def disk(programs: Programs, tmp_path: Path) -> Iterator[BtrfsDisk]:
    """A disk for the local store."""
    with btrfs.mounted(programs, tmp_path / "storage") as disk:
        yield disk


@pytest.fixture
def start(disk: BtrfsDisk, fake_registry: FakeRegistry) -> Iterator[Callable[..., Deployment]]:
    """Start a Dockyard whose local store is on the disk."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(open_deployment(fake_registry, disk.directory.parent, **settings))


def store(deployment: Deployment, body: bytes) -> tuple[str, Path]:
    """Have a blob stored; its path in the API, and its file. Then forget which requests the registry has received."""
    digest = deployment.fake_registry.add_blob(body)
    path = f"/v2/up.test/app/blobs/{digest}"
    assert deployment.get(path).body == body
    (file,) = eventually(lambda: deployment.stored_files(digest), "stored")
    assert deployment.get(path).body == body
    deployment.fake_registry.clear_exchanges()
    return path, file


def assert_healed(deployment: Deployment, path: str, body: bytes) -> None:
    """The blob is fetched once, and all of it is served from then on."""
    for _ in range(4):
        assert deployment.get(path).body == body
    assert deployment.fake_registry.count("blob", "GET") == 1


@pytest.mark.parametrize(
    ("verify", "zero_copy"), [("start", True), ("start", False), ("never", True), ("always", True)]
)
def test_a_blob_that_cannot_be_read_is_fetched_again(
    disk: BtrfsDisk, start: Callable[..., Deployment], verify: str, *, zero_copy: bool
) -> None:
    """The response that meets the error is no complete one; the next is right, whatever `storage.verify` says."""
    deployment = start(workers=2, storage={"verify": verify}, server={"zero_copy": zero_copy})
    for size, place in itertools.product(SIZES, (0.0, 0.5, 1.0)):
        body = Random(f"{size} {place}").randbytes(size)
        path, file = store(deployment, body)
        disk.break_page(file, int(place * (size - 1)))
        first = deployment.get(path)
        is_verified_now = verify == "always" or (verify == "start" and first.status == 200 and first.is_complete)
        if is_verified_now:  # after a slow rename, too: then it is found before the response starts
            assert first.body == body
        elif place == 0.0:
            assert (first.status, first.error, first.header("Retry-After")) == (503, "UNAVAILABLE", "1")
        else:
            assert first.status == 200
            assert first.ended == "fin"
            assert body.startswith(first.body)
        assert_healed(deployment, path, body)
    assert "Traceback" not in deployment.wait_for_log(UNREADABLE)


def test_ranges_of_a_blob_that_cannot_be_read(disk: BtrfsDisk, start: Callable[..., Deployment]) -> None:
    """A client that continues after the bytes that it got has all of it in the end."""
    deployment = start()
    body = Random(2).randbytes(6 * MIB)
    path, file = store(deployment, body)
    disk.break_page(file, 5 * MIB)
    received = b""
    for _ in range(3):
        received += deployment.get(path, Range=f"bytes={len(received)}-").body
        if len(received) == len(body):
            break
    assert received == body
    assert deployment.fake_registry.count("blob", "GET") == 1


def test_a_blob_that_cannot_be_read_while_the_upstream_is_down(
    disk: BtrfsDisk, start: Callable[..., Deployment]
) -> None:
    """It is an error until the upstream is there again; other blobs are served."""
    deployment = start()
    body, other = Random(3).randbytes(6 * MIB), Random(4).randbytes(6 * MIB)
    other_path, _ = store(deployment, other)
    path, file = store(deployment, body)
    disk.break_page(file, 3 * MIB)
    deployment.fake_registry.listener.close()
    assert deployment.get(path).body != body
    for _ in range(3):
        assert deployment.get(path).status in (502, 503, 504)
        assert deployment.get(other_path).body == other
    deployment.fake_registry.listener.open()
    eventually(lambda: deployment.get(path).body == body, "served again")
    deployment.fake_registry.clear_exchanges()
    assert deployment.get(path).body == body
    assert deployment.fake_registry.received() == []


@pytest.mark.parametrize("place", [0.5, 1.0], ids=["middle", "end"])
def test_what_a_former_download_left_cannot_be_read(
    disk: BtrfsDisk, start: Callable[..., Deployment], fake_registry: FakeRegistry, place: float
) -> None:
    """The blob is received from its beginning, and stored; the client notices nothing."""
    deployment = start()
    body = Random(5).randbytes(6 * MIB)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(body)}"
    with set_at_exit(Event()) as never:
        rule = fake_registry.on("blob", faults.stalled_at_offset(4 * MIB, never))
        with deployment.stream(path) as download:
            download.head().read(3 * MIB)
            eventually(lambda: max(file.stat().st_size for file in deployment.partial_files()) >= 4 * MIB, "4 MiB")
            deployment.dockyard.kill()
        fake_registry.remove_rules(rule)
    (left,) = eventually(deployment.interrupted_downloads, "the killed processes are gone")
    disk.break_page(left, int(place * (left.stat().st_size - 1)))
    fake_registry.clear_exchanges()
    deployment.dockyard.start()
    assert deployment.get(path).body == body
    (exchange,) = fake_registry.received("blob", "GET")
    assert exchange.request.header("Range") is None
    deployment.wait_for_log("cannot read a partial file of a former download")
    eventually(lambda: deployment.stored_files(path.rpartition("/")[2]), "stored")
    assert deployment.get(path).body == body
    assert fake_registry.count("blob", "GET") == 1

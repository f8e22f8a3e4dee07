"""A cached blob whose bytes have changed is never served as complete, and verified once however many ask."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import FakeRegistry

MIB = 1024 * 1024
SIZES = pytest.mark.parametrize("size", [5_000, 3 * MIB], ids=["small", "large"])


def overwrite(file: Path, offset: int = 1000, data: bytes = b"DAMAGE") -> None:
    """Change bytes of a cached file without changing its size or its times, as bit rot does."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def pull(deployment: Deployment, digest: str) -> str:
    """Pull a blob and return the digest of what came; empty if the response did not complete."""
    response = deployment.get(f"/v2/up.test/org/app/blobs/{digest}")
    return digest_of(response.body) if response.status == 200 and response.is_complete else ""


def store_blob(deployment: Deployment, fake_registry: FakeRegistry, size: int) -> tuple[str, Path]:
    """Pull a blob of random bytes, and return its digest and its file in the local store."""
    digest = fake_registry.add_blob(Random(size).randbytes(size))
    assert pull(deployment, digest) == digest
    (file,) = eventually(lambda: deployment.stored_files(digest), "stored")
    return digest, file


@SIZES
def test_bytes_that_changed_while_the_server_was_stopped_are_not_served(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, size: int
) -> None:
    """A restore, bit rot, another program: the blob is fetched again, and the log and a metric tell."""
    deployment = make_deployment()
    digest, file = store_blob(deployment, fake_registry, size)
    deployment.dockyard.stop()
    overwrite(file)
    deployment.dockyard.start()
    assert [pull(deployment, digest) for _ in range(3)] == [digest] * 3
    assert fake_registry.count("blob", "GET") == 2
    deployment.wait_for_log("damaged")
    damaged = [line for line in deployment.get("/metrics").body.decode().splitlines() if "damaged" in line]
    assert any(line.endswith(" 1.0") for line in damaged if not line.startswith("#")), damaged


@SIZES
def test_bytes_that_change_while_the_server_runs_are_not_served(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, size: int
) -> None:
    """No response completes with other bytes; the next one is right."""
    deployment = make_deployment()
    digest, file = store_blob(deployment, fake_registry, size)
    overwrite(file)
    assert {pull(deployment, digest) for _ in range(2)} <= {digest, ""}
    assert pull(deployment, digest) == digest


def test_a_large_blob_is_hashed_once_after_an_unclean_stop(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """24 clients of two workers ask for a piece of it: the file is read once as a whole, by one worker."""
    size = 96 * MIB
    content = Random(1).randbytes(MIB) * 96
    digest = fake_registry.add_blob(content)
    deployment = make_deployment(workers=2)
    path = f"/v2/up.test/org/app/blobs/{digest}"
    assert deployment.get(path).is_complete
    eventually(lambda: deployment.stored_files(digest), "stored")
    deployment.dockyard.kill()
    deployment.dockyard.start()
    deployment.wait_for_workers(2)
    before = read_bytes(deployment)
    responses = deployment.get_concurrently([path] * 24, Range="bytes=100-199")
    assert {(response.status, response.body) for response in responses} == {(206, content[100:200])}
    assert size <= read_bytes(deployment) - before < 1.5 * size
    assert fake_registry.count("blob", "GET") == 1


def read_bytes(deployment: Deployment) -> int:
    """Bytes that the workers have read so far, from the page cache or the disk."""
    texts = [Path(f"/proc/{pid}/io").read_text() for pid in deployment.dockyard.worker_pids()]
    return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("rchar:"))

"""The storage directory: a full disk, the size limit, damaged files."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random

import pytest

from tests.support.bodies import Bytes, Synthetic, digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.dockyard import delete_in_use
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import send_request
from tests.support.processes import free_port, memory_bytes

MIB = 1024 * 1024


@pytest.fixture
def mount_tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a file system with these options; returns its directory."""
    with ExitStack() as mounts:

        def mount(options: str) -> Path:
            mountpoint = tmp_path / f"disk-{options}"
            mountpoint.mkdir()
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", mountpoint], capture_output=True, check=False
            )
            if mounted.returncode:
                reason = f"cannot mount a small tmpfs: {mounted.stderr.decode().strip()}"
                pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
            mounts.callback(subprocess.run, ["umount", "--lazy", mountpoint], check=True)
            return mountpoint

        yield mount


@pytest.fixture
def small_disk(mount_tmpfs: Callable[[str], Path]) -> Path:
    """Mount a file system of 32 MiB."""
    return mount_tmpfs("size=32m")


@pytest.mark.parametrize("clients", [1, 20])
@pytest.mark.parametrize("size", [20 * MIB, 60 * MIB], ids=["reserved before", "larger than the disk"])
def test_clients_are_served_with_a_full_disk(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, small_disk: Path, clients: int, size: int
) -> None:
    """The layer does not fit: all clients get the right bytes all the same, and the server continues."""
    (small_disk / "in-the-way").write_bytes(bytes(20 * MIB))
    content = Bytes(Random(size).randbytes(size))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(workers=2, storage={"directory": str(small_disk / "storage")})
    with deployment.crowd(path, content, clients) as crowd:
        crowd.run()
        assert all(member.is_right for member in crowd.members), crowd.summary()
    small = fake_registry.add_blob(b"a small blob")
    image = fake_registry.add_image("app", "v1", [b"a layer"])
    assert deployment.get(f"/v2/up.test/app/blobs/{small}").body == b"a small blob"
    assert deployment.get("/v2/up.test/app/manifests/v1").body == image.body
    (small_disk / "in-the-way").unlink()
    medium = fake_registry.add_blob(Random(15).randbytes(5 * MIB))
    for _ in range(2):
        assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{medium}").body) == medium
    eventually(lambda: (small_disk / "storage").rglob(medium.partition(":")[2]), "kept again")
    assert fake_registry.count("blob", "GET", reference=medium) <= 2


def test_hits_are_served_with_a_full_disk(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, small_disk: Path
) -> None:
    """With no byte left, cached content is served, and a tag is still checked."""
    image = fake_registry.add_image("app", "v1", [b"a layer"])
    deployment = make_deployment(storage={"directory": str(small_disk / "storage")})
    paths = ["/v2/up.test/app/manifests/v1", f"/v2/up.test/app/blobs/{image.layers[0]}"]
    bodies = [deployment.get(path).body for path in paths]
    fill_up(small_disk / "in-the-way")
    assert [deployment.get(path).body for path in paths] == bodies
    new = fake_registry.add_image("app", "v1", [b"another layer"])
    assert deployment.get(paths[0]).body == new.body
    assert deployment.get(f"/v2/up.test/app/blobs/{new.layers[0]}").body == b"another layer"


def fill_up(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            return


def _kept(deployment: Deployment, digests: list[str]) -> list[bool]:
    return [bool(deployment.stored_files(digest)) for digest in digests]


def _stored_bytes(deployment: Deployment) -> int:
    total = 0
    for path in deployment.dockyard.storage.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
            total += path.stat().st_size if path.is_file() and "blobs" in path.parts else 0
    return total


def test_the_size_limit_evicts_the_least_recently_used(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Over the limit, the least recently used blob is removed first, and fetched again when it is requested."""
    digests = [fake_registry.add_blob(Random(n).randbytes(3 * MIB)) for n in range(4)]
    deployment = make_deployment(storage={"max_size": "10MiB"})
    for number, digest in enumerate(digests[:3]):
        assert deployment.get(f"/v2/up.test/app/blobs/{digest}").status == 200
        (file,) = eventually(partial(deployment.stored_files, digest), "it is stored")
        os.utime(file, (time.time() - 3600 + number, file.stat().st_mtime))
    assert deployment.get(f"/v2/up.test/app/blobs/{digests[0]}").status == 200
    assert deployment.get(f"/v2/up.test/app/blobs/{digests[3]}").status == 200
    eventually(lambda: _kept(deployment, digests) == [True, False, True, True], "the second one has gone")
    assert _stored_bytes(deployment) <= 10 * MIB
    assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{digests[1]}").body) == digests[1]
    assert fake_registry.count("blob", "GET", reference=digests[1]) == 2
    assert fake_registry.count("blob", "GET", reference=digests[0]) == 1


def test_the_size_limit_holds_over_all_workers(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Four workers share one directory and its size limit."""
    deployment = make_deployment(workers=4, storage={"max_size": "16MiB"})
    for number in range(30):
        digest = fake_registry.add_blob(Random(number).randbytes(MIB))
        assert deployment.get(f"/v2/up.test/app/blobs/{digest}").status == 200
    eventually(lambda: 0 < _stored_bytes(deployment) <= 16 * MIB, "within the cap")


def test_a_layer_larger_than_the_size_limit_is_served(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A layer that may not be kept is passed on whole."""
    content = Bytes(Random(16).randbytes(8 * MIB))
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    deployment = make_deployment(storage={"max_size": "4MiB"})
    for _ in range(2):
        response = deployment.get(path)
        assert (response.ended, response.body == content.data) == ("length", True)
    eventually(lambda: _stored_bytes(deployment) <= 4 * MIB, "within the cap")


@pytest.mark.parametrize("size", [0, 1000], ids=["emptied", "cut short"])
def test_a_cached_file_of_the_wrong_size_is_not_served(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, size: int
) -> None:
    """A file that was truncated, in a crash or by hand, is never a short 200: it is fetched again."""
    digest = fake_registry.add_blob(Random(17).randbytes(2 * MIB))
    deployment = make_deployment()
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}").status == 200
    (file,) = eventually(lambda: deployment.stored_files(digest), "stored")
    deployment.dockyard.kill()
    os.truncate(file, size)
    deployment.dockyard.start()
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert response.status == 200
    assert digest_of(response.body) == digest
    assert fake_registry.count("blob", "GET", reference=digest) == 2


def test_a_file_damaged_in_a_crash_is_verified_before_its_first_use(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """After an unclean end a file is hashed once: other bytes of the same length are not served."""
    digest = fake_registry.add_blob(Random(18).randbytes(2 * MIB))
    deployment = make_deployment()
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}").status == 200
    (file,) = eventually(lambda: deployment.stored_files(digest), "stored")
    deployment.dockyard.kill()
    with file.open("r+b") as opened:
        opened.seek(MIB)
        opened.write(b"damaged")
    deployment.dockyard.start()
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert not response.is_complete or digest_of(response.body) == digest
    assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{digest}").body) == digest


@pytest.mark.parametrize("content", [b"", b"not a digest", b"sha256:" + b"8" * 64])
def test_a_damaged_tag_pointer_is_replaced(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, content: bytes
) -> None:
    """A pointer that holds no digest, or an empty one, is written again from the upstream."""
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    assert deployment.get("/v2/up.test/app/manifests/v1").status == 200
    (pointer,) = deployment.dockyard.storage.glob("**/tags/v1")
    deployment.dockyard.stop()
    pointer.write_bytes(content)
    deployment.dockyard.start()
    assert deployment.get("/v2/up.test/app/manifests/v1").body == image.body
    eventually(lambda: pointer.read_bytes() == image.digest.encode(), "the pointer is right again")


def _pull_new_layer(deployment: Deployment, fake_registry: FakeRegistry, number: int, times: int = 3) -> int:
    """Pull a layer that is not cached some times; returns how many GETs that took."""
    digest = fake_registry.add_blob(Random(number).randbytes(2 * MIB))
    for _ in range(times):
        assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{digest}").body) == digest
    return fake_registry.count("blob", "GET", reference=digest)


@pytest.mark.parametrize("deleted", ["*", "cache", "partial", "run", "run/*", "run/*.sock", "run/*.lock"])
def test_deleted_directories_are_created_again(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, deleted: str
) -> None:
    """Within seconds a pull is kept, and the workers find each other: twenty clients are one fetch."""
    image = fake_registry.add_image("app", "v1", [b"a layer"])
    deployment = make_deployment(workers=2)
    assert _pull_new_layer(deployment, fake_registry, 30) == 1
    deployment.wait_for_workers(2)
    storage = deployment.dockyard.storage
    for path in [storage] if deleted == "*" else list(storage.glob(deleted)):
        delete_in_use(path) if path.is_dir() else path.unlink()
    assert _pull_new_layer(deployment, fake_registry, 31) == 1
    eventually(lambda: len(list(storage.glob("run/shard-*.sock"))) == 2, "the sockets are there again")
    eventually(lambda: len(list(storage.glob("run/shard-*.lock"))) == 2, "the locks are there again")
    content = Bytes(Random(32).randbytes(6 * MIB))
    digest = fake_registry.add_blob(content)
    with deployment.crowd(f"/v2/up.test/app/blobs/{digest}", content, 20) as crowd:
        crowd.run()
        assert all(member.is_right for member in crowd.members), crowd.summary()
    assert fake_registry.count("blob", "GET", reference=digest) == 1
    assert deployment.get("/v2/up.test/app/manifests/v1").body == image.body
    assert len(deployment.dockyard.worker_pids()) == 2


def test_a_store_on_another_file_system_is_used(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    mount_tmpfs: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    """`cache` is a link to a larger disk: blobs and tags are kept there, and the partial files of downloads are too."""
    disk, storage = mount_tmpfs("size=64m"), tmp_path / "storage"
    storage.mkdir()
    (storage / "cache").symlink_to(disk)
    image = fake_registry.add_image("app", "v1", [b"a layer"])
    deployment = make_deployment(workers=2, storage={"directory": str(storage)})
    assert _pull_new_layer(deployment, fake_registry, 33) == 1
    for _ in range(3):
        assert deployment.get("/v2/up.test/app/manifests/v1").body == image.body
    assert fake_registry.count("manifest", "GET") == 1
    assert "cannot" not in deployment.read_log()
    assert list((disk / "blobs" / ".partial").iterdir()) == []


def test_new_content_is_kept_when_there_are_no_inodes(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, mount_tmpfs: Callable[[str], Path]
) -> None:
    """Tags have used up the inodes: old ones make room for a layer and for a tag."""
    disk = mount_tmpfs("size=400m,nr_inodes=400")
    deployment = make_deployment(workers=2, storage={"directory": str(disk / "storage"), "max_size": "300MiB"})
    for number in range(8):
        assert _pull_new_layer(deployment, fake_registry, 40 + number) == 1
    for number in range(250):
        fake_registry.add_image("app", f"v{number}", [f"layer {number}".encode()])
        assert deployment.get(f"/v2/up.test/app/manifests/v{number}").status == 200
    assert _pull_new_layer(deployment, fake_registry, 60) <= 2
    image = fake_registry.add_image("app", "new", [b"new"])
    for _ in range(3):
        assert deployment.get("/v2/up.test/app/manifests/new").body == image.body
    assert fake_registry.count("manifest", "GET", reference="new") <= 2
    assert _pull_new_layer(deployment, fake_registry, 40) == 1
    assert deployment.get("/metrics").body.count(b"dockyard_evicted_bytes_total 0.0") == 0


def test_it_starts_without_inodes_and_serves_what_it_has(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, mount_tmpfs: Callable[[str], Path]
) -> None:
    """Other programs took all inodes while it did not run; it makes room from its own cache when it needs some."""
    disk = mount_tmpfs("size=40m,nr_inodes=150")
    deployment = make_deployment(workers=2, storage={"directory": str(disk / "storage")})
    for number in range(3):
        assert _pull_new_layer(deployment, fake_registry, 70 + number) == 1
    deployment.dockyard.kill()
    try:
        for number in range(200):
            (disk / f"in the way {number}").touch()
    except OSError:
        pass
    deployment.dockyard.start()
    assert _pull_new_layer(deployment, fake_registry, 72) == 1
    assert _pull_new_layer(deployment, fake_registry, 73) <= 2


@pytest.mark.parametrize("is_run_there", [True, False], ids=["as it was", "the cache only"])
def test_a_read_only_directory_is_served(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    mount_tmpfs: Callable[[str], Path],
    *,
    is_run_there: bool,
) -> None:
    """Cached content is served, also while the upstream is away; new content is passed on without being kept."""
    disk = mount_tmpfs("size=40m")
    image = fake_registry.add_image("app", "v1", [b"a layer"])
    deployment = make_deployment(workers=2, storage={"directory": str(disk)})
    large = fake_registry.add_blob(Random(90).randbytes(2 * MIB))
    paths = ["/v2/up.test/app/manifests/v1", *(f"/v2/up.test/app/blobs/{each}" for each in (image.layers[0], large))]
    bodies = [deployment.get(path).body for path in paths]
    deployment.dockyard.stop()
    if not is_run_there:
        for name in ("run", "partial"):
            shutil.rmtree(disk / name)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    (listener,) = fake_registry.listeners.values()
    listener.close()
    deployment.dockyard.start()
    for _ in range(3):
        assert [deployment.get(path).body for path in paths] == bodies
    listener.open()
    new = fake_registry.add_blob(Random(91).randbytes(2 * MIB))
    path = f"/v2/up.test/app/blobs/{new}"
    eventually(lambda: digest_of(deployment.get(path).body) == new, "the circuit breakers are closed again")
    assert len(deployment.dockyard.worker_pids()) == 2
    deployment.dockyard.stop()
    assert "Traceback" not in deployment.dockyard.read_log()


def test_the_size_limit_holds_while_the_bucket_is_away(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Objects that are not published yet are evicted as well, which is logged once and counted."""
    bucket = {"bucket": "bucket", "endpoint": f"127.0.0.1:{free_port()}", "use_ssl": False, "force_path_style": True}
    bucket |= {"access_key": "a", "secret_key": "s"}
    deployment = make_deployment(workers=2, storage={"max_size": "10MiB", **bucket})
    for number in range(12):
        assert _pull_new_layer(deployment, fake_registry, 80 + number, times=1) == 1
    eventually(lambda: 0 < _stored_bytes(deployment) <= 10 * MIB, "within the cap")
    assert deployment.read_log().count("evicted objects that are not in the bucket yet") == 1
    assert b"dockyard_evicted_unpublished_total 0.0" not in deployment.get("/metrics").body


@pytest.mark.parametrize("clients", [1, 150])
def test_downloads_without_a_disk_have_a_limit_of_memory(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, small_disk: Path, clients: int
) -> None:
    """150 layers, one after the other or at once: they are all served, and the memory is given back."""
    deployment = make_deployment(workers=1, storage={"directory": str(small_disk / "storage")})
    fill_up(small_disk / "in-the-way")
    layers = [Synthetic(9 * MIB, first=20 * number) for number in range(150)]
    paths = [f"/v2/up.test/app/blobs/{fake_registry.add_blob(layer)}" for layer in layers]
    (pid,) = deployment.dockyard.worker_pids()
    peak_bytes = []

    def pull(path: str) -> bool:
        response = send_request(deployment.address, path, timeout_s=120)
        peak_bytes.append(memory_bytes(pid))
        return path.endswith(digest_of(response.body))

    with ThreadPoolExecutor(clients) as pool:
        assert all(pool.map(pull, paths))
    assert max(peak_bytes) < 400 * MIB

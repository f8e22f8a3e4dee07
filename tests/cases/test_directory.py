"""The directory as the world has it: housekeeping that fails never turns a hit into a miss, and the size cap holds."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.cases.file_systems import make_read_only, mounted, use_all_inodes
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually, stays
from tests.support.dockyard import delete_in_use
from tests.support.fake_registry import FakeRegistry
from tests.support.programs import need_root

MIB = 1024 * 1024


def blob_path(digest: str) -> str:
    """The path of a blob, as clients send it."""
    return f"/v2/up.test/org/app/blobs/{digest}"


def assert_pulled(deployment: Deployment, digest: str) -> None:
    """The blob is served, whole and right."""
    response = deployment.get(blob_path(digest))
    assert (response.status, response.is_complete, digest_of(response.body)) == (200, True, digest), response


def stored_bytes(directory: Path) -> int:
    """The size of all cached blobs."""
    return sum(file.stat().st_size for file in directory.rglob("cache/blobs/**/*") if file.is_file())


def add_layers(fake_registry: FakeRegistry, count: int, size: int = 3 * MIB) -> list[str]:
    """Add layers of their own bytes."""
    return [fake_registry.add_blob(Random(number).randbytes(size)) for number in range(count)]


def test_a_layer_whose_access_time_cannot_be_set_is_a_hit(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The files belong to somebody else, as after a restore: they are readable, and served without the upstream."""
    need_root("a server without some of root's capabilities")
    [layer] = add_layers(fake_registry, 1)
    wrapper = ["setpriv", "--bounding-set=-fowner,-dac_override", "--inh-caps=-fowner,-dac_override"]
    deployment = make_deployment(wrapper=wrapper)
    assert_pulled(deployment, layer)
    (file,) = eventually(lambda: deployment.stored_files(layer), "stored")
    deployment.dockyard.stop()
    an_hour_ago = time.time() - 3600
    os.chown(file, 12345, 12345)
    file.chmod(0o644)
    os.utime(file, (an_hour_ago, an_hour_ago))
    deployment.dockyard.start()
    fake_registry.listener.close()
    for _ in range(3):
        assert_pulled(deployment, layer)
        assert deployment.head(blob_path(layer)).status == 200
    assert fake_registry.count("blob", "GET") == 1


def test_what_is_cached_is_served_from_a_file_system_that_became_read_only(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """The kernel does so after an error of the disk; what is not cached is passed on."""
    layers = add_layers(fake_registry, 2)
    with mounted(tmp_path / "disk", "size=32m") as disk:
        deployment = make_deployment(storage={"directory": str(disk / "storage")})
        assert_pulled(deployment, layers[0])
        eventually(lambda: stored_bytes(disk) >= 3 * MIB, "stored")
        make_read_only(disk)
        for _ in range(2):
            assert_pulled(deployment, layers[0])
            assert_pulled(deployment, layers[1])
        assert fake_registry.count("blob", "GET", reference=layers[0]) == 1
        deployment.dockyard.kill()


def test_room_is_made_when_inodes_run_out(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """A new layer and a new tag are kept although each tag of a build system left small files."""
    layers = add_layers(fake_registry, 5, MIB)
    with mounted(tmp_path / "disk", "size=100m,nr_inodes=300") as disk:
        deployment = make_deployment(storage={"directory": str(disk / "storage"), "max_size": "80MiB"})
        for layer in layers[:4]:
            assert_pulled(deployment, layer)
        number = 0
        while os.statvfs(disk).f_favail > 8 and number < 300:
            fake_registry.add_image("org/app", f"t{number}", [b"a layer"])
            assert deployment.get(f"/v2/up.test/org/app/manifests/t{number}").status == 200
            number += 1
        use_all_inodes(disk / "others")
        for _ in range(3):
            assert_pulled(deployment, layers[4])
            eventually(lambda: os.statvfs(disk).f_favail > 0, "room is made")
        assert fake_registry.count("blob", "GET", reference=layers[4]) <= 2
        image = fake_registry.add_image("org/app", "new", [b"a layer"])
        for _ in range(3):
            assert deployment.get("/v2/up.test/org/app/manifests/new").body == image.body
            time.sleep(0.2)
        assert fake_registry.count("manifest", "GET", reference=image.digest) <= 2


def test_a_removed_directory_comes_back(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Within seconds a pull is kept, and 20 clients of two workers are one request."""
    layers = add_layers(fake_registry, 3)
    deployment = make_deployment(workers=2)
    assert_pulled(deployment, layers[0])
    delete_in_use(deployment.dockyard.storage)
    for layer in layers[:2]:
        assert_pulled(deployment, layer)

    def is_kept() -> bool:
        assert_pulled(deployment, layers[1])
        return bool(deployment.stored_files(layers[1]))

    eventually(is_kept, "kept again")
    before = fake_registry.count("blob", "GET", reference=layers[1])
    assert_pulled(deployment, layers[1])
    assert fake_registry.count("blob", "GET", reference=layers[1]) == before
    eventually(
        lambda: len(list(deployment.dockyard.storage.glob("run/shard-*.sock"))) == 2, "workers find each other", 15
    )
    bodies = deployment.get_concurrently([blob_path(layers[2])] * 20)
    assert {digest_of(response.body) for response in bodies} == {layers[2]}
    assert fake_registry.count("blob", "GET", reference=layers[2]) == 1
    assert deployment.get("/readyz").status == 200


NO_DIRECTORY_FSYNC = """
import errno, os, stat
fsync = os.fsync
def refuse_directories(fd):
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise OSError(errno.{name}, os.strerror(errno.{name}))
    fsync(fd)
os.fsync = refuse_directories
"""

NO_FLOCK = """
import errno, fcntl, os
def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = fcntl.lockf = refuse
"""


@pytest.mark.parametrize("name", ["EINVAL", "EBADF", "ENOTSUP"])
def test_the_cap_holds_where_directories_cannot_be_flushed(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path, name: str
) -> None:
    """CIFS, 9p and virtiofs refuse it: the blob is kept all the same, and counted."""
    (tmp_path / "sitecustomize.py").write_text(NO_DIRECTORY_FSYNC.format(name=name))
    deployment = make_deployment(storage={"max_size": "10MiB"}, environ={"PYTHONPATH": str(tmp_path)})
    layers = add_layers(fake_registry, 12, 2 * MIB)
    for layer in layers:
        assert_pulled(deployment, layer)
    eventually(lambda: 0 < stored_bytes(deployment.dockyard.storage) <= 10 * MIB, "within the cap")
    assert_pulled(deployment, layers[-1])
    assert fake_registry.count("blob", "GET", reference=layers[-1]) == 1
    assert "cannot store" not in deployment.read_log()


def test_without_file_locks_it_runs_or_says_why_not(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """Some network file systems have no flock."""
    (tmp_path / "sitecustomize.py").write_text(NO_FLOCK)
    [layer] = add_layers(fake_registry, 1)
    try:
        deployment = make_deployment(environ={"PYTHONPATH": str(tmp_path)})
    except Exception:  # noqa: BLE001  it has ended: the log says why
        (log,) = tmp_path.glob("deployment-*/dockyard.log")
        text = log.read_text()
        assert "cannot start" in text
        assert "lock" in text.lower()
        assert "Traceback" not in text
        return
    assert_pulled(deployment, layer)


@pytest.mark.parametrize("bucket", ["refuses connections", "takes nothing"])
def test_the_cap_holds_while_nothing_can_be_published(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, bucket: str
) -> None:
    """What is not in the bucket may go too: the upstream has it. The log says it once."""
    with FakeRegistry() as s3:
        denied = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
        missing = b"<Error><Code>NoSuchKey</Code></Error>"
        from tests.support.raw_http import Request, ScriptedResponse  # noqa: PLC0415

        def answer(request: Request, _: ScriptedResponse) -> ScriptedResponse:
            return ScriptedResponse.of(404, missing) if request.method == "GET" else ScriptedResponse.of(403, denied)

        s3.on(None, answer)
        if bucket == "refuses connections":
            s3.listener.close()
        storage = {
            "bucket": "cache-bucket",
            "endpoint": s3.authority,
            "access_key": "key",
            "secret_key": "secret",
            "force_path_style": True,
            "max_size": "10MiB",
        }
        deployment = make_deployment(storage=storage)
        layers = add_layers(fake_registry, 14, 2 * MIB)
        for layer in layers:
            assert_pulled(deployment, layer)
        eventually(lambda: 0 < stored_bytes(deployment.dockyard.storage) <= 10 * MIB, "within the cap")
        assert_pulled(deployment, layers[-1])
        assert fake_registry.count("blob", "GET", reference=layers[-1]) == 1
        lines = [line for line in deployment.read_log().splitlines() if "evict" in line and "publish" in line]
        assert len(lines) <= 1


def test_an_access_time_in_the_future_does_not_protect_a_blob(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The clock was wrong once: such a time counts as old, or is corrected."""
    layers = add_layers(fake_registry, 9)
    deployment = make_deployment(storage={"max_size": "20MiB"})
    for layer in layers[:5]:
        assert_pulled(deployment, layer)
    in_five_years = time.time() + 5 * 365 * 86400
    for layer in layers[:4]:
        (file,) = eventually(lambda digest=layer: deployment.stored_files(digest), "stored")
        os.utime(file, (in_five_years, file.stat().st_mtime))
    for _ in range(3):
        for layer in layers[5:]:
            assert_pulled(deployment, layer)
            time.sleep(0.05)  # file times are coarse
    assert [fake_registry.count("blob", "GET", reference=layer) for layer in layers[5:]] == [1] * 4


def test_a_cache_on_another_device_keeps_blobs(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """`cache` below the directory is a link to the big disk: blobs are kept, or the start names it."""
    [layer] = add_layers(fake_registry, 1)
    with mounted(tmp_path / "big", "size=64m") as big:
        storage = tmp_path / "storage"
        storage.mkdir()
        (storage / "cache").symlink_to(big)
        deployment = make_deployment(storage={"directory": str(storage)})
        for _ in range(3):
            assert_pulled(deployment, layer)
        assert fake_registry.count("blob", "GET") == 1
        stays(lambda: "Invalid cross-device link" not in deployment.dockyard.read_log(), "no such error", 0.1)
        deployment.dockyard.kill()

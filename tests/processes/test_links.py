"""Which blobs belong to a repository, over several workers: full disks, eviction, and who asks the upstream."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.processes.test_disk import fill_up, mount_tmpfs, small_disk
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually
from tests.support.fake_registry import FakeRegistry, Image

__all__ = ["mount_tmpfs", "small_disk"]

RESTRICTED: dict[str, Any] = {"access": {"rules": [{"allow": True, "repositories": ["up.test/**"]}]}}
WORKERS = 4
TIMES = 24


def add_image(fake_registry: FakeRegistry, repo: str, *layers: bytes) -> Image:
    """Add an image whose blobs are in one repository only."""
    image = fake_registry.add_image(repo, "v1", layers)
    for digest in (image.config, *image.layers):
        fake_registry.add_blob(fake_registry._blobs[digest][0], repos=[repo])
    return image


def blob_path(digest: str, repo: str = "app") -> str:
    """The path of a blob."""
    return f"/v2/up.test/{repo}/blobs/{digest}"


def manifest_path(image: Image) -> str:
    """The path of a manifest by digest."""
    return f"/v2/up.test/{image.repo}/manifests/{image.digest}"


def test_all_workers_know_the_links_of_a_manifest_that_one_has_fetched(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """At once, without the upstream: each request is a new connection, so all workers get some."""
    deployment = make_deployment(workers=WORKERS, **RESTRICTED)
    for number in range(TIMES):
        image = add_image(fake_registry, "app", b"layer %d" % number)
        assert deployment.get(manifest_path(image)).status == 200
        assert deployment.get(blob_path(image.layers[0])).status == 200
        assert deployment.get(blob_path(image.config)).status == 200
    assert fake_registry.count("blob", "HEAD") == 0


def test_the_upstream_is_asked_once_for_all_workers(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """About a blob of which no manifest was pulled."""
    deployment = make_deployment(workers=WORKERS, **RESTRICTED)
    sockets = deployment.dockyard.storage / "run"
    eventually(lambda: len(list(sockets.glob("shard-*.sock"))) == WORKERS, "all workers can be asked")
    image = add_image(fake_registry, "app", b"a layer")
    responses = deployment.get_concurrently([blob_path(image.layers[0])] * TIMES)
    assert {response.status for response in responses} == {200}
    assert fake_registry.count("blob", "HEAD", reference=image.layers[0]) == 1
    assert fake_registry.count("blob", "GET", reference=image.layers[0]) == 1


def test_a_manifest_that_does_not_fit_on_the_disk_makes_links(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, small_disk: Path
) -> None:
    """In the worker that has served it."""
    deployment = make_deployment(workers=1, storage={"directory": str(small_disk / "storage")}, **RESTRICTED)
    fill_up(small_disk / "in-the-way")
    image = add_image(fake_registry, "app", b"a layer")
    assert deployment.get(manifest_path(image)).status == 200
    assert not list((small_disk / "storage").rglob(image.digest.partition(":")[2]))
    for digest in (image.config, *image.layers):
        assert deployment.get(blob_path(digest)).status == 200
    assert fake_registry.count("blob", "HEAD") == 0
    assert deployment.get(blob_path(image.layers[0], "other")).status == 404


def test_after_the_eviction_of_its_manifest_the_upstream_decides(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """After a restart, that is: until then the worker remembers."""
    deployment = make_deployment(workers=2, **RESTRICTED)
    image = add_image(fake_registry, "app", b"a layer")
    assert deployment.get(manifest_path(image)).status == 200
    assert deployment.get(blob_path(image.layers[0])).status == 200
    deployment.dockyard.stop()
    for path in deployment.stored_files(image.digest):
        path.unlink()
    deployment.dockyard.start()
    assert deployment.get(blob_path(image.layers[0], "other")).status == 404
    assert fake_registry.count("blob", "HEAD", reference=image.layers[0]) == 1
    assert deployment.get(blob_path(image.layers[0])).status == 200
    assert fake_registry.count("blob", "HEAD", reference=image.layers[0]) == 2
    assert fake_registry.count("blob", "GET", reference=image.layers[0]) == 1
    fake_registry.listener.close()
    nobody = digest_of(b"nobody has this")
    eventually(lambda: deployment.get(blob_path(nobody)).status == 503, "the upstream is down")
    assert deployment.get(blob_path(image.layers[0], "third")).status == 503


def test_without_restrictions_the_upstream_is_not_asked_about_links(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """As before: a blob is served under any repository."""
    deployment = make_deployment(workers=2)
    image = add_image(fake_registry, "app", b"a layer")
    assert deployment.get(blob_path(image.layers[0])).status == 200
    assert deployment.get(blob_path(image.layers[0], "other")).status == 200
    assert fake_registry.count("blob", "HEAD") == 0

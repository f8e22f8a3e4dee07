"""A layer that is too large to be kept is passed through: what was cached before stays a hit."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.processes.test_disk import mount_tmpfs, small_disk
from tests.support import faults
from tests.support.bodies import Bytes, digest_of
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import OCI_MANIFEST, FakeRegistry
from tests.support.paths import ROOT

__all__ = ["mount_tmpfs", "small_disk"]

MIB = 1024 * 1024
TOO_LARGE = "a layer is too large to be kept: it is passed through, and nothing is evicted for it"
Start = Callable[..., Deployment]


class Cached:
    """An image and two more layers that were pulled before."""

    def __init__(self, deployment: Deployment, fake_registry: FakeRegistry) -> None:
        self._deployment = deployment
        self._fake_registry = fake_registry
        image = fake_registry.add_image("app", "v1", [Random(1).randbytes(MIB)])
        layers = [*image.layers, *(fake_registry.add_blob(Random(n).randbytes(MIB)) for n in (2, 3))]
        self._paths = [f"/v2/up.test/app/manifests/{image.digest}"]
        self._paths += [f"/v2/up.test/app/blobs/{layer}" for layer in layers]
        self._bodies = [deployment.get(path).body for path in self._paths]
        blobs = Path(deployment.dockyard.settings["storage"]["directory"], "cache", "blobs")
        eventually(lambda: all(list(blobs.rglob(layer[7:])) for layer in layers), "all layers are stored")

    def assert_hits(self) -> None:
        """All of it is served without a request to the upstream, now and after the next eviction."""
        evictions = len(_evictions(self._deployment))
        count = self._fake_registry.count()
        assert [self._deployment.get(path).body for path in self._paths] == self._bodies
        assert self._fake_registry.count() == count
        assert evictions == 0


def _evictions(deployment: Deployment) -> list[str]:
    return [line for line in deployment.dockyard.read_log().splitlines() if "evicted the least" in line]


def _passed_through(deployment: Deployment) -> list[str]:
    """Wait for the lines about it: the log is written by a thread."""
    return [line for line in deployment.wait_for_log(TOO_LARGE).splitlines() if TOO_LARGE in line]


def _enforce_cap(deployment: Deployment, fake_registry: FakeRegistry) -> None:
    """Have the cap enforced: a download that is kept does that at its end."""
    digest = fake_registry.add_blob(Random(4).randbytes(MIB // 4))
    assert deployment.get(f"/v2/up.test/app/blobs/{digest}").status == 200
    eventually(lambda: deployment.stored_files(digest), "it is stored")


@pytest.mark.parametrize("size", [30 * MIB, 9 * MIB], ids=["larger than the cap", "nearly as large"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_layer_that_is_too_large_for_the_cap_evicts_nothing(
    make_deployment: Start, fake_registry: FakeRegistry, size: int, workers: int
) -> None:
    """All its readers get it, with one upstream fetch for each worker at most; the log names the setting to raise."""
    content = Bytes(Random(size).randbytes(size))
    deployment = make_deployment(workers=workers, storage={"max_size": "10MiB"})
    cached = Cached(deployment, fake_registry)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    with set_at_exit(threading.Event()) as go_on, deployment.crowd(path, content, 6) as crowd:
        fake_registry.on("blob", faults.stalled(MIB, go_on), reference=content.digest)
        crowd.run(until=lambda: all(member.first_byte_at for member in crowd.members))
        go_on.set()
        crowd.run()
        assert all(member.is_right for member in crowd.members), crowd.summary()
    assert fake_registry.count("blob", "GET", reference=content.digest) <= workers
    lines = _passed_through(deployment)
    assert 1 <= len(lines) <= workers
    assert f"digest={content.digest} size={size} " in lines[0]
    assert "80% of storage.max_size, which is 10MiB: raise storage.max_size" in lines[0]
    _enforce_cap(deployment, fake_registry)
    cached.assert_hits()
    assert not deployment.stored_files(content.digest)
    assert not deployment.partial_files()
    assert b"dockyard_overflows_total 0.0" in deployment.get("/metrics").body


@pytest.mark.parametrize("workers", [1, 2])
def test_a_pull_says_that_a_layer_was_not_kept(
    make_deployment: Start, fake_registry: FakeRegistry, workers: int
) -> None:
    """The response does not say that it is stored, and the image does not count as cached."""
    deployment = make_deployment(workers=workers, storage={"max_size": "10MiB"})
    (layer,) = fake_registry.add_image("app", "v1", [Random(8).randbytes(12 * MIB)]).layers
    for _ in range(4):  # by both workers
        status = deployment.get(f"/v2/up.test/app/blobs/{layer}").header("Cache-Status")
        assert status == "Dockyard; fwd=uri-miss"
    command = [sys.executable, "-m", "dockyard", "pull", "--server", deployment.dockyard.url, "up.test/app:v1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=EVENT_TIMEOUT_S, check=False)
    assert done.returncode == 1
    assert f"{layer}: was fetched and not kept" in done.stderr
    assert f"{layer[:19]}  12.6 MB  fetched, not kept\n" in done.stdout
    assert "0 of 1 image warm" in done.stdout


def test_a_layer_that_fits_evicts_the_least_recently_used(make_deployment: Start, fake_registry: FakeRegistry) -> None:
    """Up to 80 % of the cap a layer is kept, as the most recently used one."""
    deployment = make_deployment(storage={"max_size": "10MiB"})
    Cached(deployment, fake_registry)
    digest = fake_registry.add_blob(Random(5).randbytes(7 * MIB))
    for _ in range(2):
        assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{digest}").body) == digest
        eventually(lambda: deployment.stored_files(digest), "it is stored")
    assert fake_registry.count("blob", "GET", reference=digest) == 1
    eventually(lambda: _evictions(deployment), "older layers are evicted")
    assert TOO_LARGE not in deployment.read_log()


def test_a_layer_that_is_larger_than_the_disk_evicts_nothing(
    make_deployment: Start, fake_registry: FakeRegistry, small_disk: Path
) -> None:
    """The disk has 32 MiB, and there is no cap; the log says how much space there is."""
    content = Bytes(Random(6).randbytes(40 * MIB))
    deployment = make_deployment(storage={"directory": str(small_disk / "storage"), "max_size": "0"})
    cached = Cached(deployment, fake_registry)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(content)}"
    assert digest_of(deployment.get(path).body) == content.digest
    (line,) = _passed_through(deployment)
    assert " MiB free, and 3 MiB are cached: free disk space, or use a larger disk" in line
    cached.assert_hits()


def test_a_layer_of_unknown_size_that_its_manifest_tells(make_deployment: Start, fake_registry: FakeRegistry) -> None:
    """The upstream sends no Content-Length (chunked): the size is that in the manifest."""
    deployment = make_deployment(storage={"max_size": "10MiB"})
    cached = Cached(deployment, fake_registry)
    image = fake_registry.add_image("large", "v1", [Random(7).randbytes(20 * MIB)])
    assert deployment.get("/v2/up.test/large/manifests/v1").status == 200
    fake_registry.on("blob", faults.chunked())
    assert digest_of(deployment.get(f"/v2/up.test/large/blobs/{image.layers[0]}").body) == image.layers[0]
    assert len(_passed_through(deployment)) == 1
    cached.assert_hits()


def test_a_layer_of_unknown_size_is_not_served_if_it_is_too_large(
    make_deployment: Start, fake_registry: FakeRegistry
) -> None:
    """Nothing tells its size, so that no response can start before it is here, and it cannot be kept."""
    deployment = make_deployment(storage={"max_size": "10MiB"})
    cached = Cached(deployment, fake_registry)
    digest = fake_registry.add_blob(Random(8).randbytes(20 * MIB))
    rule = fake_registry.on("blob", faults.chunked())
    head = fake_registry.on("blob", faults.error_response(503), method="HEAD")
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert response.status == 502
    assert b"larger than this cache keeps" in response.body
    deployment.wait_for_log("raise storage.max_size")
    assert fake_registry.count("blob", "GET", reference=digest) == 1
    fake_registry.remove_rules(rule, head)
    _enforce_cap(deployment, fake_registry)
    cached.assert_hits()


def test_ranges_and_head_of_a_layer_that_is_too_large(make_deployment: Start, fake_registry: FakeRegistry) -> None:
    """Both as of any other layer; HEAD downloads nothing."""
    data = Random(9).randbytes(20 * MIB)
    deployment = make_deployment(storage={"max_size": "10MiB"})
    cached = Cached(deployment, fake_registry)
    path = f"/v2/up.test/app/blobs/{fake_registry.add_blob(data)}"
    head = deployment.head(path)
    assert (head.status, head.header("Content-Length")) == (200, str(len(data)))
    assert fake_registry.count("blob", "GET", reference=digest_of(data)) == 0
    for start, end in ((0, 99), (6 * MIB, 7 * MIB), (len(data) - 10, len(data) - 1)):
        part = deployment.get(path, Range=f"bytes={start}-{end}")
        assert (part.status, part.body) == (206, data[start : end + 1])
    cached.assert_hits()


def test_a_lower_cap_evicts_first_what_would_not_be_kept(make_deployment: Start, fake_registry: FakeRegistry) -> None:
    """After a restart with another cap, although the large layer was used last."""
    deployment = make_deployment(storage={"max_size": "100MiB"})
    cached = Cached(deployment, fake_registry)
    large = fake_registry.add_blob(Random(10).randbytes(20 * MIB))
    assert digest_of(deployment.get(f"/v2/up.test/app/blobs/{large}").body) == large
    eventually(lambda: deployment.stored_files(large), "it is stored")
    deployment.dockyard.stop()
    deployment.dockyard.log.unlink()
    deployment.dockyard.settings["storage"]["max_size"] = "10MiB"
    deployment.dockyard.start()
    (line,) = eventually(lambda: _evictions(deployment), "the cap is enforced")
    assert "files=1 " in line
    assert not deployment.stored_files(large)
    deployment.dockyard.log.write_text("")
    cached.assert_hits()


def test_a_manifest_that_is_too_large_evicts_nothing(make_deployment: Start, fake_registry: FakeRegistry) -> None:
    """It is served, and the log names the setting."""
    deployment = make_deployment(storage={"max_size": "4MiB"})
    cached = Cached(deployment, fake_registry)
    image = fake_registry.add_image("large", "v1", [b"a layer"])
    document = {**json.loads(image.body), "annotations": {"note": "n" * (3 * MIB + MIB // 2)}}
    digest = fake_registry.add_manifest("large", "v1", document, OCI_MANIFEST)
    for _ in range(2):
        response = deployment.get(f"/v2/up.test/large/manifests/{digest}")
        assert response.status == 200, response.body
        assert digest_of(response.body) == digest
    line = "an object is too large for storage.max_size: it is not kept"
    deployment.wait_for_log(line)
    _enforce_cap(deployment, fake_registry)
    cached.assert_hits()

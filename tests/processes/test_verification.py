"""The first use of a large stored blob after a start: one verification, which delays nothing else."""

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from tests.support.bodies import Bytes, digest_of
from tests.support.deployment import Deployment, eventually, parse_cache_status
from tests.support.fake_registry import FakeRegistry

MIB = 1024 * 1024
SIZE = 256 * MIB
CLIENTS = 24
CONTENT = Random(3).randbytes(MIB) * (SIZE // MIB)


def verified_bytes(deployment: Deployment) -> float:
    """How many bytes all workers have hashed since the start."""
    return deployment.metric("dockyard_verified_bytes_total")


@pytest.mark.parametrize("is_clean", [True, False], ids=["clean stop", "unclean stop"])
def test_many_clients_cause_one_verification_and_delay_nobody(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, *, is_clean: bool
) -> None:
    """Ranges of a large layer wait for one hash over all workers; meanwhile other content is served at once."""
    digest = fake_registry.add_blob(Bytes(CONTENT))
    image = fake_registry.add_image("app", "v1", [b"small layer"])
    deployment = make_deployment(workers=2)
    large = f"/v2/up.test/app/blobs/{digest}"
    others = [f"/v2/up.test/app/blobs/{image.layers[0]}", f"/v2/up.test/app/manifests/{image.digest}", "/healthz"]
    for path in (large, *others):
        assert deployment.get(path).status == 200
    eventually(lambda: deployment.stored_files(digest) and deployment.stored_files(image.digest), "stored")
    (deployment.dockyard.stop if is_clean else deployment.dockyard.kill)()
    deployment.dockyard.start()
    deployment.wait_for_workers(2)
    fake_registry.clear_exchanges()
    with ThreadPoolExecutor(CLIENTS) as pool:
        ranges = [pool.submit(deployment.get, large, Range="bytes=1000-1099") for _ in range(CLIENTS)]
        beside = [deployment.get(path) for path in others * 3]
        responses = [each.result() for each in ranges]
    assert {(response.status, response.body) for response in responses} == {(206, CONTENT[1000:1100])}
    assert {"hit" in parse_cache_status(response) for response in responses} == {True}
    assert {response.status for response in beside} == {200}
    assert statistics.median(each.took_s for each in beside) < statistics.median(each.took_s for each in responses)
    assert verified_bytes(deployment) == SIZE + len(b"small layer")
    assert digest_of(deployment.get(large).body) == digest
    assert verified_bytes(deployment) == SIZE + len(b"small layer")
    assert fake_registry.received() == []

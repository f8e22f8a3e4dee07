"""A rolling restart (see P03): two Dockyards are restarted one after the other, and no pull fails finally."""

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests.support.deployment import Deployment
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import send_request

PULLS_PER_S = 50
CLIENTS = 10
ATTEMPTS = 3  # as container runtimes do
RETRY_S = 0.2
NOTICE_S = 0.5
LAYER = b"a layer of a rolling restart" * 10_000


def test_a_rolling_restart_fails_no_pull(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Fifty pulls per second over two servers: each pull succeeds, at the latest at the third attempt."""
    image = fake_registry.add_image("app", "v1", [LAYER])
    paths = [("/v2/up.test/app/manifests/v1", image.body), (f"/v2/up.test/app/blobs/{image.layers[0]}", LAYER)]
    deployments = [make_deployment(workers=2) for _ in range(2)]
    done = threading.Event()
    failed: list[str] = []
    counts = itertools.count()
    retried = itertools.count()

    def pull_again_and_again(client: int) -> None:
        while not done.wait(CLIENTS / PULLS_PER_S):
            next(counts)
            for path, truth in paths:
                if not _pull(deployments, client, path, truth, retried):
                    failed.append(path)

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(pull_again_and_again, number) for number in range(CLIENTS)]
        for deployment in deployments:
            (deployment.dockyard.storage / "run" / "draining").touch()
            time.sleep(NOTICE_S)  # the time that a load balancer is given
            deployment.dockyard.stop()
            deployment.dockyard.start()
        done.set()
        for each in clients:
            each.result()
    assert failed == []
    assert next(counts) > PULLS_PER_S
    assert next(retried) > 0, "no request met a server that was down"


def _pull(deployments: list[Deployment], client: int, path: str, truth: bytes, retried: "itertools.count[int]") -> bool:
    """Request from one server, then from the other, then from the first again."""
    for attempt in range(ATTEMPTS):
        try:
            response = send_request(deployments[(client + attempt) % len(deployments)].address, path)
            if response.status == 200 and response.body == truth:
                return True
        except OSError:
            pass
        next(retried)
        time.sleep(RETRY_S)
    return False

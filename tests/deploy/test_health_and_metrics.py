"""Metrics, liveness and readiness of a running server."""

import re
import urllib.error
import urllib.request
from collections.abc import Callable

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub
from tests.support.images import push_index
from tests.support.pull_image import pull_and_verify


def get(dockyard: Dockyard, path: str) -> tuple[int, str]:
    """The status and body of a path."""
    try:
        with urllib.request.urlopen(f"{dockyard.url}{path}", timeout=EVENT_TIMEOUT_S) as response:  # noqa: S310  our own http
            return response.status, response.read().decode()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, exc.read().decode()


def count(dockyard: Dockyard, sample: str) -> float:
    """The sum of the samples that match a pattern."""
    status, text = get(dockyard, "/metrics")
    assert status == 200
    found = re.findall(rf"^{sample} ([0-9.e+-]+)$", text, re.MULTILINE)
    return sum(map(float, found))


def test_all_workers_are_counted_together(
    registry: DistributionRegistry, start_dockyard: Callable[..., Dockyard]
) -> None:
    """Whichever worker answers, the counts are those of all workers, and agree with the requests upstream."""
    image = push_index(registry, "library/counted", seed="counted")
    dockyard = start_dockyard([docker_hub(registry)], workers=3)
    registry.clear_requests()
    for _ in range(4):
        pull_and_verify(dockyard.port, "docker.io/library/counted", image)
    expected = 4 * (1 + len(image.manifests) + len(image.blobs))
    assert count(dockyard, r'dockyard_requests_total\{.*kind="(?:manifest|blob)".*\}') == expected
    assert count(dockyard, r'dockyard_fills_total\{outcome="done"\}') == len(image.blobs)
    heads = [request for request in registry.requests() if request.method == "HEAD"]
    assert count(dockyard, r'dockyard_upstream_seconds_count\{operation="head_manifest",.*\}') == len(heads) == 4
    assert count(dockyard, "dockyard_fills_running") == 0


def test_a_client_cannot_multiply_the_series(
    registry: DistributionRegistry, start_dockyard: Callable[..., Dockyard]
) -> None:
    """However many names are requested, none of them is a label."""
    dockyard = start_dockyard([docker_hub(registry)], workers=1)
    get(dockyard, "/v2/docker.io/no-such-repository/first/manifests/v1")
    before = get(dockyard, "/metrics")[1].count("\n")
    for number in range(30):
        get(dockyard, f"/v2/docker.io/no-such-repository/n{number}/manifests/v{number}")
        get(dockyard, f"/x{number}")
    text = get(dockyard, "/metrics")[1]
    assert "no-such-repository" not in text
    assert text.count("\n") <= before + 40  # requests for no endpoint, and for /metrics itself, count once


def test_an_open_circuit_breaker_is_a_metric(
    registry: DistributionRegistry, start_dockyard: Callable[..., Dockyard]
) -> None:
    """An upstream that is down is 1 in the gauge of the circuit breaker, and its stale responses are counted."""
    image = push_index(registry, "library/stale-counted", seed="stale counted")
    dockyard = start_dockyard([docker_hub(registry)], workers=2)
    pull_and_verify(dockyard.port, "docker.io/library/stale-counted", image)
    assert count(dockyard, r'dockyard_breaker_open\{upstream="docker.io"\}') == 0
    with registry.stopped():
        pull_and_verify(dockyard.port, "docker.io/library/stale-counted", image)
        assert count(dockyard, r'dockyard_breaker_open\{upstream="docker.io"\}') == 1
        assert count(dockyard, r"dockyard_stale_total\{.*\}") == 1


def test_readiness_fails_while_draining(
    registry: DistributionRegistry, start_dockyard: Callable[..., Dockyard]
) -> None:
    """While `run/draining` exists, requests are still served, and readiness checks fail."""
    dockyard = start_dockyard([docker_hub(registry)], workers=1)
    assert get(dockyard, "/healthz")[0] == get(dockyard, "/readyz")[0] == 200
    (dockyard.storage / "run" / "draining").touch()
    assert get(dockyard, "/readyz")[0] == 503
    assert get(dockyard, "/healthz")[0] == get(dockyard, "/v2/")[0] == 200
    dockyard.stop()
    dockyard.start()
    assert get(dockyard, "/readyz")[0] == 200

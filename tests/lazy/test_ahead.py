"""Ranges ahead: with `lazy: true` they come before the download, which begins at byte 0, has reached them."""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lazy.layers import Layer, add_layer
from tests.lazy.patterns import PATTERNS, LazyRequest
from tests.support import faults
from tests.support.deployment import Deployment, eventually, open_deployment, set_at_exit, upstream
from tests.support.fake_registry import Change, FakeRegistry
from tests.support.raw_http import Request, ScriptedResponse

MIB = 1 << 20
STALL_AT = 4 * MIB  # no response of the upstream goes beyond this byte of the layer until the test allows it
AHEAD_BYTES = 8 * MIB


def hold_back(until: threading.Event) -> Change:
    """Stop responses that begin before STALL_AT at that byte of the layer, until the event is set."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        if response.start >= STALL_AT or response.stop <= STALL_AT:
            return response
        return faults.stalled_at_offset(STALL_AT, until)(request, response)

    return change


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three workers, and upstreams with `lazy`, of which one is fetched from on demand only."""
    with FakeRegistry() as registry:
        upstreams = [
            upstream("lazy.test", registry.url, lazy=True),
            upstream("demand.test", registry.url, lazy=True, lazy_background="on_demand"),
        ]
        directory = tmp_path_factory.mktemp("ahead")
        limits = {"stall_timeout": "300s"}
        with open_deployment(registry, directory, workers=3, upstreams=upstreams, upstream=limits) as deployment:
            yield deployment


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Set when the registry may send all of the layer of this test."""
    with set_at_exit(threading.Event()) as release:
        yield release


def is_far(request: LazyRequest) -> bool:
    """Whether all ranges of a request begin where the download cannot be soon, and are served."""
    begin = min((place.start for place in request.places), default=0)
    return not request.has_too_many_ranges and begin > STALL_AT + AHEAD_BYTES + MIB


def find_pieces(requests: Iterable[LazyRequest]) -> set[int]:
    """The numbers of the pieces of 1 MiB that hold the ranges of these requests."""
    places = [place for request in requests for place in request.places]
    return {piece for place in places for piece in range(place.start // MIB, (place.stop - 1) // MIB + 1)}


def is_unverified(layer: Layer, request: LazyRequest) -> bool:
    """Send a request ahead, check the response, and return whether it is marked."""
    response = layer.send(request)
    layer.check(request, response)
    return "unverified-range" in (response.header("Cache-Status") or "")


@pytest.mark.parametrize("name", PATTERNS)
def test_ranges_ahead_do_not_wait_for_the_download(deployment: Deployment, release: threading.Event, name: str) -> None:
    """They are marked until the layer is verified; each byte comes from the registry once, and the layer is kept."""
    layer = add_layer(deployment, PATTERNS[name], "lazy.test", 10)
    deployment.fake_registry.on("blob", hold_back(release), method="GET", reference=layer.digest)
    far = [request for request in PATTERNS[name].requests if is_far(request)]
    assert far
    with ThreadPoolExecutor(len(far)) as pool:
        assert all(pool.map(lambda request: is_unverified(layer, request), far))
    assert not deployment.stored_files(layer.digest)
    release.set()
    for request in PATTERNS[name].requests:
        layer.check(request, layer.send(request))
    eventually(lambda: deployment.stored_files(layer.digest), "the layer is stored")
    assert not any(is_unverified(layer, request) for request in far)
    received = deployment.fake_registry.received("blob", "GET", reference=layer.digest)
    assert sum(exchange.sent_bytes for exchange in received) <= 1.02 * layer.body.size


@pytest.mark.parametrize("name", ["stargz", "zstd-chunked-update"])
def test_on_demand_nothing_else_is_fetched(deployment: Deployment, name: str) -> None:
    """The pieces of 1 MiB that hold the ranges; the rest stays at the registry."""
    layer = add_layer(deployment, PATTERNS[name], "demand.test", 20)
    far = [request for request in PATTERNS[name].requests if is_far(request)]
    for request in far:
        layer.check(request, layer.send(request))
    pieces = find_pieces(far)
    received = deployment.fake_registry.received("blob", "GET", reference=layer.digest)
    assert sum(exchange.sent_bytes for exchange in received) <= (len(pieces) + 1) * MIB
    assert not deployment.stored_files(layer.digest)


def test_workers_share_pieces(deployment: Deployment) -> None:
    """The same ranges for 24 clients of three workers cost the registry each piece once."""
    layer = add_layer(deployment, PATTERNS["nydus"], "demand.test", 30)
    far = [request for request in PATTERNS["nydus"].requests if is_far(request)]
    with ThreadPoolExecutor(24) as pool:
        assert all(pool.map(lambda request: is_unverified(layer, request), far * 24))
    received = deployment.fake_registry.received("blob", "GET", reference=layer.digest)
    assert sum(exchange.sent_bytes for exchange in received) <= (len(find_pieces(far)) + 1) * MIB

"""What each lazy client requests of a layer that is not cached, from a slow upstream, through several workers.

One answer of 200 to a range gives SOCI and nydus wrong bytes: a range is 206, whatever is cached.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lazy.layers import add_layer
from tests.lazy.patterns import PATTERNS
from tests.support import faults
from tests.support.deployment import Deployment, eventually, open_deployment, upstream
from tests.support.fake_registry import FakeRegistry

BYTES_PER_S = 100_000_000  # of each response of the upstream
PREFIXES = {"as a whole": "up.test", "lazy": "lazy.test"}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three workers and a slow registry, under one prefix as it is by default and under one with `lazy`."""
    with FakeRegistry() as registry:
        registry.on("blob", faults.slow(BYTES_PER_S), method="GET")
        upstreams = [upstream("up.test", registry.url), upstream("lazy.test", registry.url, lazy=True)]
        with open_deployment(registry, tmp_path_factory.mktemp("lazy"), workers=3, upstreams=upstreams) as deployment:
            yield deployment


@pytest.mark.parametrize("kind", PREFIXES)
@pytest.mark.parametrize("name", PATTERNS)
def test_every_range_of_a_cold_layer_is_right(deployment: Deployment, name: str, kind: str) -> None:
    """Also while the layer is downloaded, and when it is stored; the registry sends each byte once."""
    pattern, registry = PATTERNS[name], deployment.fake_registry
    layer = add_layer(deployment, pattern, PREFIXES[kind], 1 + [*PREFIXES].index(kind))
    first, *others = pattern.requests
    layer.check(first, layer.send(first))
    with ThreadPoolExecutor(len(others) if pattern.at_once else 1) as pool:
        for request, response in zip(others, pool.map(layer.send, others), strict=True):
            layer.check(request, response)
    eventually(lambda: deployment.stored_files(layer.digest), "the layer is stored")
    for request in pattern.requests[:3]:  # of the others, the bytes were right before, and take long
        response = layer.send(request)
        layer.check(request, response)
        assert "unverified-range" not in (response.header("Cache-Status") or "")
    sent = sum(exchange.sent_bytes for exchange in registry.received("blob", "GET", reference=layer.digest))
    if kind == "lazy":
        assert pattern.size <= sent <= 1.02 * pattern.size
    else:
        assert sent == pattern.size
        assert registry.count("blob", "GET", reference=layer.digest) == 1


def test_a_pattern_has_its_source() -> None:
    """How it was found, and in which version of the client."""
    for pattern in PATTERNS.values():
        assert pattern.source.startswith(("recorded: ", "read: "))
        assert any(char.isdigit() for char in pattern.client)
        assert all(place.stop <= pattern.size for request in pattern.requests for place in request.places)

"""What each lazy client requests of a layer that is not cached, from a slow upstream, through several workers.

One answer of 200 to a range gives SOCI and nydus wrong bytes: a range is 206, whatever is cached.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from tests.lazy.patterns import PATTERNS, LazyRequest, Pattern
from tests.support import faults
from tests.support.bodies import Body, Synthetic
from tests.support.deployment import Deployment, eventually, open_deployment, upstream
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import Response, parse_multipart

BYTES_PER_S = 60_000_000  # of each response of the upstream
PREFIXES = {"as a whole": "up.test", "lazy": "lazy.test"}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three workers and a slow registry, under one prefix as it is by default and under one with `lazy`."""
    with FakeRegistry() as registry:
        registry.on("blob", faults.slow(BYTES_PER_S), method="GET")
        upstreams = [upstream("up.test", registry.url), upstream("lazy.test", registry.url, lazy=True)]
        with open_deployment(registry, tmp_path_factory.mktemp("lazy"), workers=3, upstreams=upstreams) as deployment:
            yield deployment


@attrs.frozen
class Layer:
    """A layer in the registry that is not cached."""

    deployment: Deployment
    path: str
    body: Body

    @property
    def digest(self) -> str:
        return self.body.digest

    def send(self, request: LazyRequest) -> Response:
        """Send a request with what the clients send besides."""
        ranges = {"Range": request.header, "Accept_Encoding": "identity"} if request.header else {}
        return self.deployment.request(request.method, self.path, **ranges)

    def check(self, request: LazyRequest, response: Response) -> None:
        """Status, headers and all bytes are right."""
        if request.has_too_many_ranges:
            assert response.status == 400
            return
        assert response.is_complete
        assert response.header("Accept-Ranges") == "bytes"
        if request.method == "HEAD":
            assert (response.status, response.header("Content-Length")) == (200, str(self.body.size))
        elif request.header is None:
            assert response.status == 200
            assert response.body == self.read(0, self.body.size)
        elif len(request.places) == 1:
            (place,) = request.places
            assert response.status == 206
            assert response.header("Content-Range") == place.content_range(self.body.size)
            assert response.header("Content-Type") == "application/octet-stream"
            assert response.body == self.read(place.start, place.stop)
        else:
            assert response.status == 206
            for place, part in zip(request.places, parse_multipart(response), strict=True):
                assert part == (place.content_range(self.body.size), self.read(place.start, place.stop))

    def read(self, start: int, stop: int) -> bytes:
        return b"".join(self.body.pieces(start, stop))


def add_layer(deployment: Deployment, pattern: Pattern, prefix: str, use: int) -> Layer:
    """Add a layer that no other test has; `use` is the number of this use of the pattern."""
    body = Synthetic(pattern.size, seed=7, first=1000 * use)
    digest = deployment.fake_registry.add_blob(body)
    return Layer(deployment, f"/v2/{prefix}/team/app/blobs/{digest}", body)


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
    for request in pattern.requests:
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

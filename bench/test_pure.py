"""Benchmarks of pure functions that each request calls: parsing, routing, freshness, ranges."""

import json

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from dockyard.cache.freshness import Cached, Serve, decide
from dockyard.config.settings import Auth, Upstream
from dockyard.errors import Unavailable
from dockyard.oci.manifest import OCI_IMAGE, Descriptor, Manifest
from dockyard.oci.ranges import ByteRange, parse_ranges
from dockyard.oci.reference import Digest, Name, Tag, parse_reference
from dockyard.routing import Router

DIGEST = Digest.of(b"a layer")
LAYERS = [{"mediaType": "layer", "digest": str(Digest.of(bytes([number]))), "size": 1} for number in range(12)]
IMAGE = {"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": LAYERS[0], "layers": LAYERS}
BODY = json.dumps(IMAGE).encode()


@pytest.mark.parametrize("text", ["v1.27.3-alpine", str(DIGEST)], ids=["tag", "digest"])
def test_parse_reference(benchmark: BenchmarkFixture, text: str) -> None:
    """A tag or a digest from a path."""
    assert benchmark(parse_reference, text) == (DIGEST if ":" in text else Tag(text))


def test_parse_name(benchmark: BenchmarkFixture) -> None:
    """A name of the usual length."""
    assert benchmark(Name.parse, "docker.io/library/nginx").components[-1] == "nginx"


def test_parse_manifest(benchmark: BenchmarkFixture) -> None:
    """A manifest of twelve layers, with verification of its digest."""
    expected = Digest.of(BODY)
    assert benchmark(Manifest.parse, BODY, OCI_IMAGE, expected).digest == expected


@pytest.mark.parametrize(
    ("name", "ns"),
    [("docker.io/library/nginx", None), ("library/nginx", "docker.io"), ("nginx", None)],
    ids=["prefix", "namespace", "default"],
)
def test_route(benchmark: BenchmarkFixture, name: str, ns: str | None) -> None:
    """The forms of request, with twenty upstreams configured."""
    others = [Upstream(f"registry-{number}.test", f"registry-{number}.test") for number in range(19)]
    hub = Upstream("docker.io", "registry-1.docker.io", Auth("anonymous"), default=True)
    router = Router([hub, *others])
    assert benchmark(router.route, name, ns).repository == "library/nginx"


def test_decide_match(benchmark: BenchmarkFixture) -> None:
    """A tag that has not changed."""
    response = Descriptor(OCI_IMAGE, DIGEST, 3)
    assert benchmark(decide, Cached(DIGEST, 0.0), response) == Serve(DIGEST)


def test_decide_stale(benchmark: BenchmarkFixture) -> None:
    """A tag while the upstream is unavailable."""
    outage = Unavailable("refused")
    assert benchmark(decide, Cached(DIGEST, 0.0), outage) == Serve(DIGEST, stale=outage)


@pytest.mark.parametrize("count", [1, 50])
def test_parse_ranges(benchmark: BenchmarkFixture, count: int) -> None:
    """One range, and as many as lazy pulls send."""
    header = "bytes=" + ",".join(f"{number * 1000}-{number * 1000 + 499}" for number in range(count))
    found = benchmark(parse_ranges, header, 10**9)
    assert found is not None
    assert found[-1] == ByteRange((count - 1) * 1000, (count - 1) * 1000 + 500)

"""An inner and an outer Dockyard with a real registry: downloads, tags, lists, denials, and an outer one that fails."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import attrs
import pytest

from tests.support.bodies import Bytes, digest_of
from tests.support.deployment import eventually, parse_cache_status
from tests.support.distribution import DistributionRegistry
from tests.support.fake_registry import OCI_INDEX, OCI_MANIFEST
from tests.support.http_client import Crowd, Response, StreamedResponse
from tests.support.images import push_docker, push_index
from tests.support.toxiproxy import TcpProxy, Toxiproxy
from tests.tiers.tier import HUB, NO_LOGIN, Tier, behind, message_of, serving

MIB = 2**20
CLIENTS = 60


@attrs.define
class Pair:
    """The two servers, and the registry behind the outer one: `way` is the proxy between them."""

    registry: DistributionRegistry
    way: TcpProxy
    outer: Tier
    inner: Tier

    def pull(self, path: str, method: str = "GET") -> Response:
        """Send a request to the inner one."""
        return self.inner.send(f"/v2/{HUB}/{path}", method)

    def count(self, path: str, method: str = "GET") -> int:
        """How many requests for this path have reached the registry."""
        return sum(each.method == method and each.path == f"/v2/{path}" for each in self.registry.requests())

    @contextmanager
    def without(self, server: Tier | DistributionRegistry) -> Iterator[None]:
        """Kill a server; afterwards start it, and wait until all circuit breakers are closed."""
        (server.kill if isinstance(server, Tier) else server.stop)()
        try:
            yield
        finally:
            server.start()
            eventually(lambda: not self.outer.breakers() and not self.inner.breakers(), "closed circuit breakers")


@pytest.fixture(scope="module")
def pair(
    registry: DistributionRegistry, toxiproxy: Toxiproxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Two servers with two workers each."""
    directory = tmp_path_factory.mktemp("tiers")
    with contextlib.closing(toxiproxy.create_proxy(registry.port)) as way:
        outer = Tier(directory / "outer", {"prefix": HUB, "registry": way.url, "auth": NO_LOGIN}, workers=2)
        inner = Tier(directory / "inner", behind(outer), workers=2)
        with serving(outer, inner):
            yield Pair(registry, way, outer, inner)


def put_layer(registry: DistributionRegistry, repository: str, seed: str, size_bytes: int) -> tuple[str, bytes]:
    """Push a blob; its digest and content."""
    body = Random(seed).randbytes(size_bytes)
    registry.put_blob(repository, digest_of(body), body)
    return digest_of(body), body


def test_a_herd_is_one_request_at_each_level(pair: Pair) -> None:
    """Many clients of a cold image: the registry and the outer one get one request for each part."""
    repository = "tiers/herd"
    image = push_docker(pair.registry, repository, "herd")
    digest, body = put_layer(pair.registry, repository, "herd", 16 * MIB)
    pair.registry.clear_requests()
    with Crowd(("127.0.0.1", pair.inner.port), f"/v2/{HUB}/{repository}/blobs/{digest}", Bytes(body), CLIENTS) as crowd:
        crowd.run()
        assert all(member.is_right for member in crowd.members), crowd.summary()
    manifest = json.dumps(json.loads(pair.pull(f"{repository}/manifests/latest").body))
    assert image.this_platform.layers[0].digest in manifest
    assert pair.count(f"{repository}/blobs/{digest}") == 1
    assert [each.method for each in pair.registry.requests() if "/manifests/" in each.path] == ["HEAD", "GET"]
    lines = eventually(lambda: pair.outer.requests(f"{digest}"), "the request in the log of the outer one")
    assert len(lines) == 1
    assert pair.inner.metric("dockyard_fills_total") == pair.outer.metric("dockyard_fills_total")


def test_a_tag_is_checked_through_both(pair: Pair) -> None:
    """A tag that has moved is noticed with the next pull, at one HEAD at the registry."""
    repository = "tiers/moves"
    for number in range(3):
        image = push_docker(pair.registry, repository, f"moves {number}")
        pair.registry.clear_requests()
        response = pair.pull(f"{repository}/manifests/latest")
        assert digest_of(response.body) == image.digest
        assert pair.count(f"{repository}/manifests/latest", "HEAD") == 1
    assert pair.pull(f"{repository}/manifests/latest").status == 200
    assert pair.count(f"{repository}/manifests/latest", "HEAD") == 2


def test_the_outer_one_is_away(pair: Pair) -> None:
    """The inner one serves what it has, tags as stale; what it does not have is 503 with Retry-After."""
    repository = "tiers/outer"
    image = push_docker(pair.registry, repository, "outer")
    digest = image.this_platform.layers[0].digest
    assert pair.pull(f"{repository}/manifests/latest").status == 200
    assert pair.pull(f"{repository}/blobs/{digest}").status == 200
    assert pair.pull(f"{repository}/tags/list").status == 200
    with pair.without(pair.outer):
        stale = pair.pull(f"{repository}/manifests/latest")
        assert (stale.status, digest_of(stale.body)) == (200, image.digest)
        assert parse_cache_status(stale)["detail"] in {"stale-if-error", "breaker"}
        assert pair.pull(f"{repository}/tags/list").json["tags"] == ["latest"]
        assert digest_of(pair.pull(f"{repository}/blobs/{digest}").body) == digest
        missing = pair.pull("tiers/never/manifests/latest")
        assert (missing.status, missing.error) == (503, "UNAVAILABLE")
        assert int(missing.header("Retry-After") or 0) > 0
    fresh = pair.pull(f"{repository}/manifests/latest")
    assert parse_cache_status(fresh)["detail"] == "head-match"


def test_the_registry_is_away(pair: Pair) -> None:
    """Both say that a tag is stale, and how old it is. What is cached at the outer one only is served, too."""
    repository = "tiers/registry"
    image = push_docker(pair.registry, repository, "registry")
    other = push_docker(pair.registry, "tiers/other", "other")
    for path in (f"{repository}/manifests/latest", f"{repository}/tags/list"):
        assert pair.pull(path).status == 200
    outer_only = [f"manifests/{other.digest}", f"blobs/{other.this_platform.layers[0].digest}", "manifests/latest"]
    for path in outer_only:
        assert pair.outer.send(f"/v2/{HUB}/tiers/other/{path}").status == 200
    with pair.without(pair.registry):
        stale = pair.pull(f"{repository}/manifests/latest")
        assert (stale.status, digest_of(stale.body)) == (200, image.digest)
        assert parse_cache_status(stale)["detail"] == "stale-if-error"
        assert stale.header("Warning")
        of_outer = pair.outer.send(f"/v2/{HUB}/{repository}/manifests/latest")
        assert abs(int(of_outer.header("Age") or -1) - int(stale.header("Age") or -99)) <= 2
        assert pair.pull(f"{repository}/tags/list").json["tags"] == ["latest"]
        for _ in range(8):  # more errors than one repository, or the registry, may have in a row
            missing = pair.pull("tiers/never/manifests/latest")
            assert (missing.status, missing.error) == (503, "UNAVAILABLE")
            assert int(missing.header("Retry-After") or 0) > 0
        assert pair.inner.breakers() == 0, "the outer one works"
        for path in outer_only:
            assert pair.pull(f"tiers/other/{path}").status == 200
    assert parse_cache_status(pair.pull(f"{repository}/manifests/latest"))["detail"] == "head-match"


def test_what_does_not_exist_is_asked_for_again(pair: Pair) -> None:
    """A 404 of the registry is one of both tiers, and is not remembered when the image is pushed."""
    repository = "tiers/later"
    for method in ("GET", "HEAD"):
        assert pair.pull(f"{repository}/manifests/latest", method).status == 404
    missing = pair.pull(f"{repository}/manifests/latest")
    assert missing.error == "MANIFEST_UNKNOWN"
    assert message_of(missing) == "docker.io has no docker.io/tiers/later:latest"
    assert pair.pull(f"{repository}/tags/list").error == "NAME_UNKNOWN"
    image = push_docker(pair.registry, repository, "later")
    assert digest_of(pair.pull(f"{repository}/manifests/latest").body) == image.digest
    assert pair.pull(f"{repository}/tags/list").json == {"name": f"{HUB}/{repository}", "tags": ["latest"]}
    pair.registry.call("DELETE", f"/v2/{repository}/manifests/{image.digest}", expect=202)
    assert pair.pull(f"{repository}/manifests/latest").status == 404, "a deleted tag is not served as stale"


def test_referrers(pair: Pair) -> None:
    """What refers to a manifest, here under the referrers tag, is found through both, and filtered by its type."""
    repository = "tiers/signed"
    image = push_index(pair.registry, repository, "signed")
    referrers = [
        {"mediaType": OCI_MANIFEST, "digest": single.digest, "size": single.size, "artifactType": f"text/{name}"}
        for name, single in image.platforms.items()
    ]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": referrers}).encode()
    pair.registry.put_manifest(repository, image.digest.replace(":", "-"), body, OCI_INDEX)
    found = [server.send(f"/v2/{HUB}/{repository}/referrers/{image.digest}") for server in (pair.outer, pair.inner)]
    assert [each.json["manifests"] for each in found] == [referrers] * 2
    filtered = pair.pull(f"{repository}/referrers/{image.digest}?artifactType=text/arm64")
    assert [each["artifactType"] for each in filtered.json["manifests"]] == ["text/arm64"]
    assert filtered.header("OCI-Filters-Applied") == "artifactType"
    unsigned = pair.pull(f"{repository}/referrers/{image.this_platform.digest}")
    assert (unsigned.status, unsigned.json["manifests"]) == (200, [])


@pytest.fixture
def slow(pair: Pair) -> Iterator[None]:
    """The registry sends little at a time."""
    pair.way.limit_bandwidth(4000, ["downstream"])
    yield
    pair.way.restore()


@pytest.mark.usefixtures("slow")
def test_workers_of_the_outer_one_are_killed(pair: Pair) -> None:
    """In the middle of a download, one after the other: clients of the inner one notice nothing."""
    repository = "tiers/workers"
    digest, body = put_layer(pair.registry, repository, "workers", 12 * MIB)
    path = f"/v2/{HUB}/{repository}/blobs/{digest}"
    with Crowd(("127.0.0.1", pair.inner.port), path, Bytes(body), 5) as crowd:
        crowd.run(until=lambda: all(member.received > MIB for member in crowd.members))
        workers = pair.outer.worker_pids()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            eventually(lambda: len(set(pair.outer.worker_pids()) - set(workers)) > 0, "another worker")
        crowd.run()
        assert all(member.is_right for member in crowd.members), crowd.summary()
    assert pair.inner.metric("dockyard_fills_resumed_total") >= 1
    eventually(lambda: not pair.inner.breakers(), "a closed circuit breaker")


@pytest.mark.usefixtures("slow")
def test_the_outer_one_is_killed(pair: Pair) -> None:
    """With all its processes, in the middle of a download: it is resumed, by the inner one or by its client."""
    repository = "tiers/killed"
    digest, body = put_layer(pair.registry, repository, "killed", 12 * MIB)
    path = f"/v2/{HUB}/{repository}/blobs/{digest}"
    address = "127.0.0.1", pair.inner.port
    with StreamedResponse(address, path, {}).head() as response:
        received = bytearray(response.read(MIB))
        with pair.without(pair.outer):
            pass
        received += response.rest()[0]
    while len(received) < len(body):
        again = pair.inner.send(path, Range=f"bytes={len(received)}-")
        assert again.status == 206, again
        received += again.body
    assert bytes(received) == body
    eventually(
        lambda: any("range=" in line for line in pair.outer.requests(digest)),
        "a request that leaves out what was received before is logged",
    )

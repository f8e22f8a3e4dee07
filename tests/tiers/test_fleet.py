"""Two tiers of several replicas, each tier behind HAProxy: one request at the registry, and no pull fails.

A node has two hosts, as containerd with two of them in hosts.toml: the balancer of the inner tier, then that of the
outer one.
"""

import contextlib
import hashlib
import http.client
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest

from tests.deploy.fleet import Balancer
from tests.s3.service.bucket_view import BucketView
from tests.s3.store.conftest import minio
from tests.s3.store.servers import Server
from tests.support.bodies import Bytes, digest_of
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import eventually
from tests.support.distribution import DistributionRegistry
from tests.support.fake_registry import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from tests.support.http_client import Crowd
from tests.support.paths import ROOT
from tests.support.programs import Programs
from tests.support.toxiproxy import TcpProxy, Toxiproxy
from tests.tiers.tier import HUB, NO_LOGIN, Tier, behind, serving

__all__ = ["minio"]

MIB = 2**20
REPOSITORY = "tiers/fleet"
RETRY_DELAY_S = 0.2


class Way:
    """The address of a balancer, as an inner tier needs it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"


@attrs.define
class Fleet:
    """The replicas of both tiers and their balancers. `way` is a proxy before the registry."""

    registry: DistributionRegistry
    way: TcpProxy
    outer: Sequence[Tier]
    inner: Sequence[Tier]
    balancers: dict[str, Balancer]

    @property
    def hosts(self) -> list[int]:
        """The ports of the balancers, in the order in which nodes try them."""
        return [self.balancers["inner"].port, self.balancers["outer"].port]

    def gets(self, digest: str) -> int:
        """How many GETs for a blob have reached the registry."""
        return sum(each.method == "GET" and each.path.endswith(f"/blobs/{digest}") for each in self.registry.requests())

    def add_image(self, tag: str, layers: int, size_bytes: int) -> list[bytes]:
        """Push an image with random layers."""
        contents = [Random(f"{tag} {number}").randbytes(size_bytes) for number in range(layers)]
        parts = [(OCI_CONFIG, json.dumps({"tag": tag}).encode()), *((OCI_LAYER, each) for each in contents)]
        described = [{"mediaType": kind, "digest": digest_of(body), "size": len(body)} for kind, body in parts]
        for _, body in parts:
            self.registry.put_blob(REPOSITORY, digest_of(body), body)
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described[0], "layers": described[1:]}
        self.registry.put_manifest(REPOSITORY, tag, json.dumps(document).encode(), OCI_MANIFEST)
        return contents


@contextlib.contextmanager
def running_fleet(
    registry: DistributionRegistry,
    toxiproxy: Toxiproxy,
    haproxy: Path,
    directory: Path,
    replicas: int,
    storage: dict[str, Any],
) -> Iterator[Fleet]:
    """Start two tiers of this many replicas; `storage` is that of the outer one."""
    example = ROOT / "ops" / "haproxy" / "haproxy.cfg"
    with contextlib.ExitStack() as stack:
        way = stack.enter_context(contextlib.closing(toxiproxy.create_proxy(registry.port)))
        hub = {"prefix": HUB, "registry": way.url, "auth": NO_LOGIN}
        outer = [Tier(directory / f"outer-{number}", hub, storage=storage) for number in range(replicas)]
        inner = [Tier(directory / f"inner-{number}") for number in range(replicas)]
        balancers: dict[str, Balancer] = {}
        for name, servers in (("outer", outer), ("inner", inner)):
            (directory / name).mkdir()
            balancers[name] = Balancer(haproxy, example, directory / name, [each.host for each in servers])
        for each in inner:
            each.use(behind(Way(balancers["outer"].port)))  # type: ignore[arg-type]  # which needs its URL only
        stack.enter_context(serving(*outer, *inner))
        for balancer in balancers.values():
            stack.enter_context(contextlib.closing(balancer))
            balancer.start()
        yield Fleet(registry, way, outer, inner, balancers)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def fleet(
    registry: DistributionRegistry,
    toxiproxy: Toxiproxy,
    programs: Programs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Fleet]:
    """Two replicas in each tier, without a bucket."""
    directory = tmp_path_factory.mktemp("two-tiers")
    with running_fleet(registry, toxiproxy, programs.need("haproxy"), directory, 2, {}) as fleet:
        yield fleet


@attrs.define
class Node:
    """A client that retries what fails at the next of its hosts, and continues a body that was cut."""

    hosts: Sequence[int]
    retries: int = 0
    received: int = 0

    def pull(self, tag: str) -> None:
        """Pull an image and check all digests."""
        manifest = json.loads(self.get(f"manifests/{tag}"))
        for part in (manifest["config"], *manifest["layers"]):
            body = self.get(f"blobs/{part['digest']}")
            assert f"sha256:{hashlib.sha256(body).hexdigest()}" == part["digest"]

    def get(self, path: str) -> bytes:
        """The body of a response, after as many attempts as it takes until EVENT_TIMEOUT_S is over."""
        body = bytearray()
        deadline = time.monotonic() + EVENT_TIMEOUT_S
        for port in itertools.cycle(self.hosts):
            try:
                self._resume(port, path, body)
            except (OSError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
            else:
                return bytes(body)
            self.retries += 1
            time.sleep(RETRY_DELAY_S)  # a client waits between two attempts
        raise AssertionError("unreachable")

    def _resume(self, port: int, path: str, body: bytearray) -> None:
        headers = {"Accept": OCI_MANIFEST} | ({"Range": f"bytes={len(body)}-"} if body else {})
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=EVENT_TIMEOUT_S)) as connection:
            connection.request("GET", f"/v2/{HUB}/{REPOSITORY}/{path}", headers=headers)
            response = connection.getresponse()
            if response.status != (206 if body else 200):
                raise http.client.HTTPException(f"GET {path} -> {response.status} {response.read()[:200]!r}")
            left = int(response.headers["Content-Length"])
            while piece := response.read1(65536):
                body += piece
                left -= len(piece)
                self.received += len(piece)
        if left:
            raise http.client.IncompleteRead(bytes(body), left)


def check_herd(fleet: Fleet, tag: str, clients: int, layers: int, size_bytes: int) -> None:
    """All these clients pull each cold layer at once: each is one GET at the registry."""
    contents = fleet.add_image(tag, layers, size_bytes)
    fleet.registry.clear_requests()
    address = "127.0.0.1", fleet.hosts[0]
    for content in contents:
        path = f"/v2/{HUB}/{REPOSITORY}/blobs/{digest_of(content)}"
        with Crowd(address, path, Bytes(content), clients) as crowd:
            crowd.run()
            assert all(member.is_right for member in crowd.members), crowd.summary()
    Node(fleet.hosts[:1]).pull(tag)
    assert [fleet.gets(digest_of(content)) for content in contents] == [1] * layers


def test_a_herd(fleet: Fleet) -> None:
    """Through both balancers."""
    check_herd(fleet, "herd", clients=60, layers=3, size_bytes=4 * MIB)


@contextlib.contextmanager
def pulling(fleet: Fleet, tag: str, nodes: int) -> Iterator[tuple[list[Node], list["Future[None]"]]]:
    """Let nodes pull an image whose layers come slowly. At the end all must have it."""
    fleet.add_image(tag, 2, 4 * MIB)
    fleet.way.limit_bandwidth(3000, ["downstream"])
    members = [Node(fleet.hosts) for _ in range(nodes)]
    try:
        with ThreadPoolExecutor(nodes) as pool:
            pulls = [pool.submit(node.pull, tag) for node in members]
            eventually(lambda: all(node.received > 100_000 for node in members), "all are in the middle of a layer")
            yield members, pulls
            for pull in pulls:
                pull.result()
    finally:
        fleet.way.restore()


@pytest.mark.parametrize("tier", ["outer", "inner"])
@pytest.mark.parametrize(
    "is_whole",
    [pytest.param(True, id="all-replicas"), pytest.param(False, id="one-replica", marks=pytest.mark.long)],
)
def test_a_tier_is_killed_during_pulls(fleet: Fleet, tier: str, is_whole: bool) -> None:  # noqa: FBT001
    """One replica of it, or all of them, are killed, and started again later: all pulls are right after a retry."""
    replicas = {"outer": fleet.outer, "inner": fleet.inner}[tier]
    victims = replicas if is_whole else replicas[:1]
    with pulling(fleet, f"killed-{tier}-{len(victims)}", 12) as (nodes, _):
        for victim in victims:
            victim.kill()
        if tier == "outer" and is_whole:  # nobody can fetch what is missing
            for victim in victims:
                victim.start()
    if not is_whole:
        assert (tier == "inner") == any(node.retries for node in nodes), "the inner tier resumes what breaks behind it"
    for victim in victims:
        if not victim.is_running:
            victim.start()
    names = dict.fromkeys((f"dockyard-{number}" for number in range(1, len(replicas) + 1)), "UP")
    fleet.balancers[tier].wait_for(names)


@pytest.mark.long
def test_cached_images_without_the_outer_tier(fleet: Fleet) -> None:
    """With all of it down, what the inner one has is pulled without a retry, tags as stale."""
    fleet.add_image("cached", 2, 100_000)
    Node(fleet.hosts[:1]).pull("cached")
    for victim in fleet.outer:
        victim.kill()
    try:
        nodes = [Node(fleet.hosts[:1]) for _ in range(3)]
        for node in nodes:
            node.pull("cached")
        assert [node.retries for node in nodes] == [0, 0, 0]
    finally:
        for victim in fleet.outer:
            victim.start()
        fleet.balancers["outer"].wait_for({"dockyard-1": "UP", "dockyard-2": "UP"})


@pytest.mark.long
def test_three_hundred_clients_before_two_tiers_of_three(
    registry: DistributionRegistry,
    toxiproxy: Toxiproxy,
    programs: Programs,
    minio: Server,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Over a bucket of the outer tier: one GET for each layer at the registry, whatever replica is asked."""
    directory = tmp_path_factory.mktemp("six")
    with contextlib.closing(BucketView(minio)) as bucket:
        bucket.make()
        haproxy = programs.need("haproxy")
        with running_fleet(registry, toxiproxy, haproxy, directory, 3, bucket.storage()) as fleet:
            check_herd(fleet, "six", clients=300, layers=4, size_bytes=8 * MIB)

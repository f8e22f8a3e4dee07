"""The description of a fleet: nodes, tiers of replicas, balancers, image, arrival, failures, bucket and upstream.

Rates are those of one machine. Network cards are in bits per second and direction, as their vendors say; the part
`Fleet.goodput` of that are bytes of bodies. CPU seconds are those that were measured (`bench/published/peers.json`), on
processors like those of that machine.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import attrs

from bench.peers import report

KIB, MIB, GIB = 2**10, 2**20, 2**30
GBIT = 1e9
# TCP over IPv4 with timestamps, over Ethernet with an MTU of 1,500: 1,448 bytes of data in 1,538 bytes on the wire.
GOODPUT = 1448 / 1538
MANIFEST_BYTES = 4 * KIB
CONFIGURATION_BYTES = 8 * KIB
MAX_STEPS = 50  # of an even arrival
PUBLISHED = Path(__file__).parents[1] / "published"


@attrs.frozen
class Blob:
    """A part of an image. `key` is what balancers hash: the digest, or the name of the image for its tags.

    `request_cpu_s` are the CPU seconds of a request for a manifest; None for others, whose size counts.
    """

    key: str
    size: float
    request_cpu_s: float | None = None

    @property
    def is_manifest(self) -> bool:
        return self.request_cpu_s is not None


@attrs.frozen
class Costs:
    """CPU seconds of a replica: per byte of a hit, per byte fetched, per request for a tag and for a manifest."""

    hit_s: float = 0.0
    fetch_s: float = 0.0
    tag_s: float = 0.0
    manifest_s: float = 0.0


@cache
def measured_costs() -> Costs:
    """Those of Dockyard in the published measurements, without TLS."""
    published = report.load(PUBLISHED)

    def median(workload: str, value: str) -> float:
        found = published.median(workload, "dockyard", value)
        assert found is not None, f"{workload} is not in {PUBLISHED}"
        return found

    hit_s = median("warm-blob-64", "CPU s/GiB") / GIB
    return Costs(
        hit_s=hit_s,
        fetch_s=median("cold-layer-1", "CPU s/GiB") / GIB - hit_s,
        tag_s=median("warm-manifest-tag", "CPU us/request") / 1e6,
        manifest_s=median("warm-manifest-digest", "CPU us/request") / 1e6,
    )


@attrs.frozen
class Image:
    """An image with layers of these sizes in bytes.

    Balancers choose replicas by its name and its digests. These follow from `seed`, if they are not given: that of the
    manifest as `manifest`, that of the configuration as `0`, those of the layers by their numbers.
    """

    layers: Sequence[float]
    seed: int = 0
    name: str = "docker.io/team/app"
    digests: Mapping[str, str] = attrs.Factory(dict)

    @property
    def size(self) -> float:
        """The bytes of its blobs."""
        return sum(self.layers) + CONFIGURATION_BYTES

    def tag(self, costs: Costs) -> Blob:
        return Blob(f"/v2/{self.name}", MANIFEST_BYTES, costs.tag_s)

    def manifest(self, costs: Costs) -> Blob:
        return Blob(self._digest("manifest"), MANIFEST_BYTES, costs.manifest_s)

    def blobs(self) -> list[Blob]:
        """The configuration, then the layers in the order of the manifest."""
        sizes = [CONFIGURATION_BYTES, *self.layers]
        return [Blob(self._digest(f"{number}"), size) for number, size in enumerate(sizes)]

    def _digest(self, part: str) -> str:
        made = "sha256:" + hashlib.sha256(f"{self.seed} {part}".encode()).hexdigest()
        return self.digests.get(part, made)


@attrs.frozen
class Client:
    """How a container runtime pulls: manifests first, then `parallel` blobs at once, each over its own connection.

    `request_s` is the time before the first byte of a response, `retry_s` that before a failed request is repeated.
    `unpack_rate` is in bytes of compressed layers per second, one after the other; None: times are those of downloads.
    """

    parallel: int = 3
    request_s: float = 0.003
    retry_s: float = 1.0
    connection_rate: float = math.inf
    unpack_rate: float | None = None


@attrs.frozen
class Tier:
    """A level of Dockyards. The first tier of a fleet is asked by the nodes, and each tier asks the next one.

    Nodes are divided evenly over `zones`. Each zone has `replicas` Dockyards behind `balancers`, each of which carries
    an equal part of the connections, in and out; with 0 the only replica is asked directly. `uplink` is the rate in
    bits per second at which a zone receives from other tiers and from the upstream; None: no limit but the cards.
    `crosses_zones` is the part of the bytes that it sends to other availability zones, `weight` that of its servers in
    the balancers.
    """

    name: str
    zones: int = 1
    replicas: int = 3
    card: float = 25 * GBIT
    cores: int = 4
    balancers: int = 1
    balancer_card: float = 100 * GBIT
    uplink: float | None = None
    has_bucket: bool = False
    weight: int = 1
    crosses_zones: float = 0.0


@attrs.frozen
class Upstream:
    """The registry: bytes per second in all and per connection, and the time before the first byte.

    It admits `pulls` (requests for a tag) in each `window_s`; None: any number.
    """

    rate: float = 10 * GBIT / 8
    connection_rate: float = 100 * MIB
    latency_s: float = 0.1
    pulls: int | None = None
    window_s: float = 6 * 3600.0


@attrs.frozen
class Bucket:
    """The S3 service: bytes per second in all and per connection, and the time before the first byte."""

    rate: float = 100 * GBIT / 8
    connection_rate: float = 80 * MIB
    latency_s: float = 0.03


@attrs.frozen
class Arrival:
    """When nodes begin: all at once, evenly over `seconds`, or in `waves` that are `seconds` apart."""

    seconds: float = 0.0
    waves: int | None = None

    def starts(self) -> list[float]:
        """The times at which equal parts of the nodes begin."""
        if self.waves is not None:
            return [wave * self.seconds for wave in range(self.waves)]
        if not self.seconds:
            return [0.0]
        return [(step + 0.5) * self.seconds / MAX_STEPS for step in range(MAX_STEPS)]


@attrs.frozen
class Failure:
    """What is killed at a time, for good: a `replica` or a `balancer` of a zone, or all of the `zone`.

    `tier` 0 is that of the nodes. Until `detection_s` have passed, requests are still sent to it, and wait: 0 is for a
    process that is killed, whose machine refuses connections.
    """

    at_s: float
    kind: Literal["replica", "balancer", "zone"]
    tier: int = 0
    zone: int = 0
    number: int = 0
    detection_s: float = 0.0


@attrs.frozen
class Fleet:
    """All of it, and what is known before the pull begins.

    `warm` is the number of tiers, counted from the upstream, that have the image: a blob at the replica that is asked
    for it. `hop_s` is the time before the first byte of what a replica requests from the next tier. `balancer_cpu` are
    the cores of a balancer, and the CPU seconds that it needs per byte; None: it has enough.
    """

    nodes: int
    tiers: Sequence[Tier]
    node_card: float = 10 * GBIT
    client: Client = Client()
    upstream: Upstream = Upstream()
    bucket: Bucket = Bucket()
    arrival: Arrival = Arrival()
    failures: Sequence[Failure] = ()
    warm: int = 0
    is_in_bucket: bool = False
    goodput: float = GOODPUT
    hop_s: float = 0.004
    balancer_cpu: tuple[int, float] | None = None
    costs: Costs = attrs.Factory(measured_costs)

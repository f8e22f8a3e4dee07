"""All workloads, in the order of the tables."""

from bench.peers.workload import Sizes, Workload
from bench.peers.workloads.cold import ColdLayer, DistinctLayers, WholeImage
from bench.peers.workloads.states import DeadUpstream, Idle, Loaded
from bench.peers.workloads.warm import WarmBlob, WarmManifest


def make_workloads(sizes: Sizes) -> list[Workload]:
    """Return one object of each."""
    many, limit_s = sizes.cold_clients, sizes.cold_limit_s
    return [
        WarmBlob(1),
        WarmBlob(sizes.concurrent_clients),
        WarmManifest("digest"),
        WarmManifest("tag"),
        ColdLayer("cold-layer-1", 1, sizes.cold_bytes, sizes.usual, limit_s),
        ColdLayer("cold-layer-slow", many, sizes.cold_slow_bytes, sizes.slow, limit_s),
        ColdLayer("cold-layer-fast", many, sizes.cold_fast_bytes, sizes.fast, limit_s),
        DistinctLayers(sizes.distinct, sizes.distinct_bytes, sizes.fast),
        WholeImage(sizes.layers, sizes.usual),
        DeadUpstream("refuses"),
        DeadUpstream("silent"),
        Idle(),
        Loaded(many, sizes.loaded_bytes, sizes.loaded_limit_s),
    ]

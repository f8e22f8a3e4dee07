"""All workloads, in the order of the tables."""

from bench.peers.place import Sizes, Workload
from bench.peers.workloads.cold import ColdLayer, DistinctLayers, WholeImage
from bench.peers.workloads.states import DeadUpstream, Idle, Loaded
from bench.peers.workloads.warm import WarmBlob, WarmManifest


def every(sizes: Sizes) -> list[Workload]:
    """Make one of each."""
    herd, limit_s = sizes.cold_clients, sizes.cold_limit_s
    return [
        WarmBlob(1),
        WarmBlob(sizes.herd_clients),
        WarmManifest("digest"),
        WarmManifest("tag"),
        ColdLayer("cold-layer-1", 1, sizes.cold_bytes, sizes.usual, limit_s),
        ColdLayer("cold-layer-slow", herd, sizes.cold_slow_bytes, sizes.slow, limit_s),
        ColdLayer("cold-layer-fast", herd, sizes.cold_fast_bytes, sizes.fast, limit_s),
        DistinctLayers(sizes.distinct, sizes.distinct_bytes, sizes.fast),
        WholeImage(sizes.layers, sizes.usual),
        DeadUpstream("refuses"),
        DeadUpstream("silent"),
        Idle(),
        Loaded(herd, sizes.loaded_bytes, sizes.loaded_limit_s),
    ]

"""All workloads, in the order of the tables."""

from bench.peers.caches import DEFAULT, Variant
from bench.peers.fronts import FRONT_NAMES
from bench.peers.workload import MIB, Sizes, Workload
from bench.peers.workloads.cold import ColdLayer, DistinctLayers, WholeImage
from bench.peers.workloads.image_clients import ContainerdClient, CraneClient, SkopeoClient
from bench.peers.workloads.states import DeadUpstream, Idle, Loaded
from bench.peers.workloads.warm import Head, SmallBlobs, WarmBlob, WarmManifest

TLS = Variant(tls=True)
INTERVAL = Variant(check_interval="10s")
SMALL_BLOBS = {"1k": 1024, "64k": 64 * 1024, "1m": MIB}


def make_workloads(sizes: Sizes) -> list[Workload]:
    """Return one object of each."""
    many, limit_s = sizes.cold_clients, sizes.cold_limit_s
    return [
        *_blobs("warm-blob", sizes, is_reused=False),
        *_blobs("warm-blob-reused", sizes, is_reused=True),
        *(SmallBlobs(name, size) for name, size in SMALL_BLOBS.items()),
        WarmManifest("warm-manifest-digest", "digest"),
        WarmManifest("warm-manifest-tag", "tag"),
        Head("manifests"),
        Head("blobs"),
        ColdLayer("cold-layer-1", 1, sizes.cold_bytes, sizes.usual, limit_s),
        ColdLayer("cold-layer-slow", many, sizes.cold_slow_bytes, sizes.slow, limit_s),
        ColdLayer("cold-layer-fast", many, sizes.cold_fast_bytes, sizes.fast, limit_s),
        DistinctLayers(sizes.distinct, sizes.distinct_bytes, sizes.fast),
        ColdLayer("cold-layer-pieces", 1, sizes.pieces_bytes, sizes.pieces, limit_s),
        WholeImage("image", CraneClient, sizes.layers, sizes.usual),
        WholeImage("image-containerd", ContainerdClient, sizes.layers, sizes.usual),
        WholeImage("image-skopeo", SkopeoClient, sizes.layers, sizes.usual),
        DeadUpstream("refuses"),
        DeadUpstream("silent"),
        Idle(),
        Loaded(many, sizes.loaded_bytes, sizes.loaded_limit_s),
        # Those whose caches are configured otherwise: one variant after the other.
        *_blobs("warm-blob-tls", sizes, is_reused=True, variant=TLS),
        *(
            workload
            for front in FRONT_NAMES
            for workload in _blobs(f"warm-blob-{front}", sizes, is_reused=True, variant=Variant(front=front))
        ),
        WarmManifest("warm-manifest-tag-interval", "tag", INTERVAL),
    ]


def _blobs(key: str, sizes: Sizes, *, is_reused: bool, variant: Variant = DEFAULT) -> list[WarmBlob]:
    """Return the loads of one client and of many; of few too on reused connections without TLS and front."""
    few, many = sizes.few_clients, sizes.concurrent_clients
    loads = [(1, sizes.warm_bytes, sizes.warm_times)]
    if is_reused and variant == DEFAULT:
        loads.append((few, sizes.concurrent_bytes, sizes.warm_times))
    loads.append(
        (many, sizes.concurrent_bytes // 2, sizes.reused_times) if is_reused else (many, sizes.concurrent_bytes, 1)
    )
    return [
        WarmBlob(f"{key}-{clients}", clients, size, times, is_reused=is_reused, variant=variant)
        for clients, size, times in loads
    ]

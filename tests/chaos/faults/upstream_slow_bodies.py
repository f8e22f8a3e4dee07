"""Bodies that come late, slowly, or stop on their proxy."""

import threading

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import REPO, IsolatedUpstream
from tests.chaos.engine.outcomes import cut, error, new, resumed, stale
from tests.chaos.engine.variant import MIB, Fault, UpstreamVariant
from tests.chaos.faults.upstream_bodies import by_state
from tests.chaos.faults.upstream_checks import BLOBS, L, direct_client_gets
from tests.support import faults

# U05


def _send_nothing(upstream: IsolatedUpstream, _: State) -> None:
    upstream.on("manifest", faults.silent(upstream.stalls_over))
    upstream.on("blob", faults.silent(upstream.stalls_over))


LATE = Fault(
    "U05",
    "No first byte",
    (
        UpstreamVariant(
            "silent",
            inject=_send_nothing,
            verify=direct_client_gets("silence"),
            outcomes=by_state(
                stale(L.check()),
                error(504, L.response()),
                error(504, L.response()),
                attrs.evolve(error(504, L.first_byte()), gets=(1, 1)),
                resumed(0),  # it has begun already
            ),
        ),
    ),
)

# U06

VERY_SLOW_BYTES = MIB + MIB // 4  # more than what is verified before its first byte is sent


def _slow(bytes_per_s: int, *, for_s: float = 0.0) -> UpstreamVariant:
    def inject(upstream: IsolatedUpstream, _: State) -> None:
        upstream.on("manifest", faults.slow(20, upstream.stalls_over), method="GET")
        upstream.on("blob", faults.slow(bytes_per_s, upstream.stalls_over), method="GET")
        if for_s:
            timer = threading.Timer(for_s, upstream.stalls_over.set)
            timer.daemon = True
            timer.start()

    seconds = (for_s or VERY_SLOW_BYTES / bytes_per_s) + 2
    slowly = attrs.evolve(new(2), within_s=seconds, says="at the speed of the upstream")
    return UpstreamVariant(
        f"{bytes_per_s // 1024} KiB per s",
        inject=inject,
        verify=lambda upstream, state: _is_slow(upstream, state, bytes_per_s),
        outcomes=by_state(
            stale(L.response()),
            error(504, L.response()),
            error(504, L.response()),
            slowly,
            attrs.evolve(resumed(0, at_most=1), within_s=seconds, says="at the speed of the upstream"),
        ),
        inject_early=frozenset({State.BLOB_DOWNLOAD}),
        layer_bytes=VERY_SLOW_BYTES,
        moves_tag=True,
        remembers_outage=False,  # an upstream that responds is not down
    )


def _is_slow(upstream: IsolatedUpstream, state: State, bytes_per_s: int) -> None:
    if upstream.stalls_over.is_set() and upstream.rules:
        return  # it has ended by itself
    path, speed = f"/v2/{REPO}/manifests/cached", 20
    if state in BLOBS:
        path, speed = upstream.upstream_path(upstream.blob_path("cold")), bytes_per_s
    seconds = upstream.time_bytes(path, speed)
    assert seconds > 0.5, f"a direct client waits {seconds:.2f} s for what should take a second"


VERY_SLOW = Fault("U06", "A very slow body", (_slow(64 * 1024), _slow(1024, for_s=12.0)))

# U07


def _stall_once(upstream: IsolatedUpstream, state: State) -> None:
    upstream.on("manifest", faults.stalled(0.5, upstream.stalls_over), method="GET")
    if state is State.BLOB_COLD:
        upstream.on_once("blob", faults.stalled(0.5, upstream.stalls_over), method="GET")
    elif state is State.BLOB_CACHED:
        upstream.on("blob", faults.stalled(0.5, upstream.stalls_over), method="GET")


def _stall_always(upstream: IsolatedUpstream, _: State) -> None:
    place = len(upstream.layers["cold"].data) // 2
    upstream.on("manifest", faults.stalled(0.5, upstream.stalls_over), method="GET")
    upstream.on("blob", faults.stalled_at_offset(place, upstream.stalls_over), method="GET")


def _is_stalled(upstream: IsolatedUpstream, state: State) -> None:
    if state is not State.BLOB_DOWNLOAD:
        direct_client_gets("200 timeout at .*")(upstream, state)


_STALL = UpstreamVariant(
    "once",
    inject=_stall_once,
    verify=_is_stalled,
    outcomes=by_state(
        stale(L.response()),
        error(504, L.response()),
        error(504, L.response()),
        attrs.evolve(resumed(1), within_s=L.first_byte() + 3),
        attrs.evolve(resumed(1), within_s=L.first_byte() + 3),
    ),
    moves_tag=True,
    stalls_download=True,
    remembers_outage=False,
)

STALL = Fault(
    "U07",
    "A body that stalls half-way",
    (
        _STALL,
        attrs.evolve(
            _STALL,
            name="at each attempt",
            inject=_stall_always,
            outcomes={**_STALL.outcomes, State.BLOB_COLD: (cut(L.stalls()),), State.BLOB_DOWNLOAD: (cut(L.stalls()),)},
        ),
    ),
)

FAULTS = (LATE, VERY_SLOW, STALL)

"""Bodies that come late, slowly, or stop on their way."""

import threading

import attrs

from tests.chaos.cells import State
from tests.chaos.lanes import MIB, REPO, Lane
from tests.chaos.outcomes import cut, error, new, resumed, stale
from tests.chaos.stories import Fault, Trouble
from tests.chaos.upstream.bodies import by_state
from tests.chaos.upstream.proofs import BLOBS, L, sees
from tests.support import faults

# U05


def _say_nothing(lane: Lane, _: State) -> None:
    lane.on("manifest", faults.silent(lane.released))
    lane.on("blob", faults.silent(lane.released))


LATE = Fault(
    "U05",
    "No first byte",
    (
        Trouble(
            "silent",
            strike=_say_nothing,
            prove=sees("silence"),
            outcomes=by_state(
                stale(L.check()),
                error(504, L.check()),
                error(504, L.answer()),
                attrs.evolve(error(504, L.first_byte()), gets=(1, 1)),
                resumed(0),  # it runs already
            ),
        ),
    ),
)

# U06

TRICKLE_BYTES = MIB + MIB // 4  # more than what is verified before its first byte


def _trickling(bytes_per_s: int, *, for_s: float = 0.0) -> Trouble:
    def strike(lane: Lane, _: State) -> None:
        lane.on("manifest", faults.slow(20, lane.released), method="GET")
        lane.on("blob", faults.slow(bytes_per_s, lane.released), method="GET")
        if for_s:
            timer = threading.Timer(for_s, lane.released.set)
            timer.daemon = True
            timer.start()

    seconds = (for_s or TRICKLE_BYTES / bytes_per_s) + 2
    slowly = attrs.evolve(new(2), within_s=seconds, says="at the speed of the upstream")
    return Trouble(
        f"{bytes_per_s // 1024} KiB per s",
        strike=strike,
        prove=lambda lane, state: _is_slow(lane, state, bytes_per_s),
        outcomes=by_state(
            stale(L.answer()),
            error(504, L.answer()),
            error(504, L.answer()),
            slowly,
            attrs.evolve(resumed(0, at_most=1), within_s=seconds, says="at the speed of the upstream"),
        ),
        early=frozenset({State.BLOB_DOWNLOAD}),
        layer_bytes=TRICKLE_BYTES,
        moves_tag=True,
        stays_stale=False,  # whoever answers is not down
    )


def _is_slow(lane: Lane, state: State, bytes_per_s: int) -> None:
    if lane.released.is_set() and lane.rules:
        return  # it has recovered by itself
    path, speed = f"/v2/{REPO}/manifests/cached", 20
    if state in BLOBS:
        path, speed = lane.path_upstream(lane.blob_path("cold")), bytes_per_s
    seconds = lane.time_bytes(path, speed)
    assert seconds > 0.5, f"a plain client waits {seconds:.2f} s for what should take a second"


TRICKLE = Fault("U06", "A body that trickles", (_trickling(64 * 1024), _trickling(1024, for_s=12.0)))

# U07


def _stall_once(lane: Lane, state: State) -> None:
    lane.on("manifest", faults.stalled(0.5, lane.released), method="GET")
    if state is State.BLOB_COLD:
        lane.on_once("blob", faults.stalled(0.5, lane.released), method="GET")
    elif state is State.BLOB_CACHED:
        lane.on("blob", faults.stalled(0.5, lane.released), method="GET")


def _stall_always(lane: Lane, _: State) -> None:
    place = len(lane.layers["cold"].data) // 2
    lane.on("manifest", faults.stalled(0.5, lane.released), method="GET")
    lane.on("blob", faults.stalled_at_offset(place, lane.released), method="GET")


_STALL = Trouble(
    "once",
    strike=_stall_once,
    prove=lambda lane, state: None if state is State.BLOB_DOWNLOAD else sees("200 timeout at .*")(lane, state),
    outcomes=by_state(
        stale(L.answer()),
        error(504, L.answer()),
        error(504, L.answer()),
        attrs.evolve(resumed(1), within_s=L.first_byte() + 3),
        attrs.evolve(resumed(1), within_s=L.first_byte() + 3),
    ),
    moves_tag=True,
    stalls=True,
    stays_stale=False,
)

STALL = Fault(
    "U07",
    "A body that stalls half way",
    (
        _STALL,
        attrs.evolve(
            _STALL,
            name="at each attempt",
            strike=_stall_always,
            outcomes={**_STALL.outcomes, State.BLOB_COLD: (cut(L.stalls()),), State.BLOB_DOWNLOAD: (cut(L.stalls()),)},
        ),
    ),
)

SLOW = (LATE, TRICKLE, STALL)

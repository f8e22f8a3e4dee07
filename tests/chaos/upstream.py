"""Section U of the matrix: what an upstream does to us, from refused connections to pages of hotel networks."""

import re

from tests import misbehaviour as bad
from tests.chaos.cells import State
from tests.chaos.lanes import Lane
from tests.chaos.limits import Limits
from tests.chaos.outcomes import cut, error, hit, resumed, stale
from tests.chaos.stories import Fault, Trouble

L = Limits()


def _shows(pattern: str, lane: Lane, seen: str) -> None:
    assert re.fullmatch(pattern, seen), f"a plain client sees {seen!r} in lane {lane.name}, not {pattern!r}"


# U01


def _refuse(lane: Lane, _: State) -> None:
    assert lane.way is not None
    lane.way.refuse()


REFUSED = Fault(
    "U01",
    "Connection refused",
    (
        Trouble(
            "refused",
            strike=_refuse,
            prove=lambda lane, _: _shows("refused", lane, lane.look()),
            outcomes={
                State.TAG_CACHED: (stale(L.at_once()),),
                State.TAG_COLD: (error(503, L.no()),),
                State.MANIFEST: (hit(), error(503, L.no())),
                State.BLOB_CACHED: (hit(),),
                State.BLOB_COLD: (error(503, L.no()),),
                State.BLOB_FLIGHT: (cut(L.breaks()),),
            },
            workers=4,
        ),
    ),
)

# U14


def _fail(status: int) -> Trouble:
    def strike(lane: Lane, _: State) -> None:
        lane.on(None, bad.refusing(status, "UNAVAILABLE"))

    return Trouble(
        str(status),
        strike=strike,
        prove=lambda lane, _: _shows(f"{status} whole", lane, lane.look()),
        outcomes={
            State.TAG_CACHED: (stale(L.bad_content()),),
            State.TAG_COLD: (error(503, L.bad_content()),),
            State.MANIFEST: (hit(), error(503, L.bad_content())),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (error(503, 2 * L.bad_content()),),
            State.BLOB_FLIGHT: (resumed(0),),
        },
    )


FAILING = Fault("U14", "Errors of the server", tuple(_fail(status) for status in (503, 500, 502, 504)))

FAULTS = (REFUSED, FAILING)

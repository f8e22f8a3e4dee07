"""An upstream that cannot be reached: refused, unknown by name, silent, or not to be trusted."""

from tests.chaos.cells import State
from tests.chaos.lanes import Lane
from tests.chaos.outcomes import cut, error, hit, stale
from tests.chaos.stories import Fault, Trouble
from tests.chaos.upstream.proofs import L, sees

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
            prove=sees("refused"),
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

REACHING = (REFUSED,)

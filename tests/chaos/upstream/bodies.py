"""What the rows about bodies share: how they are spoilt, and what a state makes of it.

The tag that is cached means another image when one of these strikes: so its manifest is asked for. A check of a tag
that has not moved needs no body, and these faults do not touch it.
"""

from collections.abc import Callable

from tests.chaos.cells import State
from tests.chaos.lanes import Lane
from tests.chaos.outcomes import Outcome, hit
from tests.chaos.upstream.proofs import BLOBS
from tests.support.fake_registry import Change


def by_state(
    tag_cached: Outcome, tag_cold: Outcome, manifest: Outcome, blob_cold: Outcome, blob_download: Outcome
) -> dict[State, tuple[Outcome, ...]]:
    """What is cached by digest is a hit, whatever ails the upstream."""
    return {
        State.TAG_CACHED: (tag_cached,),
        State.TAG_COLD: (tag_cold,),
        State.MANIFEST: (hit(), manifest),
        State.BLOB_CACHED: (hit(),),
        State.BLOB_COLD: (blob_cold,),
        State.BLOB_DOWNLOAD: (blob_download,),
    }


def spoilt(change: Change, blob_change: Change | None = None) -> Callable[[Lane, State], None]:
    """Every body is changed so."""

    def strike(lane: Lane, _: State) -> None:
        lane.on("manifest", change, method="GET")
        lane.on("blob", blob_change or change, method="GET")

    return strike


def spoilt_once(change: Change) -> Callable[[Lane, State], None]:
    """The next body that Dockyard asks for is changed so. What is cached is never asked for: there it is every body."""

    def strike(lane: Lane, state: State) -> None:
        if state is State.BLOB_CACHED:
            lane.on("blob", change, method="GET")
        else:
            lane.on_once("blob" if state in BLOBS else "manifest", change, method="GET")

    return strike

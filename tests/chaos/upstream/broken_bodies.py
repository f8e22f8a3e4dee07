"""Bodies that break off, and how an upstream goes on with them."""

from collections.abc import Callable

import attrs

from tests.chaos.cells import State
from tests.chaos.lanes import MIB, REPO, Lane
from tests.chaos.outcomes import Outcome, cut, error, hit, new, resumed, stale
from tests.chaos.stories import Fault, Trouble, World, nothing
from tests.chaos.upstream.bodies import by_state, spoilt, spoilt_once
from tests.chaos.upstream.proofs import BLOBS, L, sees
from tests.support import faults
from tests.support.fake_registry import Change
from tests.support.raw_http import Request, ScriptedResponse

# U08: by toxiproxy, whose count begins with each connection: so one answer per connection.


def _one_answer_each(lane: Lane, _: World) -> None:
    lane.fake_registry.on(None, faults.header("Connection", "close"))


def _reset(at: float, *, is_lasting: bool = False) -> Callable[[Lane, State], None]:
    def strike(lane: Lane, state: State) -> None:
        assert lane.way is not None
        path = f"/v2/{REPO}/manifests/cached"
        if state in BLOBS:
            path = lane.path_upstream(lane.blob_path("cold"))
        head, size = lane.measure(path)
        if is_lasting:
            lane.fake_registry.listener.drop_connections()  # those that are there would end by FIN
        lane.way.cut(head + int(at * size), by_reset=True)
        if not is_lasting and state is not State.BLOB_CACHED:
            lane.mend_way_at_second("blob" if state in BLOBS else "manifest")

    return strike


def _was_reset(lane: Lane, state: State) -> None:
    if not lane.has_mended_itself:
        sees("200 rst at .*")(lane, state)


def _broken_once() -> dict[State, tuple[Outcome, ...]]:
    """What is lost is fetched, unseen."""
    return by_state(new(2), new(2), new(2), resumed(1), resumed(1))


def _resumed_by_offset() -> dict[State, tuple[Outcome, ...]]:
    """What the fake registry sent and toxiproxy threw away is not counted, but that each GET asks for the rest."""
    uncounted = attrs.evolve(resumed(1), waste_bytes=None)
    return {**_broken_once(), State.BLOB_COLD: (uncounted,), State.BLOB_DOWNLOAD: (uncounted,)}


def _resetting(at: float) -> Trouble:
    return Trouble(
        f"at {at:.0%}".replace("%", " %"),
        strike=_reset(at),
        prove=_was_reset,
        outcomes=_resumed_by_offset(),
        prepare=_one_answer_each,
        early=frozenset({State.BLOB_DOWNLOAD}),
        point=at,
        moves_tag=True,
    )


def _cut_short(name: str, change: Change, *, is_blind: bool = False) -> Trouble:
    return Trouble(
        name,
        strike=spoilt_once(change),
        prove=sees("200 fin at .*"),
        outcomes=_broken_once(),
        early=frozenset({State.BLOB_DOWNLOAD}),
        moves_tag=True,
        is_blind=is_blind,
    )


RESET = Fault(
    "U08",
    "RST in the middle of a body",
    (
        *(_resetting(at) for at in (0.5, 0.01, 0.99)),
        attrs.evolve(
            _cut_short("at 50 %, when all before it has arrived", faults.cut(0.5, "rst")),
            prove=sees("200 rst at .*"),
            is_direct=True,  # a reset of toxiproxy's takes along what it has not sent yet
        ),
        attrs.evolve(
            _resetting(0.3),
            name="every 30 %",
            strike=_reset(0.3, is_lasting=True),
            prepare=nothing,
            layer_bytes=8 * MIB,
            outcomes=by_state(
                stale(L.bad_content()),
                error(503, L.bad_content()),
                error(503, L.bad_content()),
                attrs.evolve(resumed(3, at_most=9), waste_bytes=None),
                attrs.evolve(resumed(3, at_most=9), waste_bytes=None),
            ),
            stays_stale=False,
        ),
    ),
)

# U09, by the fake registry


def _unended(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
    """Half of the body, in chunks, of which the last is missing."""
    return faults.cut(0.5)(request, faults.chunked(ended=False)(request, answer))


def _without_length(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
    """Half of the body, and nothing says that there should be more."""
    half = (answer.stop - answer.start) // 2
    return faults.close_delimited()(request, attrs.evolve(answer, stop=answer.start + half))


TRUNCATED = Fault(
    "U09",
    "A body cut short by FIN",
    (
        _cut_short("with a length", faults.cut(0.5)),
        _cut_short("in chunks", _unended, is_blind=True),
        attrs.evolve(
            _cut_short("without a length", _without_length, is_blind=True),
            strike=spoilt(_without_length),
            # A manifest that is too short for its digest is asked for twice; a layer cannot be told from a wrong one.
            outcomes=by_state(
                stale(L.bad_content()),
                error(502, L.bad_content()),
                error(502, L.bad_content()),
                attrs.evolve(error(502, L.bad_content()), gets=(1, 2)),
                attrs.evolve(error(502, L.bad_content()), gets=(1, 2)),
            ),
            stays_stale=False,
        ),
    ),
)

# U21


def _shift_range(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
    if answer.status != 206:
        return answer
    return answer.with_header("Content-Range", f"bytes {answer.start + 1}-{answer.stop}/{answer.body.size + 1}")


def _change_blobs(lane: Lane, change: Change) -> None:
    lane.on("blob", change)


def _is_range_wrong(lane: Lane, _: State) -> None:
    size = lane.layers["cold"].size
    seen = lane.look_at_range("cold", 100)
    assert seen != f"206 bytes 100-{size - 1}/{size}", "a plain client gets the range that it asks for"


def _ranging(name: str, change: Change, download: Outcome) -> Trouble:
    return Trouble(
        name,
        strike=lambda lane, _: _change_blobs(lane, change),
        prove=_is_range_wrong,
        outcomes={
            State.MANIFEST: (hit(), new()),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (new(),),
            State.BLOB_DOWNLOAD: (download,),
        },
        breaks=True,
    )


RANGES = Fault(
    "U21",
    "Ranges ignored, or wrong",
    (
        _ranging("200 instead of 206", faults.ignoring_range(), attrs.evolve(resumed(1), waste_bytes=2 * MIB)),
        _ranging("wrong Content-Range", _shift_range, cut(L.breaks())),
    ),
)

BROKEN = (RESET, TRUNCATED, RANGES)

"""Bodies that come late, slowly, in part, or wrong.

The tag that is cached means another image when one of these strikes: so its manifest is asked for. A check of a tag
that has not moved needs no body, and these faults do not touch it.
"""

import threading
from collections.abc import Callable

import attrs

from tests import misbehaviour as bad
from tests.chaos.cells import State
from tests.chaos.lanes import MIB, REPO, Lane
from tests.chaos.outcomes import Outcome, Seen, cut, either, error, hit, new, resumed, stale
from tests.chaos.stories import Fault, Story, Trouble, World, nothing
from tests.chaos.upstream.proofs import BLOBS, L, sees
from tests.origin import Change
from tests.wire import Answer, Request

JSON_PAGE = b'{"errors":[{"code":"UNAVAILABLE","message":"said the upstream"}]}'


def _outcomes(
    tag_cached: Outcome, tag_cold: Outcome, manifest: Outcome, blob_cold: Outcome, blob_flight: Outcome
) -> dict[State, tuple[Outcome, ...]]:
    """What is cached by digest is a hit, whatever ails the upstream."""
    return {
        State.TAG_CACHED: (tag_cached,),
        State.TAG_COLD: (tag_cold,),
        State.MANIFEST: (hit(), manifest),
        State.BLOB_CACHED: (hit(),),
        State.BLOB_COLD: (blob_cold,),
        State.BLOB_FLIGHT: (blob_flight,),
    }


def _spoilt(change: Change, blob_change: Change | None = None) -> Callable[[Lane, State], None]:
    """Every body is changed so."""

    def strike(lane: Lane, _: State) -> None:
        lane.on("manifest", change, method="GET")
        lane.on("blob", blob_change or change, method="GET")

    return strike


def _spoilt_once(change: Change) -> Callable[[Lane, State], None]:
    """The next body that Dockyard asks for is changed so. What is cached is never asked for: there it is every body."""

    def strike(lane: Lane, state: State) -> None:
        if state is State.BLOB_CACHED:
            lane.on("blob", change, method="GET")
        else:
            lane.on_once("blob" if state in BLOBS else "manifest", change, method="GET")

    return strike


# U05


def _say_nothing(lane: Lane, _: State) -> None:
    lane.on("manifest", bad.silent(lane.released))
    lane.on("blob", bad.silent(lane.released))


LATE = Fault(
    "U05",
    "No first byte",
    (
        Trouble(
            "silent",
            strike=_say_nothing,
            prove=sees("silence"),
            outcomes=_outcomes(
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
        lane.on("manifest", bad.slow(20, lane.released), method="GET")
        lane.on("blob", bad.slow(bytes_per_s, lane.released), method="GET")
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
        outcomes=_outcomes(
            stale(L.answer()),
            error(504, L.answer()),
            error(504, L.answer()),
            slowly,
            attrs.evolve(resumed(0, at_most=1), within_s=seconds, says="at the speed of the upstream"),
        ),
        early=frozenset({State.BLOB_FLIGHT}),
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
    lane.on("manifest", bad.stalled(0.5, lane.released), method="GET")
    if state is State.BLOB_COLD:
        lane.on_once("blob", bad.stalled(0.5, lane.released), method="GET")
    elif state is State.BLOB_CACHED:
        lane.on("blob", bad.stalled(0.5, lane.released), method="GET")


def _stall_always(lane: Lane, _: State) -> None:
    place = len(lane.layers["cold"].data) // 2
    lane.on("manifest", bad.stalled(0.5, lane.released), method="GET")
    lane.on("blob", bad.stuck_at(place, lane.released), method="GET")


_STALL = Trouble(
    "once",
    strike=_stall_once,
    prove=lambda lane, state: None if state is State.BLOB_FLIGHT else sees("200 timeout at .*")(lane, state),
    outcomes=_outcomes(
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
            outcomes={**_STALL.outcomes, State.BLOB_COLD: (cut(L.stalls()),), State.BLOB_FLIGHT: (cut(L.stalls()),)},
        ),
    ),
)

# U08: by toxiproxy, whose count begins with each connection: so one answer per connection.


def _one_answer_each(lane: Lane, _: World) -> None:
    lane.origin.on(None, bad.header("Connection", "close"))


def _reset(at: float, *, is_lasting: bool = False) -> Callable[[Lane, State], None]:
    def strike(lane: Lane, state: State) -> None:
        assert lane.way is not None
        path = f"/v2/{REPO}/manifests/cached"
        if state in BLOBS:
            path = lane.path_upstream(lane.blob_path("cold"))
        head, size = lane.measure(path)
        if is_lasting:
            lane.origin.registry.drop_connections()  # those that are there would end by FIN
        lane.way.cut(head + int(at * size), by_reset=True)
        if not is_lasting and state is not State.BLOB_CACHED:
            lane.mend_way_at_second("blob" if state in BLOBS else "manifest")

    return strike


def _was_reset(lane: Lane, state: State) -> None:
    if not lane.has_mended_itself:
        sees("200 rst at .*")(lane, state)


def _broken_once() -> dict[State, tuple[Outcome, ...]]:
    """What is lost is fetched, unseen."""
    return _outcomes(new(2), new(2), new(2), resumed(1), resumed(1))


def _resumed_by_offset() -> dict[State, tuple[Outcome, ...]]:
    """What the origin sent and toxiproxy threw away is not counted; that each GET asks for the rest is."""
    uncounted = attrs.evolve(resumed(1), waste_bytes=None)
    return {**_broken_once(), State.BLOB_COLD: (uncounted,), State.BLOB_FLIGHT: (uncounted,)}


def _resetting(at: float) -> Trouble:
    return Trouble(
        f"at {at:.0%}".replace("%", " %"),
        strike=_reset(at),
        prove=_was_reset,
        outcomes=_resumed_by_offset(),
        prepare=_one_answer_each,
        early=frozenset({State.BLOB_FLIGHT}),
        point=at,
        moves_tag=True,
    )


RESET = Fault(
    "U08",
    "RST in the middle of a body",
    (
        *(_resetting(at) for at in (0.5, 0.01, 0.99)),
        attrs.evolve(
            _resetting(0.3),
            name="every 30 %",
            strike=_reset(0.3, is_lasting=True),
            prepare=nothing,
            layer_bytes=8 * MIB,
            outcomes=_outcomes(
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

# U09


def _cut_short(name: str, change: Change, *, is_blind: bool = False) -> Trouble:
    return Trouble(
        name,
        strike=_spoilt_once(change),
        prove=sees("200 fin at .*"),
        outcomes=_broken_once(),
        early=frozenset({State.BLOB_FLIGHT}),
        moves_tag=True,
        is_blind=is_blind,
    )


def _unended(request: Request, answer: Answer) -> Answer:
    """Half of the body, in chunks, of which the last is missing."""
    return bad.cut(0.5)(request, bad.chunked(ended=False)(request, answer))


def _without_length(request: Request, answer: Answer) -> Answer:
    """Half of the body, and nothing says that there should be more."""
    half = (answer.stop - answer.start) // 2
    return bad.close_delimited()(request, attrs.evolve(answer, stop=answer.start + half))


TRUNCATED = Fault(
    "U09",
    "A body cut short by FIN",
    (
        _cut_short("with a length", bad.cut(0.5)),
        _cut_short("in chunks", _unended, is_blind=True),
        attrs.evolve(
            _cut_short("without a length", _without_length, is_blind=True),
            strike=_spoilt(_without_length),
            # A manifest that is too short for its digest is asked for twice; a layer cannot be told from a wrong one.
            outcomes=_outcomes(
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

# U10: the next request after wrong bytes fetches again, as the registry may be well by then (the table's quarantine of
# five seconds would refuse it).


def _garbage(blob_cold: Outcome | None = None, blob_flight: Outcome | None = None) -> dict[State, tuple[Outcome, ...]]:
    no = error(502, L.bad_content())
    end = cut(L.breaks())
    return _outcomes(stale(L.bad_content()), no, no, blob_cold or end, blob_flight or end)


def _flip(at: float) -> Change:
    return lambda request, answer: bad.flipped(int(at * (answer.body.size - 1)))(request, answer)


def _other_bytes(request: Request, answer: Answer) -> Answer:
    return bad.with_body(b"\x00" * (answer.stop - answer.start))(request, answer)


def _wrong(name: str, change: Change) -> Trouble:
    return Trouble(
        name,
        strike=_spoilt(change),
        prove=sees("200 wrong"),
        outcomes=_garbage(),
        early=frozenset({State.BLOB_FLIGHT}),
        moves_tag=True,
        stays_stale=False,  # an upstream that answers is not down
        more={State.BLOB_COLD: _small_is_refused},
    )


def _small_is_refused(story: Story, _: Seen) -> None:
    """Of a small blob no byte is sent before all are right."""
    config = story.lane.images["cold"].config
    got = story.get(story.lane.blob_path("cold").rpartition("/")[0] + f"/{config}", b"")
    story.record.check(got.status in (200, 502), f"a small blob: status {got.status}")
    story.record.check(got.status == 502 or story.is_stored(config), "a small blob was served unverified")


WRONG = Fault(
    "U10",
    "Wrong bytes of the right length",
    (
        _wrong("one bit at 1 %", _flip(0.01)),
        _wrong("the last byte", _flip(1.0)),
        _wrong("all of it", _other_bytes),
    ),
)

# U11


def _two_lengths(request: Request, answer: Answer) -> Answer:
    return answer.with_header("Content-Length", "12345")


def _length_and_chunks(request: Request, answer: Answer) -> Answer:
    size = answer.stop - answer.start
    return bad.chunked()(request, answer).with_header("Content-Length", str(size // 2))


def _too_small(request: Request, answer: Answer) -> Answer:
    return attrs.evolve(answer, length=(answer.stop - answer.start) // 2)


def _misfit(name: str, change: Change, seen: str, outcomes: dict[State, tuple[Outcome, ...]]) -> Trouble:
    return attrs.evolve(_wrong(name, change), prove=sees(seen), outcomes=outcomes)


_CHUNKS_WIN = _outcomes(new(2), new(2), new(2), new(), resumed(0))
_NO_BYTE = error(502, L.bad_content())
_CUT_OR_NOT = either(cut(L.breaks()), _NO_BYTE)

# A body that ends ahead of its length was broken off, as far as anybody can see: 503, which clients try again.
_BROKEN_OFF = error(503, L.bad_content())
_TOO_LARGE = {**_garbage(), State.TAG_COLD: (_BROKEN_OFF,), State.MANIFEST: (hit(), _BROKEN_OFF)}

LENGTH = Fault(
    "U11",
    "Wrong lengths",
    (
        _misfit("too small", _too_small, "200 wrong", _garbage(_CUT_OR_NOT, _CUT_OR_NOT)),
        _misfit("too large", bad.claiming(1000), "200 fin at .*", _TOO_LARGE),
        _misfit("other than the manifest says", bad.longer(b"x" * 1000), "200 wrong", _garbage()),
        attrs.evolve(
            _misfit("two lengths", _two_lengths, "200 two lengths", _garbage(_NO_BYTE, cut(L.breaks()))),
            early=frozenset(),
            breaks=True,
        ),
        attrs.evolve(
            _misfit(
                "length and chunks",
                _length_and_chunks,
                "200 length and chunks",
                _outcomes(new(2), new(2), new(2), new(), resumed(0)),
            ),
            is_blind=True,
            more={},  # all of it is right
        ),
    ),
)

# U19


def _page(name: str, page: Change) -> Trouble:
    return Trouble(
        name,
        strike=lambda lane, _: _show_pages(lane, page),
        prove=sees("200 page"),
        outcomes=_garbage(error(502, L.bad_content())),
        breaks=True,
        stays_stale=False,
    )


def _show_pages(lane: Lane, page: Change) -> None:
    lane.on("manifest", page)
    lane.on("blob", page)


PAGES = Fault(
    "U19",
    "A page of a hotel network, or an error page with status 200",
    (
        _page("HTML", bad.html_page()),
        _page("JSON", bad.replaced(200, JSON_PAGE, ("Content-Type", "application/json"))),
    ),
)

# U21


def _shift_range(request: Request, answer: Answer) -> Answer:
    if answer.status != 206:
        return answer
    return answer.with_header("Content-Range", f"bytes {answer.start + 1}-{answer.stop}/{answer.body.size + 1}")


def _change_blobs(lane: Lane, change: Change) -> None:
    lane.on("blob", change)


def _is_range_wrong(lane: Lane, _: State) -> None:
    size = lane.layers["cold"].size
    seen = lane.look_at_range("cold", 100)
    assert seen != f"206 bytes 100-{size - 1}/{size}", "a plain client gets the range that it asks for"


def _ranging(name: str, change: Change, flight: Outcome) -> Trouble:
    return Trouble(
        name,
        strike=lambda lane, _: _change_blobs(lane, change),
        prove=_is_range_wrong,
        outcomes={
            State.MANIFEST: (hit(), new()),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (new(),),
            State.BLOB_FLIGHT: (flight,),
        },
        breaks=True,
    )


RANGES = Fault(
    "U21",
    "Ranges ignored, or wrong",
    (
        _ranging("200 instead of 206", bad.ignoring_range(), attrs.evolve(resumed(1), waste_bytes=2 * MIB)),
        _ranging("wrong Content-Range", _shift_range, cut(L.breaks())),
    ),
)

BODIES = (LATE, TRICKLE, STALL, RESET, TRUNCATED, WRONG, LENGTH, PAGES, RANGES)

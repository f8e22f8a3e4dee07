"""Bodies that are not what was asked for: other bytes, another length, a page."""

import attrs

from tests.chaos.cells import State
from tests.chaos.lanes import Lane
from tests.chaos.outcomes import Outcome, Seen, cut, either, error, hit, new, resumed, stale
from tests.chaos.stories import Fault, Story, Trouble
from tests.chaos.upstream.bodies import by_state, spoilt
from tests.chaos.upstream.proofs import L, sees
from tests.support import faults
from tests.support.fake_registry import Change
from tests.support.raw_http import Request, ScriptedResponse

JSON_PAGE = b'{"errors":[{"code":"UNAVAILABLE","message":"said the upstream"}]}'


def _garbage(
    blob_cold: Outcome | None = None, blob_download: Outcome | None = None
) -> dict[State, tuple[Outcome, ...]]:
    no = error(502, L.bad_content())
    end = cut(L.breaks())
    return by_state(stale(L.bad_content()), no, no, blob_cold or end, blob_download or end)


def _flip(at: float) -> Change:
    return lambda request, answer: faults.flipped(int(at * (answer.body.size - 1)))(request, answer)


def _other_bytes(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
    return faults.with_body(b"\x00" * (answer.stop - answer.start))(request, answer)


def _wrong(name: str, change: Change, reason: str = "") -> Trouble:
    return Trouble(
        name,
        strike=spoilt(change),
        prove=sees("200 wrong"),
        outcomes=_garbage(),
        early=frozenset({State.BLOB_DOWNLOAD}),
        moves_tag=True,
        stays_stale=False,  # an upstream that answers is not down
        more={State.BLOB_COLD: _small_is_refused},
        reason=reason,
    )


def _small_is_refused(story: Story, _: Seen) -> None:
    """Of a small blob no byte is sent before all are right."""
    config = story.lane.images["cold"].config
    got = story.get(story.lane.blob_path("cold").rpartition("/")[0] + f"/{config}", b"")
    story.record.check(got.status in (200, 502), f"a small blob: status {got.status}")
    story.record.check(got.status == 502 or story.is_stored(config), "a small blob was served unverified")


_FETCHED_AGAIN = "the next request fetches again: the registry may be well by then"
WRONG = Fault(
    "U10",
    "Wrong bytes of the right length",
    (
        _wrong("one bit at 1 %", _flip(0.01), _FETCHED_AGAIN),
        _wrong("the last byte", _flip(1.0), _FETCHED_AGAIN),
        _wrong("all of it", _other_bytes, _FETCHED_AGAIN),
    ),
)

# U11


def _two_lengths(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
    return answer.with_header("Content-Length", "12345")


def _length_and_chunks(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
    size = answer.stop - answer.start
    return faults.chunked()(request, answer).with_header("Content-Length", str(size // 2))


def _too_small(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
    return attrs.evolve(answer, length=(answer.stop - answer.start) // 2)


def _misfit(name: str, change: Change, seen: str, outcomes: dict[State, tuple[Outcome, ...]]) -> Trouble:
    return attrs.evolve(_wrong(name, change), prove=sees(seen), outcomes=outcomes)


_CHUNKS_WIN = by_state(new(2), new(2), new(2), new(), resumed(0))
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
        _misfit("too large", faults.wrong_length(1000), "200 fin at .*", _TOO_LARGE),
        _misfit("other than the manifest says", faults.longer(b"x" * 1000), "200 wrong", _garbage()),
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
                by_state(new(2), new(2), new(2), new(), resumed(0)),
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
        _page("HTML", faults.html_page()),
        _page("JSON", faults.replaced(200, JSON_PAGE, ("Content-Type", "application/json"))),
    ),
)

WRONG_BODIES = (WRONG, LENGTH, PAGES)

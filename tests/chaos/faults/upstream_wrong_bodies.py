"""Bodies with other bytes, another length, or a page instead: U10, U11, U19."""

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import IsolatedUpstream
from tests.chaos.engine.outcomes import Observation, Outcome, cut, either, error, hit, new, resumed, stale
from tests.chaos.engine.upstream_case import UpstreamCaseRun
from tests.chaos.engine.variant import Fault, UpstreamVariant
from tests.chaos.faults.upstream_bodies import by_state, change_bodies
from tests.chaos.faults.upstream_checks import L, direct_client_gets
from tests.support import faults
from tests.support.fake_registry import Change
from tests.support.raw_http import Request, ScriptedResponse

_NO_BYTE = error(502, L.bad_content())
# Where the whole body has come and is refused before the first byte is sent, the client gets an error instead.
_CUT_OR_NOT = either(cut(L.breaks()), _NO_BYTE)
JSON_PAGE = b'{"errors":[{"code":"UNAVAILABLE","message":"from the upstream"}]}'


def _garbage(
    blob_cold: Outcome | None = None, blob_download: Outcome | None = None
) -> dict[State, tuple[Outcome, ...]]:
    return by_state(stale(L.bad_content()), _NO_BYTE, _NO_BYTE, blob_cold or _CUT_OR_NOT, blob_download or _CUT_OR_NOT)


def _flip(at: float) -> Change:
    return lambda request, response: faults.flipped(int(at * (response.body.size - 1)))(request, response)


def _other_bytes(request: Request, response: ScriptedResponse) -> ScriptedResponse:
    return faults.with_body(b"\x00" * (response.stop - response.start))(request, response)


def _wrong(name: str, change: Change, reason: str = "") -> UpstreamVariant:
    return UpstreamVariant(
        name,
        inject=change_bodies(change),
        verify=direct_client_gets("200 wrong"),
        outcomes=_garbage(),
        inject_early=frozenset({State.BLOB_DOWNLOAD}),
        moves_tag=True,
        remembers_outage=False,  # an upstream that responds is not down
        checks={State.BLOB_COLD: _check_small_blob},
        reason=reason,
    )


def _check_small_blob(case: UpstreamCaseRun, _: Observation) -> None:
    """A small blob is verified before its first byte is sent."""
    config = case.upstream.images["cold"].config
    response = case.get(case.upstream.blob_path("cold").rpartition("/")[0] + f"/{config}", b"")
    case.check(response.status in (200, 502), f"a small blob: status {response.status}")
    case.check(response.status == 502 or case.is_stored(config), "a small blob was served unverified")


_FETCHED_AGAIN = "the next request fetches the blob again: the registry may work by then"
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


def _two_lengths(request: Request, response: ScriptedResponse) -> ScriptedResponse:
    return response.with_header("Content-Length", "12345")


def _length_and_chunks(request: Request, response: ScriptedResponse) -> ScriptedResponse:
    size = response.stop - response.start
    return faults.chunked()(request, response).with_header("Content-Length", str(size // 2))


def _too_small(request: Request, response: ScriptedResponse) -> ScriptedResponse:
    return attrs.evolve(response, length=(response.stop - response.start) // 2)


def _misfit(name: str, change: Change, seen: str, outcomes: dict[State, tuple[Outcome, ...]]) -> UpstreamVariant:
    return attrs.evolve(_wrong(name, change), verify=direct_client_gets(seen), outcomes=outcomes)


_CHUNKS_WIN = by_state(new(2), new(2), new(2), new(), resumed(0))

# A body that ends before its length looks like a broken connection: 503, which clients retry.
_BROKEN_OFF = error(503, L.bad_content())
_TOO_LARGE = {**_garbage(), State.TAG_COLD: (_BROKEN_OFF,), State.MANIFEST: (hit(), _BROKEN_OFF)}

LENGTH = Fault(
    "U11",
    "Wrong lengths",
    (
        _misfit("too small", _too_small, "200 wrong", _garbage()),
        _misfit("too large", faults.wrong_length(1000), "200 fin at .*", _TOO_LARGE),
        _misfit("other than the manifest says", faults.longer(b"x" * 1000), "200 wrong", _garbage()),
        attrs.evolve(
            _misfit("two lengths", _two_lengths, "200 two lengths", _garbage(_NO_BYTE, cut(L.breaks()))),
            inject_early=frozenset(),
            breaks_download=True,
        ),
        attrs.evolve(
            _misfit(
                "length and chunks",
                _length_and_chunks,
                "200 length and chunks",
                _CHUNKS_WIN,
            ),
            hides_progress=True,
            checks={},  # all bytes are right
        ),
    ),
)

# U19


def _page(name: str, page: Change) -> UpstreamVariant:
    return UpstreamVariant(
        name,
        inject=lambda upstream, _: _show_pages(upstream, page),
        verify=direct_client_gets("200 page"),
        outcomes=_garbage(_NO_BYTE),
        breaks_download=True,
        remembers_outage=False,
    )


def _show_pages(upstream: IsolatedUpstream, page: Change) -> None:
    upstream.on("manifest", page)
    upstream.on("blob", page)


PAGES = Fault(
    "U19",
    "A page of a captive portal, or an error page with status 200",
    (
        _page("HTML", faults.html_page()),
        _page("JSON", faults.replaced(200, JSON_PAGE, ("Content-Type", "application/json"))),
    ),
)

FAULTS = (WRONG, LENGTH, PAGES)

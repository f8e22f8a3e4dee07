"""Bodies that break off, and ranges that are wrong when the fetch is resumed: U08, U09, U21."""

from collections.abc import Callable

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import REPO, IsolatedUpstream
from tests.chaos.engine.outcomes import Outcome, cut, error, hit, new, resumed, stale
from tests.chaos.engine.run import Environment
from tests.chaos.engine.variant import MIB, Fault, UpstreamVariant, do_nothing
from tests.chaos.faults.upstream_bodies import by_state, change_bodies, change_next_body
from tests.chaos.faults.upstream_checks import BLOBS, L, direct_client_gets
from tests.support import faults
from tests.support.fake_registry import Change
from tests.support.raw_http import Request, ScriptedResponse

# U08: by toxiproxy, which counts bytes per connection. So each connection has one response.


def _close_after_each_response(upstream: IsolatedUpstream, _: Environment) -> None:
    upstream.fake_registry.on(None, faults.header("Connection", "close"))


def _reset(at: float, *, is_lasting: bool = False) -> Callable[[IsolatedUpstream, State], None]:
    def inject(upstream: IsolatedUpstream, state: State) -> None:
        assert upstream.proxy is not None
        path = f"/v2/{REPO}/manifests/cached"
        if state in BLOBS:
            path = upstream.upstream_path(upstream.blob_path("cold"))
        head, size = upstream.measure_response(path)
        if is_lasting:
            upstream.fake_registry.listener.drop_connections()  # open ones would end by FIN
        upstream.proxy.cut(head + int(at * size), by_reset=True)
        if not is_lasting and state is not State.BLOB_CACHED:
            upstream.restore_proxy_at_second_body("blob" if state in BLOBS else "manifest")

    return inject


def _was_reset(upstream: IsolatedUpstream, state: State) -> None:
    if not upstream.has_recovered:
        direct_client_gets("200 rst at .*")(upstream, state)


def _broken_once() -> dict[State, tuple[Outcome, ...]]:
    """What was lost is fetched again; no client notices."""
    return by_state(new(2), new(2), new(2), resumed(1), resumed(1))


def _resumed_by_offset() -> dict[State, tuple[Outcome, ...]]:
    """Bytes that toxiproxy discarded are not counted, but each further GET must have a Range header."""
    uncounted = attrs.evolve(resumed(1), waste_bytes=None)
    return {**_broken_once(), State.BLOB_COLD: (uncounted,), State.BLOB_DOWNLOAD: (uncounted,)}


def _resetting(at: float) -> UpstreamVariant:
    return UpstreamVariant(
        f"at {at:.0%}".replace("%", " %"),
        inject=_reset(at),
        verify=_was_reset,
        outcomes=_resumed_by_offset(),
        prepare=_close_after_each_response,
        inject_early=frozenset({State.BLOB_DOWNLOAD}),
        inject_at=at,
        moves_tag=True,
    )


def _cut_short(name: str, change: Change, *, hides_progress: bool = False) -> UpstreamVariant:
    return UpstreamVariant(
        name,
        inject=change_next_body(change),
        verify=direct_client_gets("200 fin at .*"),
        outcomes=_broken_once(),
        inject_early=frozenset({State.BLOB_DOWNLOAD}),
        moves_tag=True,
        hides_progress=hides_progress,
    )


RESET = Fault(
    "U08",
    "RST in the middle of a body",
    (
        *(_resetting(at) for at in (0.5, 0.01, 0.99)),
        attrs.evolve(
            _cut_short("at 50 %, when all before it has arrived", faults.cut(0.5, "rst")),
            verify=direct_client_gets("200 rst at .*"),
            is_direct=True,  # a reset by toxiproxy discards what it has not sent yet
        ),
        attrs.evolve(
            _resetting(0.3),
            name="every 30 %",
            inject=_reset(0.3, is_lasting=True),
            prepare=do_nothing,
            layer_bytes=8 * MIB,
            outcomes=by_state(
                stale(L.bad_content()),
                error(503, L.bad_content()),
                error(503, L.bad_content()),
                attrs.evolve(resumed(3, at_most=9), waste_bytes=None),
                attrs.evolve(resumed(3, at_most=9), waste_bytes=None),
            ),
            remembers_outage=False,
        ),
    ),
)

# U09, by the fake registry


def _unended(request: Request, response: ScriptedResponse) -> ScriptedResponse:
    """Send half of the body, in chunks, without the last chunk."""
    return faults.cut(0.5)(request, faults.chunked(ended=False)(request, response))


def _without_length(request: Request, response: ScriptedResponse) -> ScriptedResponse:
    """Send half of the body, without Content-Length."""
    half = (response.stop - response.start) // 2
    return faults.close_delimited()(request, attrs.evolve(response, stop=response.start + half))


TRUNCATED = Fault(
    "U09",
    "A body cut short by FIN",
    (
        _cut_short("with a length", faults.cut(0.5)),
        _cut_short("in chunks", _unended, hides_progress=True),
        attrs.evolve(
            _cut_short("without a length", _without_length, hides_progress=True),
            inject=change_bodies(_without_length),
            # A manifest that is too short for its digest is requested twice. The size of the layer comes from HEAD, so
            # that it is resumed, until attempts bring too little.
            outcomes=by_state(
                stale(L.bad_content()),
                error(502, L.bad_content()),
                error(502, L.bad_content()),
                attrs.evolve(cut(L.bad_content()), gets=(2, 8)),
                attrs.evolve(cut(L.bad_content()), gets=(2, 8)),
            ),
            remembers_outage=False,
        ),
    ),
)

# U21


def _shift_range(request: Request, response: ScriptedResponse) -> ScriptedResponse:
    if response.status != 206:
        return response
    return response.with_header("Content-Range", f"bytes {response.start + 1}-{response.stop}/{response.body.size + 1}")


def _change_blobs(upstream: IsolatedUpstream, change: Change) -> None:
    upstream.on("blob", change)


def _is_range_wrong(upstream: IsolatedUpstream, _: State) -> None:
    size = upstream.layers["cold"].size
    seen = upstream.request_range_directly("cold", 100)
    assert seen != f"206 bytes 100-{size - 1}/{size}", "a direct client gets the range that it requests"


def _ranging(name: str, change: Change, download: Outcome) -> UpstreamVariant:
    return UpstreamVariant(
        name,
        inject=lambda upstream, _: _change_blobs(upstream, change),
        verify=_is_range_wrong,
        outcomes={
            State.MANIFEST: (hit(), new()),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (new(),),
            State.BLOB_DOWNLOAD: (download,),
        },
        breaks_download=True,
    )


RANGES = Fault(
    "U21",
    "Ranges ignored, or wrong",
    (
        _ranging("200 instead of 206", faults.ignoring_range(), attrs.evolve(resumed(1), waste_bytes=2 * MIB)),
        _ranging("wrong Content-Range", _shift_range, cut(L.breaks())),
    ),
)

FAULTS = (RESET, TRUNCATED, RANGES)

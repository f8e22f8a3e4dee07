"""What servers in front of a registry do: interim responses, pages of a firewall, refused scopes: U22 to U24."""

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import REPO, IsolatedUpstream
from tests.chaos.engine.outcomes import UNAFFECTED, cut, either, error, hit, resumed, stale
from tests.chaos.engine.variant import Fault, UpstreamVariant
from tests.chaos.faults.upstream_checks import L, direct_client_gets, expect_match
from tests.support import faults
from tests.support.raw_http import Request, ScriptedResponse

EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </s>; rel=preload\r\n\r\n"
# The final response follows byte by byte: its head takes about half a second.
HEADER_INTERVAL_S = 0.002

# U22


def _interim(head: bytes) -> UpstreamVariant:
    def inject(upstream: IsolatedUpstream, _: State) -> None:
        for kind in ("manifest", "blob"):
            upstream.on(kind, faults.interim(head))
            upstream.on(kind, faults.slow_headers(HEADER_INTERVAL_S))

    status = head.split()[1].decode()
    return UpstreamVariant(
        status if head.count(b"HTTP/1.1") == 1 else f"several {status}",
        inject=inject,
        # The direct client of the tests takes the interim response for the final one.
        verify=direct_client_gets(f"{status} .*"),
        outcomes={**UNAFFECTED, State.BLOB_DOWNLOAD: (resumed(1),)},
        breaks_download=True,
        remembers_outage=False,
    )


INTERIM = Fault(
    "U22",
    "Interim responses (1xx) long before the final one",
    (_interim(EARLY_HINTS), _interim(b"HTTP/1.1 102 Processing\r\n\r\n"), _interim(EARLY_HINTS * 3)),
)

# U23


def _firewall(status: int) -> UpstreamVariant:
    def inject(upstream: IsolatedUpstream, _: State) -> None:
        upstream.on(None, faults.replaced(status, faults.HTML, ("Content-Type", "text/html; charset=utf-8")))

    refused = error(502, L.bad_content(), 503)
    return UpstreamVariant(
        str(status),
        inject=inject,
        verify=direct_client_gets(f"{status} whole"),
        outcomes={
            State.TAG_CACHED: (stale(L.bad_content()),),
            State.TAG_COLD: (refused,),
            State.MANIFEST: (hit(), refused),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (refused,),
            State.BLOB_DOWNLOAD: (either(cut(L.breaks()), resumed(1)),),
        },
        breaks_download=True,
        remembers_outage=False,
    )


FIREWALL = Fault("U23", "A page of a firewall with an error status", (_firewall(403), _firewall(404), _firewall(451)))

# U24


def _refused_scope(status: int) -> UpstreamVariant:
    def refuse(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        is_refused = REPO in request.query.get("scope", "")
        return faults.error_response(status, "NAME_UNKNOWN")(request, response) if is_refused else response

    def inject(upstream: IsolatedUpstream, state: State) -> None:
        assert upstream.tokens is not None
        if state is not State.BLOB_DOWNLOAD:  # its body has been authorized already
            upstream.tokens.revoke_all()
        upstream.on("token", refuse)

    def verify(upstream: IsolatedUpstream, _: State) -> None:
        path = f"/token?scope=repository:{REPO}:pull"
        expect_match(f"{status} whole", upstream, upstream.request_directly(path, proxy=upstream.token_proxy))

    refused = error(404, L.bad_content(), 502)
    return UpstreamVariant(
        str(status),
        prepare=lambda upstream, _: upstream.add_tokens(),
        inject=inject,
        verify=verify,
        outcomes={
            State.TAG_CACHED: (either(attrs.evolve(stale(L.bad_content()), requests=None), refused),),
            State.TAG_COLD: (refused,),
            State.MANIFEST: (hit(), refused),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (refused,),
            State.BLOB_DOWNLOAD: (resumed(0),),
        },
        remembers_outage=False,
    )


REFUSED_SCOPE = Fault(
    "U24", "The token service refuses the scope of one repository", (_refused_scope(404), _refused_scope(400))
)

FAULTS = (INTERIM, FIREWALL, REFUSED_SCOPE)

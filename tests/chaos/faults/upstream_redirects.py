"""Redirects: to a CDN that is down, to presigned URLs that have expired, to forbidden addresses: U15, U16, U20."""

import threading

import attrs

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import REPO, IsolatedUpstream
from tests.chaos.engine.outcomes import Observation, cut, either, error, hit, hit1, new, resumed, stale
from tests.chaos.engine.run import Environment
from tests.chaos.engine.upstream_case import UpstreamCaseRun
from tests.chaos.engine.variant import Fault, UpstreamVariant
from tests.chaos.faults.upstream_checks import L, expect_match
from tests.chaos.faults.upstream_unreachable import create_authority, use_tls
from tests.support import faults
from tests.support.raw_http import Request, ScriptedResponse

# U15


def _lose_cdn(upstream: IsolatedUpstream, _: State) -> None:
    assert upstream.cdn_proxy is not None
    upstream.cdn_proxy.refuse_connections()


def _is_cdn_away(upstream: IsolatedUpstream, _: State) -> None:
    expect_match("refused", upstream, upstream.request_directly("/cdn/any", proxy=upstream.cdn_proxy))


def _check_tag_is_fresh(case: UpstreamCaseRun, _: Observation) -> None:
    response = case.get(case.upstream.manifest_path("cached"), case.upstream.images["cached"].body)
    case.check(response.status == 200 and not response.header("Warning"), "the registry is regarded as down, too")


DEAD_CDN = Fault(
    "U15",
    "A redirect to a CDN that is down",
    (
        UpstreamVariant(
            "refused",
            prepare=lambda upstream, _: upstream.add_cdn(),
            inject=_lose_cdn,
            verify=_is_cdn_away,
            outcomes={
                State.TAG_CACHED: (hit1(),),
                State.TAG_COLD: (new(),),
                State.MANIFEST: (hit(), new()),
                State.BLOB_CACHED: (hit(),),
                # The first redirect and two new ones.
                State.BLOB_COLD: (attrs.evolve(error(503, 2 * L.bad_content()), gets=(1, 3)),),
                State.BLOB_DOWNLOAD: (either(cut(L.breaks()), resumed(1)),),
            },
            checks={State.BLOB_COLD: _check_tag_is_fresh, State.BLOB_DOWNLOAD: _check_tag_is_fresh},
        ),
    ),
)

# U16


def _expire(upstream: IsolatedUpstream, state: State) -> None:
    if state is State.BLOB_DOWNLOAD:
        upstream.fake_registry.expire_presigned()
    elif state is State.BLOB_COLD:
        upstream.on_once("cdn", faults.replaced(403, b"<Error><Code>AccessDenied</Code></Error>"))
    else:
        upstream.on("cdn", faults.replaced(403, b"<Error><Code>AccessDenied</Code></Error>"))


def _has_expired(upstream: IsolatedUpstream, state: State) -> None:
    if state is State.BLOB_DOWNLOAD:
        old = upstream.fake_registry.received("cdn")[0].request.target
        expect_match("403 whole", upstream, upstream.request_directly(old, proxy=upstream.cdn_proxy))
    elif state is State.BLOB_COLD:
        assert upstream.one_time_rules[0].applied == 1, "no URL had expired"
    else:
        fresh = upstream.fake_registry.presign(upstream.layers["cold"].digest, listener="cdn")
        expect_match(
            "403 whole",
            upstream,
            upstream.request_directly("/cdn/" + fresh.partition("/cdn/")[2], proxy=upstream.cdn_proxy),
        )


def _check_urls_are_fresh(case: UpstreamCaseRun, observation: Observation) -> None:
    registry, cdn = observation.requests_of("blob"), observation.requests_of("cdn")
    case.check((len(registry), len(cdn)) == (2, 2), f"{len(registry)} registry GETs, {len(cdn)} CDN GETs")
    case.check(len({each.request.target for each in cdn}) == len(cdn), "a URL was used twice")


EXPIRED = Fault(
    "U16",
    "A presigned URL that has expired",
    (
        UpstreamVariant(
            "403 from the CDN",
            prepare=lambda upstream, _: upstream.add_cdn(),
            inject=_expire,
            verify=_has_expired,
            outcomes={
                State.TAG_CACHED: (hit1(),),
                State.TAG_COLD: (new(),),
                State.MANIFEST: (hit(), new()),
                State.BLOB_CACHED: (hit(),),
                State.BLOB_COLD: (new(2),),
                State.BLOB_DOWNLOAD: (resumed(1),),
            },
            breaks_download=True,
            checks={State.BLOB_COLD: _check_urls_are_fresh, State.BLOB_DOWNLOAD: _check_urls_are_fresh},
        ),
    ),
)

# U20: the upstream is reached through an egress proxy, because a registry on a loopback address may redirect to another
# one. Neither may Dockyard connect to the forbidden address, nor may it request it from the proxy.

REGISTRY = "registry.chaos.test"


def _use_egress_proxy(upstream: IsolatedUpstream, _: Environment) -> None:
    assert upstream.proxy is not None
    upstream.extra_settings.update(registry=f"http://{REGISTRY}", proxy=upstream.proxy.url)
    upstream.fake_registry.listen("forbidden")


def _redirect_to(upstream: IsolatedUpstream, location: str) -> None:
    target = location.format(port=upstream.fake_registry.listeners["forbidden"].port)
    for kind in ("manifest", "blob"):
        upstream.on(kind, faults.redirected(target))


def _is_not_followed(upstream: IsolatedUpstream, state: State) -> None:
    listener = upstream.fake_registry.listeners["forbidden"]
    assert listener.connections == 0, "Dockyard connected to the forbidden address"
    hosts = {
        each.request.target for each in upstream.requests() if not each.request.target.startswith(f"http://{REGISTRY}")
    }
    assert not hosts, f"Dockyard requested {hosts} from the proxy"
    assert upstream.request_directly().startswith("307"), "a direct client is not redirected"


def _forbidden(name: str, location: str) -> UpstreamVariant:
    return UpstreamVariant(
        name,
        prepare=_use_egress_proxy,
        inject=lambda upstream, _: _redirect_to(upstream, location),
        verify=_is_not_followed,
        outcomes={
            State.TAG_CACHED: (stale(L.bad_content()),),
            State.TAG_COLD: (error(502, L.no()),),
            State.MANIFEST: (hit(), error(502, L.no())),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (error(502, L.no()),),
            State.BLOB_DOWNLOAD: (cut(L.breaks()),),
        },
        breaks_download=True,
        remembers_outage=False,
    )


def _use_tls_and_listen(upstream: IsolatedUpstream, environment: Environment) -> None:
    use_tls(upstream, environment)
    upstream.fake_registry.listen("forbidden")


def _is_not_followed_from_tls(upstream: IsolatedUpstream, _: State) -> None:
    assert upstream.fake_registry.listeners["forbidden"].connections == 0, "Dockyard followed the redirect without TLS"
    assert upstream.request_directly().startswith("307"), "a direct client is not redirected"


def _redirect_repeatedly(upstream: IsolatedUpstream, state: State) -> None:
    lock, hops = threading.Lock(), 0

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        nonlocal hops
        with lock:
            hops += 1
        return ScriptedResponse.of(307).with_header("Location", f"/v2/{REPO}/blobs/{hops}")

    for kind in ("manifest", "blob"):
        upstream.on(kind, change)


FORBIDDEN = Fault(
    "U20",
    "A redirect to a forbidden address",
    (
        _forbidden("loopback", "http://127.0.0.1:{port}/x"),
        _forbidden("private network", "http://10.1.2.3:{port}/x"),
        _forbidden("link-local", "http://169.254.169.254/latest/meta-data"),
        _forbidden("IPv6 loopback", "http://[::1]:{port}/x"),
        _forbidden("IPv4 in IPv6", "http://[::ffff:127.0.0.1]:{port}/x"),
        _forbidden("file", "file:///etc/passwd"),
        _forbidden("loop", f"http://{REGISTRY}/v2/{REPO}/blobs/sha256:{'0' * 64}"),
        attrs.evolve(
            _forbidden("from https to http", "http://127.0.0.1:{port}/x"),
            prepare_environment=create_authority,
            prepare=_use_tls_and_listen,
            verify=_is_not_followed_from_tls,
        ),
        attrs.evolve(
            _forbidden("many hops", ""), inject=_redirect_repeatedly, reason="at most ten redirects are followed"
        ),
    ),
)

FAULTS = (DEAD_CDN, EXPIRED, FORBIDDEN)

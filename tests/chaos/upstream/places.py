"""Where a registry sends us: to a CDN that is dead, to addresses that have expired, to places where we do not go."""

import threading

import attrs

from tests.chaos.cells import State
from tests.chaos.lanes import REPO, Lane
from tests.chaos.outcomes import Seen, cut, either, error, hit, hit1, new, resumed, stale
from tests.chaos.stories import Fault, Story, Trouble, World
from tests.chaos.upstream.proofs import L, expect
from tests.chaos.upstream.reaching import speak_tls, with_authority
from tests.support import faults
from tests.support.raw_http import Request, ScriptedResponse

# U15


def _lose_cdn(lane: Lane, _: State) -> None:
    assert lane.cdn_way is not None
    lane.cdn_way.refuse_connections()


def _is_cdn_away(lane: Lane, _: State) -> None:
    expect("refused", lane, lane.look("/cdn/any", way=lane.cdn_way))


def _tag_is_fresh(story: Story, _: Seen) -> None:
    got = story.get(story.lane.manifest_path("cached"), story.lane.images["cached"].body)
    story.record.check(got.status == 200 and not got.header("Warning"), "the registry is taken for down as well")


DEAD_CDN = Fault(
    "U15",
    "A redirect to a CDN that is dead",
    (
        Trouble(
            "refused",
            prepare=lambda lane, _: lane.add_cdn(),
            strike=_lose_cdn,
            prove=_is_cdn_away,
            outcomes={
                State.TAG_CACHED: (hit1(),),
                State.TAG_COLD: (new(),),
                State.MANIFEST: (hit(), new()),
                State.BLOB_CACHED: (hit(),),
                # The first redirect and two fresh ones.
                State.BLOB_COLD: (attrs.evolve(error(503, 2 * L.bad_content()), gets=(1, 3)),),
                State.BLOB_DOWNLOAD: (either(cut(L.breaks()), resumed(1)),),
            },
            more={State.BLOB_COLD: _tag_is_fresh, State.BLOB_DOWNLOAD: _tag_is_fresh},
        ),
    ),
)

# U16


def _expire(lane: Lane, state: State) -> None:
    if state is State.BLOB_DOWNLOAD:
        lane.fake_registry.expire_presigned()
    elif state is State.BLOB_COLD:
        lane.on_once("cdn", faults.replaced(403, b"<Error><Code>AccessDenied</Code></Error>"))
    else:
        lane.on("cdn", faults.replaced(403, b"<Error><Code>AccessDenied</Code></Error>"))


def _has_expired(lane: Lane, state: State) -> None:
    if state is State.BLOB_DOWNLOAD:
        old = lane.fake_registry.received("cdn")[0].request.target
        expect("403 whole", lane, lane.look(old, way=lane.cdn_way))
    elif state is State.BLOB_COLD:
        assert lane.once[0].applied == 1, "no address had expired"
    else:
        fresh = lane.fake_registry.presign(lane.layers["cold"].digest, listener="cdn")
        expect("403 whole", lane, lane.look("/cdn/" + fresh.partition("/cdn/")[2], way=lane.cdn_way))


def _asks_for_a_fresh_one(story: Story, seen: Seen) -> None:
    registry, cdn = seen.asked("blob"), seen.asked("cdn")
    story.record.check((len(registry), len(cdn)) == (2, 2), f"{len(registry)} registry GETs, {len(cdn)} CDN GETs")
    story.record.check(len({each.request.target for each in cdn}) == len(cdn), "an address was used twice")


EXPIRED = Fault(
    "U16",
    "A presigned address that has expired",
    (
        Trouble(
            "403 from the CDN",
            prepare=lambda lane, _: lane.add_cdn(),
            strike=_expire,
            prove=_has_expired,
            outcomes={
                State.TAG_CACHED: (hit1(),),
                State.TAG_COLD: (new(),),
                State.MANIFEST: (hit(), new()),
                State.BLOB_CACHED: (hit(),),
                State.BLOB_COLD: (new(2),),
                State.BLOB_DOWNLOAD: (resumed(1),),
            },
            breaks=True,
            more={State.BLOB_COLD: _asks_for_a_fresh_one, State.BLOB_DOWNLOAD: _asks_for_a_fresh_one},
        ),
    ),
)

# U20: the lane's upstream is reached through an egress proxy, so that it lies outside; a registry on a loopback address
# might lead to another one. Nobody may be connected to at the forbidden place, nor the proxy be asked for it.

REGISTRY = "registry.chaos.test"


def _reach_by_proxy(lane: Lane, _: World) -> None:
    assert lane.way is not None
    lane.upstream.update(registry=f"http://{REGISTRY}", proxy=lane.way.url)
    lane.fake_registry.listen("forbidden")


def _lead_to(lane: Lane, location: str) -> None:
    target = location.format(port=lane.fake_registry.listeners["forbidden"].port)
    for kind in ("manifest", "blob"):
        lane.on(kind, faults.redirected(target))


def _leads_nowhere(lane: Lane, state: State) -> None:
    listener = lane.fake_registry.listeners["forbidden"]
    assert listener.connections == 0, "somebody connected to the forbidden place"
    hosts = {each.request.target for each in lane.seen() if not each.request.target.startswith(f"http://{REGISTRY}")}
    assert not hosts, f"the proxy was asked for {hosts}"
    assert lane.look().startswith("307"), "a plain client is not redirected"


def _forbidden(name: str, location: str) -> Trouble:
    return Trouble(
        name,
        prepare=_reach_by_proxy,
        strike=lambda lane, _: _lead_to(lane, location),
        prove=_leads_nowhere,
        outcomes={
            State.TAG_CACHED: (stale(L.bad_content()),),
            State.TAG_COLD: (error(502, L.no()),),
            State.MANIFEST: (hit(), error(502, L.no())),
            State.BLOB_CACHED: (hit(),),
            State.BLOB_COLD: (error(502, L.no()),),
            State.BLOB_DOWNLOAD: (cut(L.breaks()),),
        },
        breaks=True,
        stays_stale=False,
    )


def _downgraded(lane: Lane, world: World) -> None:
    speak_tls(lane, world)
    lane.fake_registry.listen("forbidden")


def _leads_nowhere_by_tls(lane: Lane, _: State) -> None:
    assert lane.fake_registry.listeners["forbidden"].connections == 0, "somebody went on without TLS"
    assert lane.look().startswith("307"), "a plain client is not redirected"


def _lead_on(lane: Lane, state: State) -> None:
    lock, hops = threading.Lock(), 0

    def change(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        nonlocal hops
        with lock:
            hops += 1
        return ScriptedResponse.of(307).with_header("Location", f"/v2/{REPO}/blobs/{hops}")

    for kind in ("manifest", "blob"):
        lane.on(kind, change)


FORBIDDEN = Fault(
    "U20",
    "A redirect to a forbidden place",
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
            world=with_authority,
            prepare=_downgraded,
            prove=_leads_nowhere_by_tls,
        ),
        attrs.evolve(_forbidden("many hops", ""), strike=_lead_on, reason="ten redirects are followed, and no more"),
    ),
)

PLACES = (DEAD_CDN, EXPIRED, FORBIDDEN)

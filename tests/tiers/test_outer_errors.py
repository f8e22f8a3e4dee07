"""What the inner Dockyard makes of errors, long lists and unverified ranges of the outer one, with a fake registry."""

import threading
from collections.abc import Iterator
from random import Random

import attrs
import pytest

from tests.support import faults
from tests.support.bodies import Bytes, digest_of
from tests.support.deployment import eventually, parse_cache_status, set_at_exit
from tests.support.fake_lists import count, offer_tags, tags_path
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import Response
from tests.support.raw_http import Request, ScriptedResponse
from tests.tiers.tier import HUB, Tier, behind, serving

MIB = 2**20
SIZE = 24 * MIB
LAZY = "lazy.example"


@attrs.frozen
class Pair:
    """The two servers, and the fake registry behind the outer one."""

    registry: FakeRegistry
    outer: Tier
    inner: Tier

    def pull(self, path: str, prefix: str = HUB, **headers: str) -> Response:
        """Send a request to the inner one."""
        return self.inner.send(f"/v2/{prefix}/{path}", **headers)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both have docker.io, and lazy.example with `lazy`. The inner one waits longer than the outer one."""
    directory = tmp_path_factory.mktemp("errors")
    with FakeRegistry() as registry:
        lazy = {"prefix": LAZY, "registry": registry.url, "auth": {"type": "anonymous"}, "lazy": True}
        hub = {"prefix": HUB, "registry": registry.url, "auth": {"type": "anonymous"}}
        outer = Tier(directory / "outer", hub, lazy, upstream={"check_timeout": "1s"})
        inner = Tier(
            directory / "inner", behind(outer), behind(outer, LAZY, lazy=True), upstream={"check_timeout": "3s"}
        )
        with serving(outer, inner):
            yield Pair(registry, outer, inner)


def test_a_rate_limit_concerns_what_the_outer_one_does_not_have(pair: Pair) -> None:
    """429 with Retry-After comes through; what the outer one has cached is pulled all the same."""
    cached = pair.registry.add_image("org/app", "cached", [b"a cached layer"])
    assert pair.outer.send(f"/v2/{HUB}/org/app/manifests/cached").status == 200
    assert pair.outer.send(f"/v2/{HUB}/org/app/blobs/{cached.layers[0]}").status == 200
    rule = pair.registry.on("manifest", faults.error_response(429, "TOOMANYREQUESTS", "2"))
    limited = pair.pull("org/app/manifests/other")
    assert (limited.status, limited.error) == (429, "TOOMANYREQUESTS")
    assert int(limited.header("Retry-After") or 0) in (1, 2)
    assert pair.outer.breakers() == 1
    assert pair.inner.breakers() == 0
    stale = pair.pull("org/app/manifests/cached")
    assert digest_of(stale.body) == cached.digest
    assert parse_cache_status(stale)["detail"] == "stale-if-error"
    assert pair.pull(f"org/app/blobs/{cached.layers[0]}").status == 200
    pair.registry.remove_rules(rule)
    pair.registry.add_image("org/app", "other", [b"another layer"])
    eventually(lambda: pair.pull("org/app/manifests/other").status == 200, "the end of the rate limit")


def test_a_registry_that_hangs(pair: Pair) -> None:
    """The outer one gives up first and serves its copy as stale; the inner one passes on that it is stale."""
    image = pair.registry.add_image("org/hangs", "v1", [b"a layer"])
    assert pair.pull("org/hangs/manifests/v1").status == 200
    with set_at_exit(threading.Event()) as go_on:
        rule = pair.registry.on("manifest", faults.silent(go_on), repo="org/hangs")
        stale = pair.pull("org/hangs/manifests/v1")
        assert (stale.status, digest_of(stale.body)) == (200, image.digest)
        assert any("docker.io serves it as stale" in line for line in _lines(pair.inner, "hangs"))
        assert pair.inner.breakers() == 0
    pair.registry.remove_rules(rule)
    fresh = eventually(lambda: _if_fresh(pair.pull("org/hangs/manifests/v1")), "a fresh tag")
    assert fresh.header("Warning") is None


def _lines(server: Tier, name: str) -> list[str]:
    found: list[str] = eventually(lambda: [line for line in server.requests(name) if "reason=" in line], "the line")
    return found


def _if_fresh(response: Response) -> Response | None:
    return response if parse_cache_status(response).get("detail") == "head-match" else None


def test_ages_add_up(pair: Pair) -> None:
    """How long ago the registry was asked is known through both, and so is that a Dockyard behind them is stale."""
    image = pair.registry.add_image("org/old", "v1", [b"a layer"])
    rule = pair.registry.on("manifest", faults.header("Age", "40"), repo="org/old")
    for response in (pair.pull("org/old/manifests/v1"), pair.pull("org/old/manifests/v1")):
        assert (response.status, digest_of(response.body)) == (200, image.digest)
        assert 40 <= int(response.header("Age") or 0) < 60
        assert response.header("Warning") is None
    stale = faults.header("Cache-Status", "Dockyard; hit; ttl=-40; detail=breaker")
    rules = [rule, pair.registry.on("manifest", stale, repo="org/old")]
    for server in (pair.outer, pair.inner):
        response = server.send(f"/v2/{HUB}/org/old/manifests/v1")
        assert 40 <= int(response.header("Age") or 0) < 60
        assert response.header("Warning")
        assert parse_cache_status(response)["detail"] == "stale-if-error"
    pair.registry.remove_rules(*rules)
    assert int(pair.pull("org/old/manifests/v1").header("Age") or -1) == 0


def test_a_long_list(pair: Pair) -> None:
    """All pages of the registry are one list at both, each page read once; clients get their own pages."""
    tags = [f"v{number:05}" for number in range(2500)]
    offer_tags(pair.registry, "org/many", tags, page_size=700)
    listed = pair.pull("org/many/tags/list")
    assert listed.json["tags"] == tags
    assert count(pair.registry, tags_path("org/many")) == 4
    part = pair.pull("org/many/tags/list?n=10&last=v00100")
    assert part.json["tags"] == tags[101:111]
    assert "last=v00110" in (part.header("Link") or "")


@pytest.fixture
def layer(pair: Pair, request: pytest.FixtureRequest) -> Iterator[tuple[str, Bytes, threading.Event]]:
    """A layer of a repository. What begins before its last 4 MiB is held back until the event."""
    name = request.node.name.replace("test_", "")
    content = Bytes(Random(name).randbytes(SIZE))
    pair.registry.add_image(name, "v1", [content.data])
    assert pair.pull(f"{name}/manifests/v1", LAZY).status == 200
    with set_at_exit(threading.Event()) as go_on:
        held = faults.stalled(MIB, go_on)

        def hold(request: Request, response: ScriptedResponse) -> ScriptedResponse:
            return held(request, response) if response.start < SIZE - 4 * MIB else response

        rule = pair.registry.on("blob", hold, reference=content.digest, method="GET")
        yield name, content, go_on
    pair.registry.remove_rules(rule)


def test_ranges_ahead_come_through(pair: Pair, layer: tuple[str, Bytes, threading.Event]) -> None:
    """With `lazy` in both tiers, the end of a cold layer comes at once; both say that it is not verified."""
    name, content, go_on = layer
    path, wanted = f"{name}/blobs/{content.digest}", f"bytes={SIZE - 1000}-{SIZE - 1}"
    for response in (pair.pull(path, LAZY, Range=wanted), pair.outer.send(f"/v2/{LAZY}/{path}", Range=wanted)):
        assert (response.status, response.body) == (206, content.data[-1000:])
        assert "unverified-range" in (response.header("Cache-Status") or "")
        assert response.header("Cache-Control") == "no-store"
    go_on.set()
    whole = eventually(lambda: _if_whole(pair.pull(path, LAZY)), "the whole layer")
    assert digest_of(whole.body) == content.digest


def test_a_wrong_piece_of_the_outer_one_is_not_kept(pair: Pair, layer: tuple[str, Bytes, threading.Event]) -> None:
    """Neither tier keeps a layer of which it has a wrong piece; both get the right one later."""
    name, content, go_on = layer
    path = f"{name}/blobs/{content.digest}"
    rule = pair.registry.on("blob", faults.flipped(SIZE - 500), reference=content.digest)
    wrong = pair.pull(path, LAZY, Range=f"bytes={SIZE - 1000}-{SIZE - 1}")
    assert wrong.status == 206
    assert wrong.body != content.data[-1000:]
    pair.registry.remove_rules(rule)
    go_on.set()
    for server in (pair.outer, pair.inner):
        eventually(lambda server=server: server.metric("dockyard_wrong_ranges_total") >= 1, "the wrong digest is found")
    for server in (pair.inner, pair.outer):
        right = eventually(lambda server=server: _if_whole(server.send(f"/v2/{LAZY}/{path}")), "the right layer")
        assert digest_of(right.body) == content.digest


def _if_whole(response: Response) -> Response | None:
    return response if response.status == 200 and response.is_complete else None

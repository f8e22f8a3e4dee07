"""Lists from a registry: all pages, by the registry's Links, within limits."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dockyard.errors import BadUpstream, Denied, NameUnknown, TooManyRequests, Unavailable, UpstreamTimeout
from dockyard.oci.origin import Origin as Address
from dockyard.oci.reference import Digest, Tag
from dockyard.upstream import lists as listings
from dockyard.upstream.lists import _is_same_host
from tests.support import faults
from tests.support.fake_lists import (
    at,
    count,
    descriptor,
    index,
    offer_referrers,
    offer_tags,
    referrers_path,
    refuse,
    tags_path,
)
from tests.support.fake_registry import OCI_INDEX
from tests.support.raw_http import Request, ScriptedResponse
from tests.support.upstreams import BASIC, Ward

SUBJECT = Digest.of(b"a subject")
TAGS = [f"v{number}" for number in range(25)]
REFERRERS = [descriptor(f"sha256:{digit * 64}") for digit in "123"]


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """A fake registry and makers of its clients."""
    with Ward(tmp_path) as ward:
        yield ward


@pytest.mark.parametrize("page_size", [1, 10, 25, 26])
def test_all_pages_are_read(ward: Ward, page_size: int) -> None:
    """By the registry's Links; the result is sorted."""
    offer_tags(ward.fake_registry, "app", TAGS, page_size=page_size)
    assert ward.registry().list_tags("app") == sorted(TAGS)
    assert count(ward.fake_registry, tags_path("app")) == -(-25 // page_size)


@pytest.mark.parametrize("style", ["absolute", "path", "query", "https"])
def test_links_are_followed_in_each_form(ward: Ward, style: str) -> None:
    """Absolute, relative, and with the scheme of a proxy in front of the registry instead of the requested one."""

    def link(url: str) -> str:
        path = url.removeprefix(ward.fake_registry.url)
        spelt = {"absolute": url, "path": path, "query": f"?{path.partition('?')[2]}"}
        spelt["https"] = url.replace("http:", "https:")
        return f'<{spelt[style]}>; rel="next"'

    offer_tags(ward.fake_registry, "app", TAGS, page_size=10, link=link)
    assert ward.registry().list_tags("app") == sorted(TAGS)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (("https", "r.test", 443), ("http", "r.test", 80), True),
        (("http", "r.test", 5000), ("https", "r.test", 5000), True),
        (("http", "r.test", 5000), ("http", "r.test", 80), False),
        (("https", "r.test", 443), ("https", "s.test", 443), False),
        (("https", "r.test", 443), ("http", "r.test", 8080), False),
    ],
)
def test_which_hosts_are_the_same(one: tuple[str, str, int], other: tuple[str, str, int], *, is_same: bool) -> None:
    """A registry behind a proxy may send the wrong scheme; host and port have to match."""
    assert _is_same_host(Address(*one), Address(*other)) is is_same


def test_a_registry_that_redirects_is_followed_page_by_page(ward: Ward) -> None:
    """As for registry.k8s.io, the pages come from another host, which gets no credentials."""
    elsewhere = ward.fake_registry.listen("elsewhere", "127.0.0.1")

    def page(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        if request.listener == "registry":
            return ScriptedResponse.of(307).with_header("Location", f"{elsewhere.url}{request.target}")
        if "last" in request.query:
            return ScriptedResponse.of(200, b'{"tags": ["v2"]}')
        return ScriptedResponse.of(200, b'{"tags": ["v1"]}').with_header(
            "Link", f'<{request.path}?last=v1>; rel="next"'
        )

    ward.fake_registry.on(None, page, when=at(tags_path("app")))
    registry = ward.registry(auth=BASIC, trusted_hosts=(elsewhere.authority,))
    assert registry.list_tags("app") == ["v1", "v2"]
    there = ward.fake_registry.received(listener="elsewhere")
    assert [exchange.request.query.get("last") for exchange in there] == [None, "v1"]
    assert all(exchange.request.header("Authorization") is None for exchange in there)


def test_a_loop_of_pages_is_a_bad_response(ward: Ward) -> None:
    """It is detected at the first repeated page, not at the limit."""
    offer_tags(ward.fake_registry, "app", TAGS, page_size=10, link=lambda _: f'<{tags_path("app")}?n=10>; rel="next"')
    with pytest.raises(BadUpstream, match="lead back"):
        ward.registry().list_tags("app")
    assert count(ward.fake_registry, tags_path("app")) == 2


def test_an_endless_list_is_a_bad_response(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of pages is limited."""
    monkeypatch.setattr(listings, "MAX_PAGES", 20)

    def page(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        number = int(request.query.get("last", "0"))
        response = ScriptedResponse.of(200, b'{"tags": ["v%d"]}' % number)
        return response.with_header("Link", f'<{request.path}?last={number + 1}>; rel="next"')

    ward.fake_registry.on(None, page, when=at(tags_path("app")))
    with pytest.raises(BadUpstream, match="pages"):
        ward.registry().list_tags("app")
    assert count(ward.fake_registry, tags_path("app")) == 20


@pytest.mark.parametrize(("cap", "value"), [("MAX_BYTES", 150), ("MAX_ENTRIES", 20)])
def test_a_list_is_limited_in_size(ward: Ward, monkeypatch: pytest.MonkeyPatch, cap: str, value: int) -> None:
    """In bytes and in entries, over all pages."""
    monkeypatch.setattr(listings, cap, value)
    offer_tags(ward.fake_registry, "app", TAGS, page_size=10)
    with pytest.raises(BadUpstream, match="more than"):
        ward.registry().list_tags("app")


def test_an_endless_page_is_read_up_to_the_limit(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """One body without an end is BadUpstream."""
    monkeypatch.setattr(listings, "MAX_BYTES", 100_000)
    offer_tags(ward.fake_registry, "app", TAGS)
    ward.fake_registry.on(None, faults.endless(), when=at(tags_path("app")))
    with pytest.raises(BadUpstream, match="more than"):
        ward.registry().list_tags("app")


def test_a_list_that_exceeds_its_time_limit_is_no_outage(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """The breaker stays closed, and manifests are requested as before."""
    monkeypatch.setattr(listings, "WALK_TIMEOUT_S", 0.5)
    offer_tags(ward.fake_registry, "app", TAGS, page_size=10)
    ward.fake_registry.on(None, faults.silent(), when=lambda request: "last" in request.query)
    image = ward.fake_registry.add_image("app", "v1")
    registry = ward.registry()
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        registry.list_tags("app")
    assert time.monotonic() - began < 1.5
    assert str(registry.head_manifest("app", Tag("v1")).digest) == image.digest


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_page_is_a_bad_response(ward: Ward, status: int) -> None:
    """Neither a partial list nor "repository not found"."""
    offer_tags(ward.fake_registry, "app", TAGS, page_size=10)
    ward.fake_registry.on(None, faults.error_response(status), when=lambda request: "last" in request.query)
    with pytest.raises(BadUpstream, match="all pages"):
        ward.registry().list_tags("app")


def test_an_encoded_page_is_a_bad_response(ward: Ward) -> None:
    """Requests accept only the identity encoding."""
    rule = faults.replaced(200, b"\x1f\x8b", ("Content-Encoding", "gzip"))
    ward.fake_registry.on(None, rule, when=at(tags_path("app")))
    with pytest.raises(BadUpstream):
        ward.registry().list_tags("app")


@pytest.mark.parametrize(
    ("status", "error"),
    [(404, NameUnknown), (401, NameUnknown), (403, NameUnknown), (429, TooManyRequests), (500, Unavailable)],
)
def test_each_status_of_a_tag_list_has_its_error(ward: Ward, status: int, error: type[Exception]) -> None:
    """As for manifests: without credentials, 401 and 403 are "not found"."""
    refuse(ward.fake_registry, tags_path("app"), status)
    with pytest.raises(error):
        ward.registry().list_tags("app")


def test_a_rejected_login_is_denied(ward: Ward) -> None:
    """With credentials, 403 is Denied."""
    refuse(ward.fake_registry, tags_path("app"), 403)
    refuse(ward.fake_registry, referrers_path("app", str(SUBJECT)), 403)
    registry = ward.registry(auth=BASIC)
    with pytest.raises(Denied):
        registry.list_tags("app")
    with pytest.raises(Denied):
        registry.list_referrers("app", SUBJECT)


def test_one_token_is_enough_for_all_pages(ward: Ward) -> None:
    """Its scope is the repository."""
    challenge = f'Bearer realm="{ward.fake_registry.url}/token",service="r",scope="repository:app:pull"'

    def guard(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        return answer if request.header("Authorization") else faults.challenged(challenge)(request, answer)

    offer_tags(ward.fake_registry, "app", TAGS, page_size=5)
    ward.fake_registry.on(None, guard, when=at(tags_path("app")))
    assert ward.registry().list_tags("app") == sorted(TAGS)
    (token,) = ward.fake_registry.received("token")
    assert token.request.query["scope"] == "repository:app:pull"


def test_an_open_breaker_rejects_requests_for_lists(ward: Ward) -> None:
    """The second request fails with the stored error."""
    registry = ward.registry()
    ward.fake_registry.listener.close()
    with pytest.raises(Unavailable) as first:
        registry.list_tags("app")
    with pytest.raises(Unavailable) as second:
        registry.list_referrers("app", SUBJECT)
    assert (first.value.remembered, second.value.remembered) == (False, True)


@pytest.mark.parametrize("page_size", [1, 2, 3])
def test_referrers_are_merged_from_all_pages(ward: Ward, page_size: int) -> None:
    """In the order of the registry."""
    offer_referrers(ward.fake_registry, "app", str(SUBJECT), REFERRERS, page_size=page_size)
    assert ward.registry().list_referrers("app", SUBJECT) == REFERRERS


def test_the_fallback_tag_is_verified(ward: Ward) -> None:
    """An index that does not match the announced digest is BadUpstream."""
    tag = str(SUBJECT).replace(":", "-")
    ward.fake_registry.add_manifest("app", tag, index(REFERRERS), OCI_INDEX)
    ward.fake_registry.on("manifest", faults.with_body(index([])), times=1)
    registry = ward.registry()
    with pytest.raises(BadUpstream):
        registry.list_referrers("app", SUBJECT)
    assert registry.list_referrers("app", SUBJECT) == REFERRERS


def test_a_missing_page_of_referrers_is_a_bad_response(ward: Ward) -> None:
    """The fallback tag is requested only if the first page is missing."""
    offer_referrers(ward.fake_registry, "app", str(SUBJECT), REFERRERS, page_size=1)
    ward.fake_registry.on(None, faults.error_response(404), when=lambda request: "next" in request.query)
    with pytest.raises(BadUpstream):
        ward.registry().list_referrers("app", SUBJECT)
    assert ward.fake_registry.count("manifest") == 0

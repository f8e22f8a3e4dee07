"""Lists from a registry: all pages, by the registry's Links, within limits."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from dockyard.errors import BadUpstream, Denied, NameUnknown, TooManyRequests, Unavailable, UpstreamTimeout
from dockyard.oci.reference import Digest, Tag
from dockyard.upstream import lists as listings
from tests.support import faults
from tests.support.busy_machine import is_within
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
from tests.support.fake_registry import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, Change
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


@pytest.mark.parametrize(
    "form",
    [
        "<{url}?{query}>",
        "<{path}?{query}>",
        "<?{query}>",
        "<list?{query}>",
        "<https://127.0.0.1{path}?{query}>",
        "<http://registry:8081/repository/docker{path}?{query}>",
        "</repository/docker{path}?{query}>",
        "</v2/app/tags/list?{query}>",
    ],
)
def test_links_are_followed_in_each_form(ward: Ward, form: str) -> None:
    """The next page is requested with the query of the Link, and always at the URL of the list.

    Behind a proxy, registries do not know their scheme, host and path. Another repository is at some of these paths.
    """

    def link(url: str) -> str:
        path, _, query = url.removeprefix(ward.fake_registry.url).partition("?")
        return f'{form.format(url=ward.fake_registry.url + path, path=path, query=query)}; rel="next"'

    offer_tags(ward.fake_registry, "docker/app", TAGS, page_size=10, link=link)
    offer_tags(ward.fake_registry, "app", ["not-ours"])
    assert ward.registry().list_tags("docker/app") == sorted(TAGS)
    assert {exchange.request.path for exchange in ward.fake_registry.received()} == {tags_path("docker/app")}


@pytest.mark.parametrize(
    "cursor", ["last=YWJj%3d%3D&n=10", "next_page=gAAA-_%2B/==", "a=1&last=%7Bx%7D&a=2", "last=a+b"]
)
def test_a_cursor_is_sent_as_it_was_received(ward: Ward, cursor: str) -> None:
    """Byte for byte: it may be signed or encrypted."""

    def page(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        if request.target.endswith(f"?{cursor}"):
            return ScriptedResponse.of(200, b'{"tags": ["v2"]}')
        return ScriptedResponse.of(200, b'{"tags": ["v1"]}').with_header(
            "Link", f"</v2/x/app/tags/list?{cursor}>; rel=next"
        )

    ward.fake_registry.on(None, page, when=at(tags_path("app")))
    assert ward.registry().list_tags("app") == ["v1", "v2"]


# How a registry may write the path and host of a Link; REPO is the name of the repository without its first part.
LINK_PATHS = [
    *("", "list", "/v2/front/REPO/tags/list", "http://localhost:5000/v2/front/REPO/tags/list"),
    *("/v2/REPO/tags/list", "/repository/x/v2/front/REPO/tags/list", "https://cdn.test/api/docker/x/v2/REPO/tags/list"),
    *("/v2/other/tags/list", "/v2/front/other/tags/list", "/v2/", "https://other.test/"),
]


@pytest.mark.parametrize("seed", range(60))
def test_a_list_is_complete_or_an_error(ward: Ward, seed: int) -> None:
    """Whatever the Links of a registry are like: all tags of the repository, none of another one, or BadUpstream.

    Other repositories are at all other paths. A registry may ignore what it is asked for, and repeat a page.
    """
    random = Random(seed)
    repo = random.choice(["app", "team/app", "app/v2/x", "tags/list"])
    tags = random.sample([f"{letter}{n}" for letter in "aB_" for n in range(20)], random.randint(1, 60))
    page_size, path = random.choice([1, 7, 25, 60]), random.choice(LINK_PATHS)
    cursor = random.choice(["last", "opaque last", "page", "none"])
    ignores_cursor = random.random() < 0.1
    if cursor == "last":
        tags.sort()

    def page(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        if request.path != tags_path(f"front/{repo}"):
            return ScriptedResponse.of(200, b'{"tags": ["a0", "not-ours"]}')
        start = 0
        if not ignores_cursor and request.query.get("last"):
            last = request.query["last"]
            start = tags.index(last) + 1 if cursor == "last" else int(last.removeprefix("=").removesuffix("="))
        elif not ignores_cursor and request.query.get("page"):
            start = int(request.query["page"])
        end = start + page_size
        response = ScriptedResponse.of(200, json.dumps({"tags": tags[start:end]}).encode())
        if end >= len(tags):
            return response
        query = {"last": f"?n=9&last={tags[end - 1]}", "opaque last": f"?last=%3d{end}=", "page": f"?page={end}"}
        link = path.replace("REPO", repo) + query.get(cursor, "")
        return response.with_header("Link", f'<{link}>; rel="next"')

    ward.fake_registry.on(None, page)
    is_one_page = page_size >= len(tags)
    is_same = "REPO" in path or path in {"", "list"}
    is_readable = is_one_page or (not ignores_cursor and cursor != "none" and (is_same or cursor == "last"))
    try:
        found = ward.registry().list_tags(f"front/{repo}")
    except BadUpstream:
        assert not is_readable
    else:
        assert found == sorted(tags)
        assert is_readable


@pytest.mark.parametrize(
    "link",
    ["/v2/other/tags/list?last=w9&n=10", "/v2/_catalog?n=10", "/v2/other/tags/list", "https://elsewhere.test/?page=2"],
)
def test_a_link_to_another_list_is_a_bad_response(ward: Ward, link: str) -> None:
    """Its query says nothing about this list, so no page is requested with it."""
    offer_tags(ward.fake_registry, "app", TAGS, page_size=10, link=lambda _: f"<{link}>; rel=next")
    offer_tags(ward.fake_registry, "other", ["not-ours"])
    with pytest.raises(BadUpstream, match="not a page of this list"):
        ward.registry().list_tags("app")
    assert ward.fake_registry.count() == 1


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


@pytest.mark.parametrize("link", ["<>", f"<{tags_path('app')}>", f"<{tags_path('app')}?n=1000>", "<?n=1000>"])
def test_a_link_without_a_cursor_is_a_bad_response(ward: Ward, link: str) -> None:
    """It leads back to the first page: the list is neither complete nor empty."""
    offer_tags(ward.fake_registry, "app", TAGS, page_size=10, link=lambda _: f"{link}; rel=next")
    with pytest.raises(BadUpstream, match="lead back"):
        ward.registry().list_tags("app")
    assert count(ward.fake_registry, tags_path("app")) <= 2


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
    assert is_within(time.monotonic() - began, 0.5)
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


HTML_TYPE = ("Content-Type", "text/html")
NO_API = {
    **{str(status): faults.error_response(status) for status in (400, 404, 405, 406, 410, 415, 422, 501, 505)},
    "a web page": faults.html_page(),
    **{f"{status} with a web page": faults.replaced(status, faults.HTML, HTML_TYPE) for status in (401, 403, 404, 451)},
    "a web page with other letters": faults.replaced(200, faults.HTML, ("Content-Type", "Text/HTML; charset=utf-8")),
    "an endless web page": lambda request, response: faults.endless(b"<br>")(
        request, response.with_header("Content-Type", "text/html")
    ),
    "an encoded web page": faults.replaced(
        200, b"\x1f\x8b", ("Content-Type", "text/html"), ("Content-Encoding", "gzip")
    ),
    "no content type": faults.replaced(200, faults.HTML),
    "text": faults.replaced(200, b"404 page not found", ("Content-Type", "text/plain")),
    "nothing": faults.replaced(200),
    "204": faults.replaced(204),
    "an error in JSON": faults.replaced(200, b'{"errors": []}', ("Content-Type", "application/json")),
    "cut JSON": faults.replaced(200, b'{"manifests": [', ("Content-Type", "application/json")),
    "a list": faults.replaced(200, b"[]", ("Content-Type", "application/json")),
    "an image": faults.replaced(
        200, b'{"schemaVersion": 2, "config": {}, "layers": []}', ("Content-Type", OCI_MANIFEST)
    ),
    "a Docker list": faults.replaced(200, b'{"schemaVersion": 2, "manifests": []}', ("Content-Type", DOCKER_LIST)),
}


@pytest.mark.parametrize("has_tag", [True, False])
@pytest.mark.parametrize("name", NO_API)
def test_without_the_referrers_api_the_tag_is_used(ward: Ward, name: str, *, has_tag: bool) -> None:
    """Registries say in many ways that they do not know the API. Without the tag, there are no referrers."""
    ward.fake_registry.on(None, NO_API[name], when=at(referrers_path("app", str(SUBJECT))))
    if has_tag:
        ward.fake_registry.add_manifest("app", str(SUBJECT).replace(":", "-"), index(REFERRERS), OCI_INDEX)
    assert ward.registry().list_referrers("app", SUBJECT) == (REFERRERS if has_tag else [])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_a_web_page_is_no_api(ward: Ward, status: int) -> None:
    """Such as a page to sign in."""
    ward.fake_registry.on(None, faults.redirected("/sign-in", status), when=at(referrers_path("app", str(SUBJECT))))
    ward.fake_registry.on(None, faults.html_page(), when=at("/sign-in"))
    ward.fake_registry.add_manifest("app", str(SUBJECT).replace(":", "-"), index(REFERRERS), OCI_INDEX)
    assert ward.registry().list_referrers("app", SUBJECT) == REFERRERS


@pytest.mark.parametrize(
    ("status", "error"),
    [*((status, Denied) for status in (401, 403, 451)), (429, TooManyRequests), (408, UpstreamTimeout)]
    + [(status, Unavailable) for status in (500, 502, 503, 504)],
)
def test_a_failure_of_the_referrers_api_is_an_error(ward: Ward, status: int, error: type[Exception]) -> None:
    """The tag is not requested: an empty list would say that there are no signatures."""
    refuse(ward.fake_registry, referrers_path("app", str(SUBJECT)), status)
    ward.fake_registry.add_manifest("app", str(SUBJECT).replace(":", "-"), index(REFERRERS), OCI_INDEX)
    with pytest.raises(error):
        ward.registry().list_referrers("app", SUBJECT)
    assert ward.fake_registry.count("manifest") == 0


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[]", faults.HTML, b'{"manifests": {}}'])
def test_a_damaged_index_is_a_bad_response(ward: Ward, body: bytes) -> None:
    """What is sent as an index of referrers and is none."""
    change = faults.replaced(200, body, ("Content-Type", OCI_INDEX))
    ward.fake_registry.on(None, change, when=at(referrers_path("app", str(SUBJECT))))
    with pytest.raises(BadUpstream):
        ward.registry().list_referrers("app", SUBJECT)
    assert ward.fake_registry.count("manifest") == 0


@pytest.mark.parametrize("change", [faults.html_page(), faults.replaced(200, b'{"errors": []}')])
def test_another_page_that_is_no_index_is_a_bad_response(ward: Ward, change: Change) -> None:
    """No partial list is returned, and the tag is not requested."""
    offer_referrers(ward.fake_registry, "app", str(SUBJECT), REFERRERS, page_size=1)
    ward.fake_registry.on(None, change, when=lambda request: "next" in request.query)
    with pytest.raises(BadUpstream):
        ward.registry().list_referrers("app", SUBJECT)
    assert ward.fake_registry.count("manifest") == 0


@pytest.mark.parametrize("where", ["api", "tag"])
@pytest.mark.parametrize("bad", [1, {}, REFERRERS[0] | {"size": "7"}, REFERRERS[0] | {"annotations": {"a": 1}}])
def test_a_malformed_descriptor_is_left_out(ward: Ward, where: str, bad: Any) -> None:
    """The others are the list."""
    entries = [REFERRERS[0], bad, REFERRERS[1]]
    if where == "api":
        offer_referrers(ward.fake_registry, "app", str(SUBJECT), entries, page_size=1)
    else:
        ward.fake_registry.add_manifest("app", str(SUBJECT).replace(":", "-"), index(entries), OCI_INDEX)
    with capture_logs() as logs:
        assert ward.registry().list_referrers("app", SUBJECT) == REFERRERS[:2]
    assert [(entry["event"], entry["count"]) for entry in logs] == [("malformed referrers left out", 1)]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST, None])
def test_the_subject_itself_is_no_index_of_its_referrers(
    ward: Ward, media_type: str | None, *, announced: bool
) -> None:
    """Some registries take the tag `sha256-<hex>` for the digest `sha256:<hex>`: its children do not refer to it."""
    document = {"schemaVersion": 2, "manifests": REFERRERS} | ({"mediaType": media_type} if media_type else {})
    body = json.dumps(document).encode()
    subject = Digest.of(body)
    ward.fake_registry.add_manifest("app", str(subject).replace(":", "-"), body, media_type or OCI_INDEX)
    if not announced:
        ward.fake_registry.on("manifest", faults.without("Docker-Content-Digest"))
    assert ward.registry().list_referrers("app", subject) == []


@pytest.mark.parametrize("status", [400, 404, 405, 410])
def test_a_tag_that_is_not_there_has_no_referrers(ward: Ward, status: int) -> None:
    """Some registries reject the tag as invalid."""
    ward.fake_registry.on("manifest", faults.error_response(status))
    assert ward.registry().list_referrers("app", SUBJECT) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_firewall_in_front_of_everything_is_a_bad_response(ward: Ward, status: int) -> None:
    """Its web page does not say that there are no referrers."""
    ward.fake_registry.on(None, faults.replaced(status, faults.HTML, HTML_TYPE))
    with pytest.raises(BadUpstream):
        ward.registry().list_referrers("app", SUBJECT)
    assert ward.fake_registry.count("manifest") >= 1


@pytest.mark.parametrize("body", [faults.HTML, b"", b'{"errors": []}', b"[]"])
def test_a_tag_that_is_no_manifest_is_a_bad_response(ward: Ward, body: bytes) -> None:
    """If everything is a web page, this is no registry, and nothing is known about the referrers."""
    ward.fake_registry.on(None, faults.replaced(200, body, ("Content-Type", "text/html")))
    with pytest.raises(BadUpstream):
        ward.registry().list_referrers("app", SUBJECT)

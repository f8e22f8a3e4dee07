"""Lists of tags and of referrers: complete, with exact pages, whatever the upstream sends."""

import json
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.deployment import CHECK_TIMEOUT_S, Deployment, eventually, parse_cache_status, set_at_exit, stays
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
from tests.support.fake_registry import OCI_INDEX, OCI_MANIFEST, Change, FakeRegistry
from tests.support.http_client import Response

MANY = sorted(f"{letter}{number}" for letter in ("v", "V", "_", "1.") for number in range(625))
UNSORTED = random.Random(40).sample(MANY, len(MANY))
FEW = ["latest", "v1", "v2"]
SUBJECT = digest_of(b"a subject")
SBOM, SIGNATURE = "application/vnd.sbom", "application/vnd.signature"
REFERRERS = [
    descriptor(digest_of(b"one"), SBOM, annotations={"org.example.made": "today"}),
    descriptor(digest_of(b"two", "sha512"), SIGNATURE),
    descriptor(digest_of(b"three"), SBOM),
    descriptor(digest_of(b"four"), platform={"os": "linux", "architecture": "amd64"}),
    descriptor(digest_of(b"five"), "application/vnd.spdx+json"),
]
ROOT = "/v2/up.test/many/tags/list"


def _list(name: str) -> str:
    return f"/v2/{name}/tags/list"


def _tags(response: Response) -> list[str]:
    assert (response.status, response.header("Content-Type")) == (200, "application/json")
    assert response.is_complete
    return list(response.json["tags"])


def _next(response: Response) -> str | None:
    link = response.header("Link")
    if link is None:
        return None
    match = re.fullmatch(r'<(/[^>]*)>; rel="next"', link)
    assert match, link
    return match[1]


@pytest.fixture(scope="module")
def many(deployment: Deployment) -> Deployment:
    """A deployment in front of a registry with 2,500 tags, 100 per page."""
    offer_tags(deployment.fake_registry, "many", UNSORTED, page_size=100)
    return deployment


# Tags


def test_the_whole_list_is_sorted_and_complete(many: Deployment) -> None:
    """25 unordered pages become one sorted list, under the name that the client used."""
    response = many.get(ROOT)
    assert _tags(response) == MANY
    assert response.json["name"] == "up.test/many"
    assert _next(response) is None
    assert response.header("Cache-Control") == "no-cache"


@pytest.mark.parametrize(
    ("query", "tags", "has_more"),
    [
        ({"n": "0"}, [], False),
        ({"n": "1"}, MANY[:1], True),
        ({"n": "100"}, MANY[:100], True),
        ({"n": "2499"}, MANY[:2499], True),
        ({"n": "2500"}, MANY, False),
        ({"n": "10000"}, MANY, False),
        ({"n": "5", "last": MANY[99]}, MANY[100:105], True),
        ({"last": MANY[2489]}, MANY[2490:], False),
        ({"n": "10", "last": MANY[2489]}, MANY[2490:], False),
        ({"n": "5", "last": f"{MANY[99]}-not-there"}, MANY[100:105], True),
        ({"last": MANY[-1]}, [], False),
        ({"n": "3", "last": MANY[-1]}, [], False),
        ({"last": "~"}, [], False),
        ({"last": "."}, MANY, False),
        ({"n": "0", "last": MANY[5]}, [], False),
    ],
)
def test_n_and_last_select_exact_pages(
    many: Deployment, query: dict[str, str], tags: list[str], *, has_more: bool
) -> None:
    """`last` need not exist and is not in the response; a Link is sent when there is more, except for n=0."""
    response = many.get(f"{ROOT}?{urlencode(query)}")
    assert _tags(response) == tags
    assert (_next(response) is not None) == has_more


@pytest.mark.parametrize("n", ["-1", "x", "", "1.5", "+1", "1e3", "%D9%A3", "0x10", "9" * 40, "1&n=2"])
def test_an_invalid_n_is_rejected(many: Deployment, n: str) -> None:
    """It is an error of the client, and no request is sent upstream."""
    before = len(many.fake_registry.exchanges)
    response = many.get(f"{ROOT}?n={n}")
    assert (response.status, response.error) == (400, "UNSUPPORTED")
    assert len(many.fake_registry.exchanges) == before


@pytest.mark.parametrize("n", [1000, 999])
def test_links_lead_through_the_whole_list(many: Deployment, n: int) -> None:
    """Following Link from page to page brings each tag once."""
    path: str | None = f"{ROOT}?n={n}"
    found: list[str] = []
    while path:
        response = many.get(path)
        found += _tags(response)
        path = _next(response)
    assert found == MANY


@pytest.mark.parametrize(
    ("path", "query", "name"),
    [
        (_list("up.test/many"), {}, "up.test/many"),
        (_list("up.test/many"), {"ns": "up.test"}, "up.test/many"),
        ("/up.test/v2/many/tags/list", {"ns": "up.test"}, "many"),
        (_list("many"), {"ns": "up.test"}, "many"),
        (_list("library/many"), {}, "library/many"),
    ],
)
def test_all_shapes_of_url(many: Deployment, path: str, query: dict[str, str], name: str) -> None:
    """Name and Link use the client's path, in each of the five URL shapes."""
    if name == "library/many":
        offer_tags(many.fake_registry, "library/many", UNSORTED, page_size=1000)
    response = many.get(f"{path}?{urlencode(query | {'n': '2'})}")
    assert (_tags(response), response.json["name"]) == (MANY[:2], name)
    assert _next(response) == f"{path}?{urlencode(query | {'n': '2', 'last': MANY[1]})}"
    assert response.header("OCI-Namespace") == query.get("ns")
    assert _tags(many.get(_next(response) or "")) == MANY[2:4]


def test_head_is_get_without_a_body(many: Deployment) -> None:
    """The same headers as for GET, Content-Length included."""
    get, head = many.get(f"{ROOT}?n=3"), many.head(f"{ROOT}?n=3")
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "Content-Type", "Link", "Cache-Control"):
        assert head.header(name) == get.header(name)


@pytest.mark.parametrize(("tags", "expected"), [(FEW[::-1], FEW), ([], []), (None, []), ([*FEW, *FEW], FEW)])
def test_one_page(deployment: Deployment, tags: list[str] | None, expected: list[str]) -> None:
    """It is sorted too, without duplicates; an empty list is a list, also when written as `null`."""
    repo = f"one-page-{len(tags or [])}-{tags is None}".lower()
    offer_tags(deployment.fake_registry, repo, tags)
    assert _tags(deployment.get(_list(f"up.test/{repo}"))) == expected


def test_an_unknown_repository(deployment: Deployment) -> None:
    """404 with its code, also when the repository was there before: 404 is no outage."""
    assert deployment.get(_list("up.test/nothing")).error == "NAME_UNKNOWN"
    rule = offer_tags(deployment.fake_registry, "gone", FEW)
    assert _tags(deployment.get(_list("up.test/gone"))) == FEW
    deployment.fake_registry.remove_rules(rule)
    response = deployment.get(_list("up.test/gone"))
    assert (response.status, response.error) == (404, "NAME_UNKNOWN")


@pytest.mark.parametrize("path", ["/v2/up.test/App/tags/list", "/v2/up.test/a..b/tags/list", "/v2/no.such/a/tags/list"])
def test_names_are_checked(deployment: Deployment, path: str) -> None:
    """As for manifests: 400 outside the grammar, 404 when no upstream is configured."""
    response = deployment.get(path)
    assert (response.status, response.error) == ((404, "NAME_UNKNOWN") if "no.such" in path else (400, "NAME_INVALID"))


def test_a_loop_of_pages(deployment: Deployment) -> None:
    """An upstream whose Link leads back to an earlier page is a bad upstream, detected quickly."""
    path = tags_path("loop")
    offer_tags(deployment.fake_registry, "loop", UNSORTED, page_size=100, link=lambda _: f'<{path}?n=100>; rel="next"')
    response = deployment.get(_list("up.test/loop"))
    assert response.status == 502
    deployment.assert_no_leak(response)
    assert count(deployment.fake_registry, path) <= 3


@pytest.mark.parametrize("start", ["/v2/app", "/repository/docker/v2/docker/app", "http://registry:8081/v2/docker/app"])
def test_pages_of_a_registry_that_does_not_know_its_path(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, start: str
) -> None:
    """All tags of the repository, and none of the one at the path of the Link; also when they are served stale."""

    def link(url: str) -> str:
        return f"<{start}/tags/list?{url.partition('?')[2]}>; rel=next"

    offer_tags(fake_registry, "docker/app", UNSORTED, page_size=1000, link=link)
    offer_tags(fake_registry, "app", ["not-ours"])
    deployment = make_deployment()
    assert _tags(deployment.get(_list("up.test/docker/app"))) == MANY
    assert count(fake_registry, tags_path("app")) == 0
    fake_registry.on(None, faults.html_page(), when=lambda request: "last" in request.query)
    stale = deployment.get(_list("up.test/docker/app"))
    assert _tags(stale) == MANY
    _assert_stale(stale, was_asked=True)


@pytest.mark.parametrize("where", ["another host", "another port", "a file", "nowhere"])
def test_pages_on_another_host(deployment: Deployment, where: str) -> None:
    """Only the query of a Link to another host is used, which leads back here; that host gets no request."""
    elsewhere = deployment.fake_registry.listen(where, "127.0.0.2" if where == "another host" else "127.0.0.1")
    repo = where.replace(" ", "-")
    links = {"a file": "<file:///etc/passwd>", "nowhere": "<http://[::>"}
    link = links.get(where, f"<{elsewhere.url}{tags_path(repo)}?n=100>")
    offer_tags(deployment.fake_registry, repo, UNSORTED, page_size=100, link=lambda _: f"{link}; rel=next")
    response = deployment.get(_list(f"up.test/{repo}"))
    assert response.status == 502
    deployment.assert_no_leak(response)
    assert elsewhere.connections == 0


def test_tags_outside_the_grammar_are_left_out(deployment: Deployment) -> None:
    """Tags outside the grammar are left out; a document that is no tag list is an error."""
    offer_tags(deployment.fake_registry, "odd", ["v1", "-x", "a/b", "a" * 129, "", 'x"><script>', "v\n2"])
    assert _tags(deployment.get(_list("up.test/odd"))) == ["v1"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"tags": {}}', b'{"tags": [1]}', b"[" * 100_000, b'{"tags": ["a"', faults.HTML, b"\xff"],
)
def test_invalid_tag_lists(deployment: Deployment, body: bytes) -> None:
    """502 for a document that is no tag list, and the worker continues."""
    deployment.fake_registry.on(None, faults.replaced(200, body), when=at(tags_path("garbage")), times=1)
    assert deployment.get(_list("up.test/garbage")).status == 502


def _assert_stale(response: Response, *, was_asked: bool) -> None:
    assert (response.header("Warning") or "").startswith('299 - "')
    status = parse_cache_status(response)
    assert int(str(status["ttl"])) < 0
    assert ("hit" in status, "fwd" in status) == (not was_asked, was_asked)


@pytest.mark.parametrize("workers", [1, 4])
def test_stale_when_the_upstream_is_down(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, workers: int
) -> None:
    """Cached lists are served by every worker, marked stale; others are 503; it recovers without a restart."""
    offer_tags(fake_registry, "app", FEW)
    offer_referrers(fake_registry, "app", SUBJECT, REFERRERS)
    deployment = make_deployment(workers=workers)
    tags, referrers = _list("up.test/app"), f"/v2/up.test/app/referrers/{SUBJECT}"
    for path in (tags, referrers):
        fresh = deployment.get(path)
        assert (fresh.status, fresh.header("Warning")) == (200, None)
    fake_registry.listener.close()
    first = deployment.get(tags)
    assert _tags(first) == FEW
    _assert_stale(first, was_asked=True)
    for _ in range(2 * workers):
        later = deployment.get(f"{tags}?n=1")
        assert _tags(later) == FEW[:1]
        _assert_stale(later, was_asked=False)
        stale = deployment.get(referrers)
        assert stale.json["manifests"] == REFERRERS
        _assert_stale(stale, was_asked=False)
    for unknown in (_list("up.test/other"), f"/v2/up.test/other/referrers/{SUBJECT}"):
        response = deployment.get(unknown)
        assert (response.status, response.error) == (503, "UNAVAILABLE")
        assert 1 <= int(response.header("Retry-After") or 0) <= 60
    fake_registry.listener.open()
    eventually(lambda: deployment.get(tags).header("Warning") is None, "fresh again", within_s=7)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (faults.error_response(500), 503),
        (faults.error_response(503), 503),
        (faults.error_response(429, "TOOMANYREQUESTS", "7"), 429),
        (faults.html_page(), 502),
        (faults.silent(), 504),
        (faults.disconnected("rst"), 503),
    ],
    ids=["500", "503", "429", "a web page", "silent", "reset"],
)
def test_stale_when_the_upstream_fails(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, change: Any, status: int
) -> None:
    """The cached list is served within the timeout of one check; without a cached list the status is an error."""
    offer_tags(fake_registry, "app", FEW)
    offer_referrers(fake_registry, "app", SUBJECT, REFERRERS)
    deployment = make_deployment(upstream={"stall_timeout": "2s"})
    tags, referrers = _list("up.test/app"), f"/v2/up.test/app/referrers/{SUBJECT}"
    assert {deployment.get(path).status for path in (tags, referrers)} == {200}
    fake_registry.on(None, change)
    for path in (tags, referrers):
        response = deployment.get(path)
        assert (response.status, (response.header("Warning") or "")[:3]) == (200, "299")
        assert is_within(response.took_s, CHECK_TIMEOUT_S + 0.5)
    assert deployment.get(_list("up.test/other")).status == status


def test_stale_lists_outlive_a_restart(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """Lists are stored on disk: a Dockyard that is started while the upstream is down serves them."""
    offer_tags(fake_registry, "app", FEW)
    deployment = make_deployment()
    assert _tags(deployment.get(_list("up.test/app"))) == FEW
    deployment.dockyard.stop()
    fake_registry.listener.close()
    deployment.dockyard.start()
    assert _tags(deployment.get(_list("up.test/app"))) == FEW


def test_concurrent_list_requests_share_one_fetch(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Many clients on four workers wait for one pass over the pages."""
    offer_tags(fake_registry, "app", UNSORTED, page_size=1000)
    deployment = make_deployment(workers=4)
    run = deployment.dockyard.storage / "run"
    eventually(lambda: len(list(run.glob("shard-*.sock"))) == 4, "four workers accept peer requests")
    path = tags_path("app")
    with set_at_exit(Event()) as gate, ThreadPoolExecutor(1) as pool:
        fake_registry.on(None, faults.silent(gate), when=at(path), times=1)
        responses = pool.submit(deployment.get_concurrently, [_list("up.test/app")] * 24)
        fake_registry.wait_for(lambda: count(fake_registry, path) > 0, "the first question")
        stays(lambda: count(fake_registry, path) == 1, "one question", 0.5)
        gate.set()
        assert all(_tags(response) == MANY for response in responses.result(EVENT_TIMEOUT_S))
    assert count(fake_registry, path) == 3


def test_a_slow_list_is_served_stale_and_fetched_to_its_end(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A client gets the cached list at once, and the next one gets the new list."""
    rule = offer_tags(fake_registry, "app", FEW)
    deployment = make_deployment(upstream={"stall_timeout": "20s"})
    assert _tags(deployment.get(_list("up.test/app"))) == FEW
    fake_registry.remove_rules(rule)
    offer_tags(fake_registry, "app", [*FEW, "v3"])
    with set_at_exit(Event()) as gate:
        fake_registry.on(None, faults.silent(gate), when=at(tags_path("app")), times=1)
        response = deployment.get(_list("up.test/app"))
        assert _tags(response) == FEW
        _assert_stale(response, was_asked=True)
        assert is_within(response.took_s, CHECK_TIMEOUT_S + 0.5)
    assert _tags(deployment.get(_list("up.test/app"))) == [*FEW, "v3"]


def test_an_interval_makes_lists_fresh_for_a_while(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """With `upstream.check_interval` a list that was just fetched is not fetched again, by any worker."""
    offer_tags(fake_registry, "app", FEW)
    deployment = make_deployment(workers=2, upstream={"check_interval": "1h"})
    responses = [deployment.get(_list("up.test/app")) for _ in range(8)]
    assert all(_tags(response) == FEW for response in responses)
    assert count(fake_registry, tags_path("app")) == 1
    assert parse_cache_status(responses[-1])["hit"] is True


def test_cache_status_of_lists(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """For a new, an unchanged and a changed list."""
    rule = offer_tags(fake_registry, "app", FEW)
    deployment = make_deployment()
    statuses = [deployment.get(_list("up.test/app")).header("Cache-Status") for _ in range(2)]
    fake_registry.remove_rules(rule)
    offer_tags(fake_registry, "app", FEW[:2])
    statuses.append(deployment.get(_list("up.test/app")).header("Cache-Status"))
    assert statuses == [
        "Dockyard; fwd=uri-miss; stored",
        "Dockyard; fwd=stale; fwd-status=200",
        "Dockyard; fwd=stale; stored",
    ]


# Referrers


def _manifests(response: Response) -> list[dict[str, Any]]:
    assert (response.status, response.header("Content-Type")) == (200, OCI_INDEX)
    assert (response.json["schemaVersion"], response.json["mediaType"]) == (2, OCI_INDEX)
    return list(response.json["manifests"])


@pytest.mark.parametrize("page_size", [100, 1])
def test_referrers_of_a_registry_that_has_them(deployment: Deployment, page_size: int) -> None:
    """One index with all descriptors unchanged, annotations included, from one page or from four."""
    repo = f"referred-{page_size}"
    offer_referrers(deployment.fake_registry, repo, SUBJECT, REFERRERS, page_size=page_size)
    response = deployment.get(f"/v2/up.test/{repo}/referrers/{SUBJECT}")
    assert _manifests(response) == REFERRERS
    assert response.header("OCI-Filters-Applied") is None
    assert response.header("Cache-Control") == "no-cache"
    head = deployment.head(f"/v2/up.test/{repo}/referrers/{SUBJECT}")
    assert (head.status, head.header("Content-Length")) == (200, response.header("Content-Length"))


@pytest.mark.parametrize(
    ("artifact_type", "expected"),
    [(SBOM, [REFERRERS[0], REFERRERS[2]]), (SIGNATURE, [REFERRERS[1]]), ("application/vnd.nothing", [])],
)
def test_the_referrers_filter_is_applied_here(
    deployment: Deployment, artifact_type: str, expected: list[dict[str, Any]]
) -> None:
    """It works with upstreams that cannot filter, and the response states the filter."""
    offer_referrers(deployment.fake_registry, "filtered", SUBJECT, REFERRERS)
    response = deployment.get(f"/v2/up.test/filtered/referrers/{SUBJECT}?{urlencode({'artifactType': artifact_type})}")
    assert _manifests(response) == expected
    assert response.header("OCI-Filters-Applied") == "artifactType"
    referrer_requests = [
        exchange.request for exchange in deployment.fake_registry.received() if "/filtered/" in exchange.request.path
    ]
    assert all("artifactType" not in request.query for request in referrer_requests)


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        (f"artifactType={quote(SBOM, safe='')}&artifactType={quote(SIGNATURE, safe='')}&ns=up.test", REFERRERS[:3]),
        (f"artifactType={quote(SBOM, safe='')}&artifactType=application%2Fvnd.nothing", [REFERRERS[0], REFERRERS[2]]),
        (f"artifactType={quote(SIGNATURE, safe='')}&artifactType={quote(SIGNATURE, safe='')}", [REFERRERS[1]]),
        (f"artifactType=&artifactType={quote(SIGNATURE, safe='')}", [REFERRERS[1]]),
        ("artifactType=application/vnd.spdx+json", [REFERRERS[4]]),
        ("artifactType=application%2Fvnd.spdx%2Bjson", [REFERRERS[4]]),
        ("artifactType=", None),
        ("artifactType", None),
        ("x=1&x=2&n=5&n=6&platform=linux", None),
    ],
)
def test_referrers_of_several_types(
    deployment: Deployment, queries: str, expected: list[dict[str, Any]] | None
) -> None:
    """Any of the types matches; a `+` is one, escaped or not; an empty type is no filter, and none is claimed."""
    offer_referrers(deployment.fake_registry, "typed", SUBJECT, REFERRERS)
    response = deployment.get(f"/v2/up.test/typed/referrers/{SUBJECT}?{queries}")
    assert _manifests(response) == (REFERRERS if expected is None else expected)
    assert response.header("OCI-Filters-Applied") == (None if expected is None else "artifactType")


def test_pages_of_referrers_of_several_types(deployment: Deployment) -> None:
    """The Link has all types, so that the next page is filtered in the same way."""
    big = {"a": "x" * 870_000}
    entries = [descriptor(digest_of(b"%d" % n), f"a/{'xyz'[n % 3]}+json", annotations=big) for n in range(9)]
    offer_referrers(deployment.fake_registry, "paged-types", SUBJECT, entries, page_size=1)
    path: str | None = f"/v2/up.test/paged-types/referrers/{SUBJECT}?artifactType=a/x+json&artifactType=a%2Fz%2Bjson"
    found: list[dict[str, Any]] = []
    pages = 0
    while path:
        response = deployment.get(path)
        found += _manifests(response)
        assert response.header("OCI-Filters-Applied") == "artifactType"
        path = _next(response)
        pages += 1
    assert [entry["digest"] for entry in found] == [each["digest"] for n, each in enumerate(entries) if n % 3 != 1]
    assert pages == 2


@pytest.mark.parametrize("query", ["last=a&last=b", "n=1&n=2", "ns=up.test&ns=docker.io"])
def test_two_values_of_a_parameter_that_counts_are_rejected(deployment: Deployment, query: str) -> None:
    """It is not clear which page, or which registry, is meant."""
    offer_tags(deployment.fake_registry, "twice", FEW)
    response = deployment.get(f"{_list('up.test/twice')}?{query}")
    assert (response.status, response.error) == (400, "UNSUPPORTED")


@pytest.mark.parametrize("query", ["n=2&n=2&last=", "ns=up.test&ns=up.test&n=2", "x=1&x=2&n=2", "n=2&page=1&platform="])
def test_other_parameters_are_ignored(deployment: Deployment, query: str) -> None:
    """Clients and proxies add parameters, and some send one twice."""
    offer_tags(deployment.fake_registry, "ignored", FEW)
    assert _tags(deployment.get(f"{_list('up.test/ignored')}?{query}")) == FEW[:2]


@pytest.mark.parametrize("status", [400, 404, 405])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_referrers_from_the_fallback_tag(deployment: Deployment, algorithm: str, status: int) -> None:
    """A registry without the API has them under a tag; the tag for sha512 is cut to 64 digits."""
    subject = digest_of(b"the subject of a fallback", algorithm)
    repo = f"fallback-{algorithm}-{status}"
    refuse(deployment.fake_registry, referrers_path(repo, subject), status)
    tag = subject.replace(":", "-")[: len(algorithm) + 1 + 64]
    deployment.fake_registry.add_manifest(repo, tag, json.loads(index(REFERRERS)), OCI_INDEX)
    path = f"/v2/up.test/{repo}/referrers/{subject}"
    assert _manifests(deployment.get(path)) == REFERRERS
    filtered = deployment.get(f"{path}?artifactType={quote(SIGNATURE, safe='')}")
    assert _manifests(filtered) == [REFERRERS[1]]
    assert filtered.header("OCI-Filters-Applied") == "artifactType"


def test_an_image_without_referrers(deployment: Deployment) -> None:
    """Without API and tag, or with a tag that is no index: an empty index, never 404."""
    assert _manifests(deployment.get(f"/v2/up.test/unreferred/referrers/{SUBJECT}")) == []
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": []}
    deployment.fake_registry.add_manifest("unreferred", SUBJECT.replace(":", "-"), document, OCI_MANIFEST)
    assert _manifests(deployment.get(f"/v2/up.test/unreferred/referrers/{SUBJECT}")) == []


@pytest.mark.parametrize("has_tag", [True, False])
@pytest.mark.parametrize(
    "change",
    [faults.html_page(), faults.error_response(501), faults.redirected("/login", 303), faults.replaced(200)],
    ids=["page", "501", "303", "nothing"],
)
def test_a_registry_that_has_a_page_for_referrers(deployment: Deployment, change: Change, *, has_tag: bool) -> None:
    """It has no API: the tag is used, else there are none."""
    fake_registry = deployment.fake_registry
    repo = f"paged-{fake_registry.count()}"
    rules = [
        fake_registry.on(None, change, when=at(referrers_path(repo, SUBJECT))),
        fake_registry.on(None, faults.html_page(), when=at("/login")),
    ]
    if has_tag:
        fake_registry.add_manifest(repo, SUBJECT.replace(":", "-"), json.loads(index(REFERRERS)), OCI_INDEX)
    assert _manifests(deployment.get(f"/v2/up.test/{repo}/referrers/{SUBJECT}")) == (REFERRERS if has_tag else [])
    fake_registry.remove_rules(*rules)


def test_an_index_is_not_the_list_of_its_referrers(deployment: Deployment) -> None:
    """In a registry that takes the tag `sha256-<hex>` for the digest."""
    fake_registry = deployment.fake_registry
    images = [fake_registry.add_image("children", None, [name]) for name in (b"amd64", b"arm64")]
    subject = fake_registry.add_index("children", "v1", images).digest
    body = json.loads(fake_registry.manifest_body("children", subject))
    fake_registry.add_manifest(
        "children", subject.replace(":", "-"), fake_registry.manifest_body("children", subject), OCI_INDEX
    )
    assert len(body["manifests"]) == 2
    assert _manifests(deployment.get(f"/v2/up.test/children/referrers/{subject}")) == []


def test_a_malformed_descriptor_does_not_spoil_the_others(deployment: Deployment) -> None:
    """It is left out."""
    offer_referrers(deployment.fake_registry, "spoilt", SUBJECT, [REFERRERS[0], {"digest": 5}, 1, REFERRERS[1]])
    assert _manifests(deployment.get(f"/v2/up.test/spoilt/referrers/{SUBJECT}")) == REFERRERS[:2]


@pytest.mark.parametrize(("status", "expected_status"), [(401, 403), (403, 403), (500, 503), (502, 503)])
def test_failed_requests_are_not_an_empty_index(deployment: Deployment, status: int, expected_status: int) -> None:
    """A rejected or failed request is neither an empty index nor 404, and the fallback tag is not requested."""
    repo = f"refused-{status}"
    refuse(deployment.fake_registry, referrers_path(repo, SUBJECT), status)
    deployment.fake_registry.add_manifest(repo, SUBJECT.replace(":", "-"), json.loads(index(REFERRERS)), OCI_INDEX)
    response = deployment.get(f"/v2/up.test/{repo}/referrers/{SUBJECT}")
    assert response.status == expected_status
    assert response.error == ("DENIED" if expected_status == 403 else "UNAVAILABLE")
    assert deployment.fake_registry.count("manifest", repo=repo) == 0


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_failed_fallback_tag_is_not_an_empty_index(deployment: Deployment, status: int) -> None:
    """The same for the fallback tag: only a 404 means that there are no referrers."""
    repo = f"tag-refused-{status}"
    deployment.fake_registry.on("manifest", faults.error_response(status), repo=repo)
    assert deployment.get(f"/v2/up.test/{repo}/referrers/{SUBJECT}").status == (503 if status == 500 else 403)


@pytest.mark.parametrize("digest", ["sha256:abc", "sha256:" + "G" * 64, "md5:" + "0" * 32, "latest", "sha256:"])
def test_an_invalid_digest_is_rejected(deployment: Deployment, digest: str) -> None:
    """400, and no request is sent upstream."""
    before = len(deployment.fake_registry.exchanges)
    response = deployment.get(f"/v2/up.test/app/referrers/{digest}")
    assert (response.status, response.error) == (400, "DIGEST_INVALID")
    assert len(deployment.fake_registry.exchanges) == before


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b'{"schemaVersion": 2, "manifests": {}}',
        faults.HTML,
        b"{" * 9999,
    ],
)
def test_invalid_referrers(deployment: Deployment, body: bytes) -> None:
    """502 for what is sent as an index and is none."""
    response = faults.replaced(200, body, ("Content-Type", OCI_INDEX))
    deployment.fake_registry.on(None, response, when=at(referrers_path("senseless", SUBJECT)), times=1)
    assert deployment.get(f"/v2/up.test/senseless/referrers/{SUBJECT}").status == 502


def test_an_empty_referrers_list_is_cached_for_existing_images(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """That an image has no referrers is still served in an outage; unknown digests leave nothing in the cache."""
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment()
    real, made_up = (f"/v2/up.test/app/referrers/{digest}" for digest in (image.digest, SUBJECT))
    for path in (real, made_up):
        assert _manifests(deployment.get(path)) == []
    fake_registry.listener.close()
    assert _manifests(deployment.get(real)) == []
    assert deployment.get(made_up).status == 503

"""Lists: a next page is a page of the same list, and "no referrers API" has many forms."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.support import faults
from tests.support.deployment import Deployment
from tests.support.fake_lists import at, descriptor, index, offer_referrers, referrers_path, tags_path
from tests.support.fake_registry import OCI_INDEX, OCI_MANIFEST, Change, FakeRegistry
from tests.support.raw_http import Request, ScriptedResponse

REPO = "docker/org/app"
TAGS = [f"t{number:04}" for number in range(1500)]


def tag_pages(link: Callable[[str, int], str]) -> Change:
    """Answer with pages of TAGS; `link` makes the Link header from `last` and `n`."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        last, length = request.query.get("last", ""), min(int(request.query.get("n", "1000")), 1000)
        rest = [tag for tag in TAGS if tag > last]
        body = json.dumps({"name": REPO, "tags": rest[:length]}).encode()
        page = ScriptedResponse.of(200, body, ("Content-Type", "application/json"))
        return page.with_header("Link", link(rest[length - 1], length)) if len(rest) > length else page

    return change


@pytest.mark.parametrize(
    "link",
    [
        '</v2/org/app/tags/list?last={last}&n={n}>; rel="next"',
        '</repository/hub/v2/docker/org/app/tags/list?last={last}&n={n}>; rel="next"',
        "<https://other.test/v2/docker/org/app/tags/list?n={n}&last={last}>; rel=next",
        '<?last={last}&n={n}>; rel="next"',
    ],
    ids=["first part left out", "path of a proxy", "another host", "query only"],
)
def test_the_next_page_is_of_the_same_list(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, link: str
) -> None:
    """All tags of this repository and none of another one, whatever the Link says."""
    fake_registry.on(None, tag_pages(lambda last, n: link.format(last=last, n=n)), when=at(tags_path(REPO)))
    strange = json.dumps({"name": "org/app", "tags": ["not-ours"]}).encode()
    fake_registry.on(None, faults.replaced(200, strange), when=at(tags_path("org/app")))
    response = make_deployment().get(f"/v2/up.test/{REPO}/tags/list")
    assert (response.status, response.json["tags"]) == (200, TAGS)
    assert {each.request.path for each in fake_registry.received()} <= {tags_path(REPO), "/v2/"}


def referrers(response: Any) -> list[str]:
    """The digests in a list of referrers."""
    assert (response.status, response.header("Content-Type")) == (200, OCI_INDEX), response
    return [each["digest"] for each in response.json["manifests"]]


def test_the_children_of_an_index_are_not_its_referrers(deployment: Deployment, name: str) -> None:
    """A registry that takes the tag sha256-HEX for the digest sha256:HEX answers with the subject itself."""
    child = deployment.fake_registry.add_image(name, None)
    subject = deployment.fake_registry.add_index(name, "v1", [child])
    tag = subject.digest.replace(":", "-")
    deployment.fake_registry.add_manifest(name, tag, subject.body, OCI_INDEX)
    assert referrers(deployment.get(f"/v2/up.test/{name}/referrers/{subject.digest}")) == []
    assert deployment.fake_registry.count("manifest", reference=tag) >= 1


ENTRIES = [descriptor(f"sha256:{letter * 64}", f"application/vnd.{letter}+json") for letter in "abc"]
ALL = [entry["digest"] for entry in ENTRIES]


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("artifactType=application%2Fvnd.a%2Bjson&artifactType=application%2Fvnd.b%2Bjson", ALL[:2]),
        ("artifactType=application/vnd.a%2Bjson", ALL[:1]),
        ("artifactType=application/vnd.a+json", ALL[:1]),
        ("artifactType=application/vnd.none", []),
        ("artifactType=", None),
        ("artifactType=&artifactType=application/vnd.c%2Bjson", None),
        ("", ALL),
    ],
)
def test_referrers_are_filtered_by_each_type_that_is_asked_for(
    deployment: Deployment, name: str, query: str, wanted: list[str] | None
) -> None:
    """Any of several types matches. Without OCI-Filters-Applied nothing was filtered, and the client does it."""
    image = deployment.fake_registry.add_image(name, "v1")
    offer_referrers(deployment.fake_registry, name, image.digest, ENTRIES)
    response = deployment.get(f"/v2/up.test/{name}/referrers/{image.digest}?{query}&ns=up.test")
    found = referrers(response)
    if response.header("OCI-Filters-Applied"):
        assert wanted is None or found == wanted
    else:
        assert found == ALL


NO_API: dict[str, Change] = {
    "a page": faults.html_page(),
    "a page with status 404": faults.replaced(404, faults.HTML, ("Content-Type", "text/html")),
    "303 to a page": faults.redirected("/login", 303),
    "302 to a page": faults.redirected("/login", 302),
    "an empty 200": faults.replaced(200),
    "JSON that is no index": faults.replaced(200, b'{"ok": true}', ("Content-Type", "application/json")),
    **{str(status): faults.error_response(status, "UNSUPPORTED") for status in (400, 404, 405, 406, 410, 501)},
}


@pytest.mark.parametrize("has_tag", [True, False], ids=["tag", "no tag"])
@pytest.mark.parametrize("answer", NO_API.values(), ids=NO_API)
def test_without_a_referrers_api_the_tag_is_used(
    deployment: Deployment,
    name: str,
    answer: Change,
    has_tag: bool,  # noqa: FBT001
) -> None:
    """What is not an index says that there is no such API: the referrers tag, else an empty index."""
    image = deployment.fake_registry.add_image(name, "v1")
    if has_tag:
        deployment.fake_registry.add_manifest(name, image.digest.replace(":", "-"), index(ENTRIES), OCI_INDEX)
    deployment.fake_registry.on(None, answer, when=at(referrers_path(name, image.digest)))
    deployment.fake_registry.on(None, faults.html_page(), when=at("/login"))
    found = referrers(deployment.get(f"/v2/up.test/{name}/referrers/{image.digest}"))
    assert found == (ALL if has_tag else [])


@pytest.mark.parametrize(
    "broken",
    [
        {"mediaType": OCI_MANIFEST, "digest": "short", "size": 1},
        {"mediaType": OCI_MANIFEST, "digest": ALL[0], "size": -1},
        {"mediaType": OCI_MANIFEST, "size": 1},
        {"mediaType": 5, "digest": ALL[0], "size": 1},
        "not an object",
        None,
    ],
)
def test_a_malformed_descriptor_spoils_itself_only(deployment: Deployment, name: str, broken: Any) -> None:
    """The others are listed."""
    image = deployment.fake_registry.add_image(name, "v1")
    offer_referrers(deployment.fake_registry, name, image.digest, [broken, *ENTRIES])
    assert referrers(deployment.get(f"/v2/up.test/{name}/referrers/{quote(image.digest)}")) == ALL

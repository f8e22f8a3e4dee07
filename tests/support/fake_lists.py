"""Lists of a fake registry: tags in pages, and referrers with and without the referrers API."""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from tests.support.fake_registry import OCI_INDEX, OCI_MANIFEST, FakeRegistry, Rule
from tests.support.faults import error_response
from tests.support.raw_http import Request, ScriptedResponse

JSON = ("Content-Type", "application/json")


def at(path: str) -> Callable[[Request], bool]:
    """Match the requests for one path, with any query."""
    return lambda request: request.path == path


def tags_path(repo: str) -> str:
    """The path of the tag list of a repository at the upstream."""
    return f"/v2/{repo}/tags/list"


def referrers_path(repo: str, digest: str) -> str:
    """The path of the referrers of a manifest at the upstream."""
    return f"/v2/{repo}/referrers/{digest}"


def count(fake_registry: FakeRegistry, path: str) -> int:
    """The number of requests for a path that reached the fake registry."""
    return sum(exchange.request.path == path for exchange in fake_registry.received())


def offer_tags(
    fake_registry: FakeRegistry,
    repo: str,
    tags: Sequence[str] | None,
    *,
    page_size: int = 100_000,
    link: Callable[[str], str] | None = None,
) -> Rule:
    """Serve a tag list (None: `null`, as some Go programs write it) in pages, in the given order.

    As in ECR, `last` is opaque, the Link is absolute, and the Content-Type is text. `link` makes another Link header
    from the URL.
    """

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        start = int(base64.b64decode(request.query["last"])) if "last" in request.query else 0
        page = None if tags is None else list(tags[start : start + page_size])
        response = ScriptedResponse.of(
            200, json.dumps({"name": repo, "tags": page}).encode(), ("Content-Type", "text/plain")
        )
        if tags is None or start + page_size >= len(tags):
            return response
        last = quote(base64.b64encode(str(start + page_size).encode()))
        url = f"{fake_registry.url}{tags_path(repo)}?n={page_size}&last={last}"
        return response.with_header("Link", link(url) if link else f'<{url}>; rel="next"')

    return fake_registry.on(None, change, when=at(tags_path(repo)))


def descriptor(digest: str, artifact_type: str | None = None, **more: Any) -> dict[str, Any]:
    """An entry of an index of referrers."""
    named = {} if artifact_type is None else {"artifactType": artifact_type}
    return {"mediaType": OCI_MANIFEST, "digest": digest, "size": 7} | named | more


def index(descriptors: Sequence[Any]) -> bytes:
    """An image index with these descriptors."""
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(descriptors)}).encode()


def offer_referrers(
    fake_registry: FakeRegistry, repo: str, digest: str, descriptors: Sequence[Any], *, page_size: int = 100_000
) -> Rule:
    """Serve referrers by the API, in pages; the artifactType filter is ignored."""

    def change(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        start = int(request.query.get("next", "0"))
        response = ScriptedResponse.of(200, index(descriptors[start : start + page_size]), ("Content-Type", OCI_INDEX))
        if start + page_size >= len(descriptors):
            return response
        return response.with_header("Link", f'<{referrers_path(repo, digest)}?next={start + page_size}>; rel="next"')

    return fake_registry.on(None, change, when=at(referrers_path(repo, digest)))


def refuse(fake_registry: FakeRegistry, path: str, status: int, *, times: int | None = None) -> Rule:
    """Answer requests for a path with an error."""
    return fake_registry.on(None, error_response(status), when=at(path), times=times)

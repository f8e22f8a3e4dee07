"""The endpoints of content discovery: `tags/list` and `referrers` (OCI distribution specification, end-8, end-12).

Pages are cut here from the whole list, so `n`, `last` and `artifactType` work as specified even if the upstream does
not support them. The name in a response and the path of a Link are those of the request.
"""

import functools
import json

import falcon.asgi

from dockyard.cache.lists import FoundList, Lists
from dockyard.oci.links import format_next_link
from dockyard.oci.lists import page_referrers, page_tags, referrers_index
from dockyard.oci.manifest import OCI_INDEX
from dockyard.web.gate import Gate
from dockyard.web.handlers import start_record
from dockyard.web.headers import freshness_headers
from dockyard.web.queries import parse_referrers_query, parse_tags_query


class TagsEndpoint:
    """`GET`, `HEAD /v2/<name>/tags/list` (end-8)."""

    def __init__(self, gate: Gate, lists: Lists) -> None:
        self._gate = gate
        self._lists = lists

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, path_prefix: str, name: str, reference: str
    ) -> None:
        """200 with the requested page. Raises RegistryError."""
        record = start_record(req, "tags", name, f"tags/{reference}")
        parse = functools.partial(parse_tags_query, req.query_string)
        target, query = await self._gate.admit(req, resp, record, path_prefix, reference, parse)
        found = await self._lists.tags(target, is_continued=query.last is not None)
        record.how, record.error = found.how, found.error
        tags, has_more = page_tags([] if record.is_hidden else found.items, query.n, query.last)
        if has_more:
            resp.set_header("link", format_next_link(req.path, query.values | {"last": [tags[-1]]}))
        _set_body(req, resp, found, json.dumps({"name": name, "tags": tags}).encode(), "application/json")

    on_head = on_get


class ReferrersEndpoint:
    """`GET`, `HEAD /v2/<name>/referrers/<digest>` (end-12). The index of a digest without referrers is empty."""

    def __init__(self, gate: Gate, lists: Lists) -> None:
        self._gate = gate
        self._lists = lists

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, path_prefix: str, name: str, reference: str
    ) -> None:
        """200 with an index of the requested page of descriptors. Raises RegistryError."""
        record = start_record(req, "referrers", name, f"referrers/{reference}")
        parse = functools.partial(parse_referrers_query, req.query_string)
        target, query = await self._gate.admit(req, resp, record, path_prefix, reference, parse)
        found = await self._lists.referrers(target, query.subject, is_continued=query.last is not None)
        record.how, record.error = found.how, found.error
        referrers, has_more = page_referrers([] if record.is_hidden else found.items, query.artifact_types, query.last)
        if query.artifact_types:
            resp.set_header("oci-filters-applied", "artifactType")
        if has_more:
            resp.set_header("link", format_next_link(req.path, query.values | {"last": [referrers[-1]["digest"]]}))
        _set_body(req, resp, found, referrers_index(referrers), OCI_INDEX)

    on_head = on_get


def _set_body(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, found: FoundList, body: bytes, content_type: str
) -> None:
    resp.set_headers(freshness_headers(found, is_public=False))
    resp.content_type = content_type
    if req.method == "HEAD":
        resp.content_length = len(body)
    else:
        resp.data = body

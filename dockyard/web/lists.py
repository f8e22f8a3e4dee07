"""The endpoints of content discovery: `tags/list` and `referrers` (OCI distribution specification, end-8, end-12).

Pages are cut here from the whole list, so `n`, `last` and `artifactType` work as specified even if the upstream does
not support them. The name in a response and the path of a Link are those of the request.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

import attrs
import falcon.asgi

from dockyard.cache.lists import FoundList, Lists
from dockyard.errors import RequestInvalid
from dockyard.oci.links import format_next_link
from dockyard.oci.lists import page_referrers, page_tags, referrers_index
from dockyard.oci.manifest import OCI_INDEX
from dockyard.oci.reference import Digest
from dockyard.web.gate import Gate
from dockyard.web.handlers import start_record
from dockyard.web.headers import freshness_headers

MAX_QUERY_PARAMETERS = 32
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


@attrs.frozen
class TagsQuery:
    """The query of a list of tags: all `values`, and those that select the page."""

    values: dict[str, list[str]]
    n: int | None
    last: str | None


@attrs.frozen
class ReferrersQuery:
    """The `subject` and the query of a list of referrers: all `values`, and those that select the page."""

    subject: Digest
    values: dict[str, list[str]]
    artifact_types: frozenset[str]
    last: str | None


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
        parse = functools.partial(_parse_tags_query, req)
        target, query = await self._gate.admit(req, resp, record, path_prefix, reference, parse)
        found = await self._lists.tags(target)
        record.how, record.error = found.how, found.error
        tags, has_more = page_tags(found.items, query.n, query.last)
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
        parse = functools.partial(_parse_referrers_query, req)
        target, query = await self._gate.admit(req, resp, record, path_prefix, reference, parse)
        found = await self._lists.referrers(target, query.subject)
        record.how, record.error = found.how, found.error
        referrers, has_more = page_referrers(found.items, query.artifact_types, query.last)
        if query.artifact_types:
            resp.set_header("oci-filters-applied", "artifactType")
        if has_more:
            resp.set_header("link", format_next_link(req.path, query.values | {"last": [referrers[-1]["digest"]]}))
        _set_body(req, resp, found, referrers_index(referrers), OCI_INDEX)

    on_head = on_get


def _parse_tags_query(req: falcon.asgi.Request, _reference: str) -> TagsQuery:
    """Raises RequestInvalid."""
    values = _parse_query(req)
    return TagsQuery(values, _parse_count(_only_value(values, "n")), _only_value(values, "last"))


def _parse_referrers_query(req: falcon.asgi.Request, reference: str) -> ReferrersQuery:
    """Raises RequestInvalid or DigestInvalid."""
    values = _parse_query(req)
    last, artifact_types = _only_value(values, "last"), _artifact_types(values)
    return ReferrersQuery(Digest.parse(reference), values, artifact_types, last)


def _parse_query(req: falcon.asgi.Request) -> dict[str, list[str]]:
    """Return the values of each parameter of a query. Raises RequestInvalid if there are too many."""
    try:
        return parse_qs(req.query_string, keep_blank_values=True, max_num_fields=MAX_QUERY_PARAMETERS)
    except ValueError as exc:
        raise RequestInvalid(f"the query has more than {MAX_QUERY_PARAMETERS} parameters") from exc


def _only_value(query: Mapping[str, Sequence[str]], key: str) -> str | None:
    """Return the value of a parameter, None if it is not in the query. Raises RequestInvalid for two values."""
    values = set(query.get(key, ()))
    if len(values) > 1:
        raise RequestInvalid(f"the query has two values of {key}")
    return values.pop() if values else None


def _artifact_types(query: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Return the types to filter by. A parameter without a value is no filter.

    Clients write the `+` of `application/spdx+json` without encoding it, which means a space; no type contains one.
    """
    return frozenset(value.replace(" ", "+") for value in query.get("artifactType", ()) if value)


def _parse_count(text: str | None) -> int | None:
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise RequestInvalid("n must be a number of tags, 0 or more")
    return int(text)


def _set_body(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, found: FoundList, body: bytes, content_type: str
) -> None:
    resp.set_headers(freshness_headers(found, is_public=False))
    resp.content_type = content_type
    if req.method == "HEAD":
        resp.content_length = len(body)
    else:
        resp.data = body

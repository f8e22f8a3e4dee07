"""What a request for a list asks for: parsed from its query and its path. Pure."""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

import attrs

from dockyard.errors import RequestInvalid
from dockyard.oci.reference import Digest

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


def parse_tags_query(query: str, _reference: str) -> TagsQuery:
    """Parse the query of a list of tags. Raises RequestInvalid."""
    values = _parse_query(query)
    return TagsQuery(values, _parse_count(_only_value(values, "n")), _only_value(values, "last"))


def parse_referrers_query(query: str, reference: str) -> ReferrersQuery:
    """Parse the query of a list of referrers, and the digest in its path. Raises RequestInvalid or DigestInvalid."""
    values = _parse_query(query)
    last, artifact_types = _only_value(values, "last"), _artifact_types(values)
    return ReferrersQuery(Digest.parse(reference), values, artifact_types, last)


def _parse_query(query: str) -> dict[str, list[str]]:
    """Return the values of each parameter of a query. Raises RequestInvalid if there are too many."""
    try:
        return parse_qs(query, keep_blank_values=True, max_num_fields=MAX_QUERY_PARAMETERS)
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

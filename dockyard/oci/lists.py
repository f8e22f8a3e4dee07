"""Lists: the tags of a repository, and the referrers of a manifest.

Parses the pages of an upstream, which may be of any size and in any order, and divides a complete list into pages, with
the exact meaning of `n`, `last` and `artifactType` (OCI distribution specification, "Listing Tags" and "Listing
Referrers").

The pages of an upstream are untrusted: `parse_tags` and `parse_referrers` raise only BadUpstream, for any bytes.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, Final

from dockyard.errors import BadUpstream, ReferenceInvalid
from dockyard.oci.manifest import MAX_MANIFEST_BYTES, OCI_INDEX, Manifest
from dockyard.oci.reference import Digest, Tag

Referrer = dict[str, Any]  # a descriptor in an index, with unknown keys unchanged

# Objects, arrays and commas on one page. The registries of Google list all manifests of a repository beside its tags.
_MAX_JSON_PARTS: Final = 400_000
# Clients accept an index of 4 MiB, part of which is the document around the descriptors.
MAX_PAGE_BYTES: Final = MAX_MANIFEST_BYTES - 4096


def parse_tags(body: bytes) -> list[str]:
    """Return the tags on one page of an upstream, without invalid ones, which could not be pulled from Dockyard."""
    if sum(map(body.count, (b"{", b"[", b","))) > _MAX_JSON_PARTS:
        raise BadUpstream("the upstream's list of tags has too many parts")
    try:
        document = json.loads(body.decode("utf-8"), parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as exc:
        raise BadUpstream("the upstream's list of tags is not a JSON document") from exc
    if not isinstance(document, dict) or "tags" not in document:
        raise BadUpstream("the upstream's response is not a list of tags")
    tags = document["tags"]
    if tags is None:  # how Go programs encode an empty list
        return []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise BadUpstream("the upstream's response is not a list of tags")
    return [tag for tag in tags if _is_tag(tag)]


def parse_referrers(body: bytes, content_type: str | None) -> list[Referrer]:
    """Return the descriptors on one page of an upstream."""
    referrers = find_referrers(Manifest.parse(body, content_type, None))
    if referrers is None:
        raise BadUpstream("the upstream's response is not an index of referrers")
    return referrers


def find_referrers(manifest: Manifest) -> list[Referrer] | None:
    """Return the descriptors in an OCI index, None for another manifest. Raises BadUpstream for malformed ones."""
    if manifest.media_type != OCI_INDEX:
        return None
    referrers: list[Referrer] = json.loads(manifest.body)["manifests"] or []
    if not all(map(_is_descriptor, referrers)):
        raise BadUpstream("the upstream's index of referrers has malformed descriptors")
    return referrers


def merge_referrers(pages: Iterable[Sequence[Referrer]]) -> list[Referrer]:
    """Return the referrers of all pages, each once, in the order of the upstream."""
    merged: dict[str, Referrer] = {}
    for page in pages:
        for referrer in page:
            merged.setdefault(referrer["digest"], referrer)
    return list(merged.values())


def referrers_tag(digest: Digest) -> Tag:
    """Return the tag of the referrers of a manifest in registries without the API ("Referrers Tag Schema")."""
    return Tag.parse(f"{digest.algorithm[:32]}-{digest.encoded[:64]}")


def page_tags(tags: Sequence[str], n: int | None, last: str | None) -> tuple[Sequence[str], bool]:
    """Return at most `n` tags of a sorted list that follow `last`, and whether there are more. None means no limit."""
    start = bisect_right(tags, last) if last is not None else 0
    stop = len(tags) if n is None else min(start + n, len(tags))
    return tags[start:stop], stop < len(tags) and n != 0


def page_referrers(
    referrers: Sequence[Referrer], artifact_type: str | None, last: str | None, max_bytes: int = MAX_PAGE_BYTES
) -> tuple[list[Referrer], bool]:
    """Return at most `max_bytes` of the referrers of one type (None: any) that follow the digest `last`.

    The second value tells whether there are more. If `last` is not in the list any more, the first page is returned:
    a client may see referrers twice, but does not miss any.
    """
    matching = [each for each in referrers if artifact_type is None or each.get("artifactType") == artifact_type]
    start = next((index + 1 for index, each in enumerate(matching) if each["digest"] == last), 0)
    size = 0
    for stop in range(start, len(matching)):
        size += len(json.dumps(matching[stop])) + 2
        if size > max_bytes and stop > start:
            return matching[start:stop], True
    return matching[start:], False


def referrers_index(referrers: Sequence[Referrer]) -> bytes:
    """Return the body of a response: an index of these referrers."""
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": referrers}).encode()


def _is_tag(text: str) -> bool:
    try:
        Tag.parse(text)
    except ReferenceInvalid:
        return False
    return True


def _is_descriptor(item: Referrer) -> bool:
    annotations = {} if item.get("annotations") is None else item["annotations"]
    return (
        isinstance(item.get("mediaType"), str)
        and isinstance(item.get("digest"), str)
        and isinstance(item.get("size"), int)
        and isinstance(item.get("artifactType"), str | None)
        and isinstance(annotations, dict)
        and all(isinstance(value, str) for value in annotations.values())
    )

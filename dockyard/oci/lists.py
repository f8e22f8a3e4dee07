"""Lists: the tags of a repository, and the referrers of a manifest.

An upstream pages as it likes, in any order. Its pages are read here; the list that they make is cut here into pages of
our own, with the exact meaning of `n`, `last` and `artifactType` (OCI distribution specification, "Listing Tags" and
"Listing Referrers").

A page comes from strangers: nothing but BadUpstream leaves `parse_tags` and `parse_referrers`, whatever the bytes are.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, Final

from dockyard.errors import BadUpstream, ReferenceInvalid
from dockyard.oci.manifest import MAX_MANIFEST_BYTES, OCI_INDEX, Manifest
from dockyard.oci.reference import Digest, Tag

Referrer = dict[str, Any]  # a descriptor as it stands in an index: what we do not know in it is passed on

# What one page may be made of. Google's registries put all manifests of a repository beside its tags.
_MAX_PARTS: Final = 400_000
# Clients take an index of 4 MiB; some of that is the document around the descriptors.
MAX_PAGE_BYTES: Final = MAX_MANIFEST_BYTES - 4096


def parse_tags(body: bytes) -> list[str]:
    """The tags on one page of an upstream. Those outside the grammar are left out: nobody could pull them here."""
    if sum(map(body.count, (b"{", b"[", b","))) > _MAX_PARTS:
        raise BadUpstream("the upstream's list of tags has too many parts")
    try:
        document = json.loads(body.decode("utf-8"), parse_float=str, parse_constant=str)
    except (ValueError, RecursionError) as exc:
        raise BadUpstream("the upstream's list of tags is not a JSON document") from exc
    if not isinstance(document, dict) or "tags" not in document:
        raise BadUpstream("what the upstream sent is not a list of tags")
    tags = document["tags"]
    if tags is None:  # Go programs write an empty list so
        return []
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise BadUpstream("what the upstream sent is not a list of tags")
    return [tag for tag in tags if _is_tag(tag)]


def parse_referrers(body: bytes, content_type: str | None) -> list[Referrer]:
    """The descriptors on one page of an upstream."""
    found = find_referrers(Manifest.parse(body, content_type, None))
    if found is None:
        raise BadUpstream("what the upstream sent is not an index of referrers")
    return found


def find_referrers(manifest: Manifest) -> list[Referrer] | None:
    """The descriptors in a manifest, None when it is not an OCI index. Raises BadUpstream for senseless ones."""
    if manifest.media_type != OCI_INDEX:
        return None
    referrers: list[Referrer] = json.loads(manifest.body)["manifests"] or []
    if not all(map(_is_descriptor, referrers)):
        raise BadUpstream("the upstream's index of referrers has descriptors that make no sense")
    return referrers


def merge_referrers(pages: Iterable[Sequence[Referrer]]) -> list[Referrer]:
    """All referrers of some pages, each once, in the upstream's order."""
    merged: dict[str, Referrer] = {}
    for page in pages:
        for referrer in page:
            merged.setdefault(referrer["digest"], referrer)
    return list(merged.values())


def referrers_tag(digest: Digest) -> Tag:
    """The tag where clients keep the referrers of a manifest when a registry does not ("Referrers Tag Schema")."""
    return Tag.parse(f"{digest.algorithm[:32]}-{digest.encoded[:64]}")


def page_tags(tags: Sequence[str], n: int | None, last: str | None) -> tuple[Sequence[str], bool]:
    """The tags behind `last`, at most `n`, of a sorted list; and whether there are more. None of either: no limit."""
    start = bisect_right(tags, last) if last is not None else 0
    stop = len(tags) if n is None else min(start + n, len(tags))
    return tags[start:stop], stop < len(tags) and n != 0


def page_referrers(
    referrers: Sequence[Referrer], artifact_type: str | None, last: str | None, room: int = MAX_PAGE_BYTES
) -> tuple[list[Referrer], bool]:
    """The referrers of one type (None: of any) behind the digest `last`, at most `room` bytes; are there more?

    A `last` that is gone meanwhile begins anew: twice is better than not at all.
    """
    wanted = [each for each in referrers if artifact_type is None or each.get("artifactType") == artifact_type]
    start = next((index + 1 for index, each in enumerate(wanted) if each["digest"] == last), 0)
    for stop in range(start, len(wanted)):
        room -= len(json.dumps(wanted[stop])) + 2
        if room < 0 and stop > start:
            return wanted[start:stop], True
    return wanted[start:], False


def referrers_index(referrers: Sequence[Referrer]) -> bytes:
    """The index that answers a client."""
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

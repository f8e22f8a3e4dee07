"""Lists: the tags of a repository, and the referrers of a manifest.

Parses the pages of an upstream, which may be of any size and in any order, and divides a complete list into pages, with
the exact meaning of `n`, `last` and `artifactType` (OCI distribution specification, "Listing Tags" and "Listing
Referrers").

The pages of an upstream are untrusted: `parse_tags` and `find_referrers` raise only BadUpstream, for any bytes.
"""

import base64
import json
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

from dockyard.errors import BadUpstream, ReferenceInvalid
from dockyard.oci.documents import parse_document
from dockyard.oci.manifest import DOCKER_LIST, MAX_MANIFEST_BYTES, OCI_INDEX, strip_parameters
from dockyard.oci.reference import Digest, Tag

Referrer = dict[str, Any]  # a descriptor in an index, with unknown keys unchanged

# Objects, arrays and commas on one page. The registries of Google list all manifests of a repository beside its tags.
_MAX_JSON_PARTS: Final = 400_000
# Clients accept an index of 4 MiB, part of which is the document around the descriptors.
MAX_PAGE_BYTES: Final = MAX_MANIFEST_BYTES - 4096
# Go programs read sizes as int64.
_MAX_SIZE: Final = 2**63
# The grammar of digests of any algorithm (image specification, "Digests").
_DIGEST: Final = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[a-zA-Z0-9=_-]+", re.ASCII)
_IMAGE_KEYS: Final = frozenset({"config", "layers", "fsLayers"})
_PLATFORM_TEXTS: Final = frozenset({"architecture", "os", "os.version", "variant"})


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


def find_referrers(body: bytes, content_type: str | None) -> list[Any] | None:
    """Return the entries of an OCI index, of which some may be malformed; None for another JSON document.

    Raises BadUpstream for what is not a JSON object that all parsers read in the same way.
    """
    if len(body) > MAX_MANIFEST_BYTES:
        raise BadUpstream(f"the upstream's index of referrers is larger than {MAX_MANIFEST_BYTES} bytes")
    document = parse_document(body)
    if document.get("mediaType") in (None, ""):
        is_index = "manifests" in document and strip_parameters(content_type) != DOCKER_LIST
    else:
        is_index = document["mediaType"] == OCI_INDEX
    if not is_index or not isinstance(document.get("manifests"), list | None) or _IMAGE_KEYS & document.keys():
        return None
    return json.loads(body).get("manifests") or []


def is_referrer(item: Any) -> bool:
    """Return whether an entry is a descriptor that clients can parse: one that they cannot spoils a whole index."""
    if not isinstance(item, dict):
        return False
    annotations, platform = item.get("annotations"), item.get("platform")
    return (
        isinstance(item.get("mediaType"), str)
        and _is_digest(item.get("digest"))
        and type(size := item.get("size")) is int
        and 0 <= size < _MAX_SIZE
        and isinstance(item.get("artifactType"), str | None)
        and (annotations is None or (isinstance(annotations, dict) and _are_strings(annotations.values())))
        and _is_list_of_strings(item.get("urls"))
        and _is_base64(item.get("data"))
        and (platform is None or (isinstance(platform, dict) and _is_platform(platform)))
        and _is_finite(item)
    )


def merge_referrers(referrers: Iterable[Referrer]) -> list[Referrer]:
    """Return each referrer once, in the order of the upstream."""
    merged: dict[str, Referrer] = {}
    for referrer in referrers:
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
    referrers: Sequence[Referrer],
    artifact_types: Collection[str],
    last: str | None,
    max_bytes: int = MAX_PAGE_BYTES,
) -> tuple[list[Referrer], bool]:
    """Return at most `max_bytes` of the referrers of these types (none: of any) that follow the digest `last`.

    The second value tells whether there are more. If `last` is not in the list any more, the first page is returned:
    a client may see referrers twice, but does not miss any.
    """
    matching = [each for each in referrers if not artifact_types or each.get("artifactType") in artifact_types]
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


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _is_platform(platform: dict[str, Any]) -> bool:
    texts = [value for key, value in platform.items() if key in _PLATFORM_TEXTS and value is not None]
    return _are_strings(texts) and _is_list_of_strings(platform.get("os.features"))


def _are_strings(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_list_of_strings(value: Any) -> bool:
    return value is None or (isinstance(value, list) and _are_strings(value))


def _is_base64(value: Any) -> bool:
    try:
        return value is None or (isinstance(value, str) and base64.b64decode(value, validate=True) is not None)
    except ValueError:
        return False


def _is_finite(item: dict[str, Any]) -> bool:
    """Return whether the entry can be written as JSON: a number such as 1e999 is read as infinite."""
    try:
        json.dumps(item, allow_nan=False)
    except ValueError:
        return False
    return True

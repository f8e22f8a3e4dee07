"""What to read of an image: the manifests of an index for the requested platforms, the blobs of a manifest. Pure."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs

from dockyard.errors import BadUpstream, DigestInvalid
from dockyard.oci.manifest import DOCKER_LIST, OCI_INDEX, Manifest
from dockyard.oci.reference import Digest
from dockyard.pull.platforms import Platform

# In the media types of layers that clients fetch from URLs in the manifest, not from a registry (Windows base images).
_FOREIGN: Final = ("foreign", "nondistributable")


@attrs.frozen
class ImageBlob:
    """A blob of an image. `size` is that in the manifest, None if there is none, as in schema 1."""

    digest: Digest
    size: int | None


@attrs.frozen
class IndexEntry:
    """A manifest in an index."""

    digest: Digest
    platform: Platform | None


@attrs.frozen
class Selection:
    """The manifests to read, each once, in the order of the index; and the platforms that have no manifest there."""

    entries: tuple[IndexEntry, ...]
    missing: tuple[Platform, ...] = ()


def is_index(manifest: Manifest) -> bool:
    """Return whether a manifest is an index of other manifests."""
    return "manifests" in _document(manifest) or manifest.media_type in {OCI_INDEX, DOCKER_LIST}


def entries_of(index: Manifest) -> tuple[IndexEntry, ...]:
    """Return the manifests in an index, without attestations. Raises BadUpstream for a malformed index."""
    entries = [
        IndexEntry(_parse_digest(item.get("digest")), _find_platform(item.get("platform")))
        for item in _list(index, "manifests")
    ]
    return tuple(entry for entry in entries if entry.platform is None or not entry.platform.is_unknown)


def select_entries(entries: Sequence[IndexEntry], platforms: Sequence[Platform] | None) -> Selection:
    """Select the entries that clients of each platform pull; of all platforms if `platforms` is None.

    For a platform these are all entries with the best matching one (Windows has an entry for each release), or, as in
    containerd, the entries without a platform if none matches.
    """
    if platforms is None:
        return Selection(_without_duplicates(entries))
    without_platform = [entry for entry in entries if entry.platform is None]
    selected: list[IndexEntry] = []
    missing: list[Platform] = []
    for platform in platforms:
        matching = _find_best(entries, platform) or without_platform
        selected += matching
        if not matching:
            missing.append(platform)
    return Selection(_without_duplicates(entry for entry in entries if entry in selected), tuple(missing))


def blobs_of(manifest: Manifest) -> tuple[ImageBlob, ...]:
    """Return the blobs that a client of a manifest pulls, each once. Raises BadUpstream for a malformed manifest."""
    items = [*_list(manifest, "config"), *_list(manifest, "layers"), *_list(manifest, "blobs")]
    blobs = [
        ImageBlob(_parse_digest(item.get("digest")), _find_size(item.get("size")))
        for item in items
        if not any(word in str(item.get("mediaType")) for word in _FOREIGN)
    ]
    blobs += [ImageBlob(_parse_digest(item.get("blobSum")), None) for item in _list(manifest, "fsLayers")]
    return tuple({blob.digest: blob for blob in blobs}.values())


def _find_best(entries: Sequence[IndexEntry], platform: Platform) -> list[IndexEntry]:
    for compatible in platform.compatible():
        if found := [entry for entry in entries if entry.platform == compatible]:
            return found
    return []


def _without_duplicates(entries: Iterable[IndexEntry]) -> tuple[IndexEntry, ...]:
    return tuple({entry.digest: entry for entry in entries}.values())


def _document(manifest: Manifest) -> dict[str, Any]:
    """Parse the JSON, which was validated when the Manifest was made."""
    document: dict[str, Any] = json.loads(manifest.body)
    return document


def _list(manifest: Manifest, key: str) -> list[dict[str, Any]]:
    value = _document(manifest).get(key) or []
    return value if isinstance(value, list) else [value]


def _parse_digest(value: Any) -> Digest:
    try:
        return Digest.parse(str(value))
    except DigestInvalid as exc:
        raise BadUpstream(f"the manifest contains a digest that cannot be verified: {exc.message}") from exc


def _find_size(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _find_platform(value: Any) -> Platform | None:
    match value:
        case {"os": str(os), "architecture": str(architecture)}:
            variant = value.get("variant")
            return Platform.of(os, architecture, variant if isinstance(variant, str) else "")
        case _:
            return None

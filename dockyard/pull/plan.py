"""What to read of an image: of an index the manifests for the platforms asked for, of a manifest its blobs."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final

import attrs

from dockyard.errors import BadUpstream, DigestInvalid
from dockyard.oci.manifest import DOCKER_LIST, OCI_INDEX, Manifest
from dockyard.oci.reference import Digest
from dockyard.pull.platforms import Platform

# Layers that no registry keeps: clients get them from the URLs that stand beside them (Windows base images).
_ELSEWHERE: Final = ("foreign", "nondistributable")


@attrs.frozen
class Blob:
    """A blob to read. `size` is what the manifest says, None where it says nothing (schema 1)."""

    digest: Digest
    size: int | None


@attrs.frozen
class Entry:
    """A manifest that an index names."""

    digest: Digest
    platform: Platform | None


@attrs.frozen
class Choice:
    """The manifests to read, each once, in the order of the index; and the platforms that the index has nothing for."""

    entries: tuple[Entry, ...]
    missing: tuple[Platform, ...] = ()


def is_index(manifest: Manifest) -> bool:
    """Tell whether a manifest only names others."""
    return "manifests" in _document(manifest) or manifest.media_type in {OCI_INDEX, DOCKER_LIST}


def entries_of(index: Manifest) -> tuple[Entry, ...]:
    """Return the manifests that an index names, without attestations; raise BadUpstream for one that is malformed."""
    entries = [
        Entry(_digest(item.get("digest")), _platform(item.get("platform"))) for item in _list(index, "manifests")
    ]
    return tuple(entry for entry in entries if entry.platform is None or not entry.platform.is_unknown)


def choose(entries: Sequence[Entry], platforms: Sequence[Platform] | None) -> Choice:
    """Choose for each platform what its clients take; None takes all.

    All entries of one platform are taken (Windows has one for each release), and where there is none, the entries that
    name no platform at all, as containerd does.
    """
    if platforms is None:
        return Choice(_once(entries))
    anybodys = [entry for entry in entries if entry.platform is None]
    chosen: list[Entry] = []
    missing: list[Platform] = []
    for platform in platforms:
        theirs = _best(entries, platform) or anybodys
        chosen += theirs
        if not theirs:
            missing.append(platform)
    return Choice(_once(entry for entry in entries if entry in chosen), tuple(missing))


def blobs_of(manifest: Manifest) -> tuple[Blob, ...]:
    """Return the blobs that a client of this manifest reads, each once; raise BadUpstream for one that is malformed."""
    items = [*_list(manifest, "config"), *_list(manifest, "layers"), *_list(manifest, "blobs")]
    blobs = [
        Blob(_digest(item.get("digest")), _size(item.get("size")))
        for item in items
        if not any(word in str(item.get("mediaType")) for word in _ELSEWHERE)
    ]
    blobs += [Blob(_digest(item.get("blobSum")), None) for item in _list(manifest, "fsLayers")]
    return tuple({blob.digest: blob for blob in blobs}.values())


def _best(entries: Sequence[Entry], platform: Platform) -> list[Entry]:
    for runnable in platform.runnable():
        if found := [entry for entry in entries if entry.platform == runnable]:
            return found
    return []


def _once(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    return tuple({entry.digest: entry for entry in entries}.values())


def _document(manifest: Manifest) -> dict[str, Any]:
    """Read the JSON, which was found sound and harmless when the Manifest was made."""
    document: dict[str, Any] = json.loads(manifest.body)
    return document


def _list(manifest: Manifest, key: str) -> list[dict[str, Any]]:
    value = _document(manifest).get(key) or []
    return value if isinstance(value, list) else [value]


def _digest(value: Any) -> Digest:
    try:
        return Digest.parse(str(value))
    except DigestInvalid as exc:
        raise BadUpstream(f"the manifest names something that cannot be checked: {exc.message}") from exc


def _size(value: Any) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _platform(value: Any) -> Platform | None:
    match value:
        case {"os": str(os), "architecture": str(architecture)}:
            variant = value.get("variant")
            return Platform.of(os, architecture, variant if isinstance(variant, str) else "")
        case _:
            return None

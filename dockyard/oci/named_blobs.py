"""The blobs that a manifest names so that its repository must have had them when it accepted the manifest. Pure.

A blob is served under a repository because a manifest of the repository names it, and whoever may push to that
repository writes its manifests. A registry checks at a push that it has the blobs of a manifest, but only what it reads
as such. What it does not read, or reads in another way, names nothing here:

- lists that do not belong to the kind of the manifest, such as `blobs` in an image, and the manifests of an index;
- anything in a document that declares a type of another kind, or a type that is not one of a manifest: an index may
  have no `manifests`, and `blobs` instead, which registries accept;
- layers that are not distributed by the registry: with `urls`, or of a type that says so. They need not be there;
- anything in a signed schema 1 manifest that has members beside the signed ones;
- descriptors and documents with a key in another case. Most registries are written in Go, whose JSON decoder ignores
  the case of keys (Unicode case folding) and takes the last one.

Such a blob is served when the upstream confirms that the repository has it.
"""

from collections.abc import Iterator
from typing import Any, Final

from dockyard.errors import DigestInvalid
from dockyard.oci.documents import parse_document
from dockyard.oci.reference import Digest
from dockyard.oci.schema1 import find_payload

_DOCUMENT_KEYS: Final = frozenset(
    {"schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers", "blobs", "artifactType"}
)
_DESCRIPTOR_KEYS: Final = frozenset({"mediaType", "digest", "size", "urls", "blobSum"})
_IMAGES: Final = frozenset(
    {"", "application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
)
_SCHEMA1: Final = frozenset(
    {
        "",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
_ARTIFACTS: Final = frozenset(
    {"application/vnd.oci.artifact.manifest.v1+json", "application/vnd.cncf.oras.artifact.manifest.v1+json"}
)


def find_named_blobs(body: bytes) -> tuple[Digest, ...]:
    """Return the digests of the blobs that a valid manifest names. Raises BadUpstream for what is not a document."""
    document = parse_document(body)
    if "signatures" in document and find_payload(body) is None:
        return ()
    texts = dict.fromkeys(_find_texts(document))
    return tuple(digest for text in texts if (digest := _find_digest(text)))


def _find_texts(document: dict[str, Any]) -> Iterator[str]:
    if "manifests" in document or _has_key_in_other_case(document, _DOCUMENT_KEYS):
        return
    if "fsLayers" in document:
        types, lists, key = _SCHEMA1, [document["fsLayers"]], "blobSum"
    elif "config" in document:
        types, lists, key = _IMAGES, [[document["config"]], document.get("layers")], "digest"
    else:
        types, lists, key = _ARTIFACTS, [document.get("blobs")], "digest"
    if str(document.get("mediaType") or "") not in types:
        return
    for entries in lists:
        for entry in entries or ():
            if _is_distributed(entry):
                yield str(entry.get(key))


def _find_digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except DigestInvalid:
        return None


def _is_distributed(descriptor: dict[str, Any]) -> bool:
    media_type = str(descriptor.get("mediaType")).lower()
    return not (
        descriptor.get("urls")
        or ".foreign." in media_type
        or ".nondistributable." in media_type
        or _has_key_in_other_case(descriptor, _DESCRIPTOR_KEYS)
    )


def _has_key_in_other_case(values: dict[str, Any], keys: frozenset[str]) -> bool:
    """Whether a key differs from one of `keys` only by its case."""
    others = values.keys() - keys
    return bool(others) and not _FOLDED[keys].isdisjoint(map(str.casefold, others))


_FOLDED: Final = {keys: frozenset(map(str.casefold, keys)) for keys in (_DOCUMENT_KEYS, _DESCRIPTOR_KEYS)}

"""Manifests: opaque bytes that are checked, never rewritten.

A body becomes a Manifest only when its digest is right and it is shaped like exactly one kind of manifest. A document
that could be read as two kinds is refused (CVE-2021-41190): two clients would see two images under one digest.

Nothing but BadUpstream leaves `parse`, whatever the bytes are. The body comes from strangers, so the JSON reader is
kept from all that is costly or ambiguous in it.
"""

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NoReturn, Self

import attrs

from dockyard.errors import BadUpstream, DigestInvalid
from dockyard.oci.reference import Digest

# What clients accept: containers/image and oras stop at 4 MiB, containerd a little above.
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
# The largest real index has some ten thousand. A body of nothing but braces would cost a hundred times its own size.
_MAX_OBJECTS: Final = 200_000

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_IMAGE: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_ARTIFACT: Final = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_IMAGE: Final = "application/vnd.docker.distribution.manifest.v2+json"
SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"
SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"

# Sent upstream whole, whatever the client accepts: a tag is cached once for all clients. Without it some registries
# convert to schema 1.
ACCEPT: Final[tuple[str, ...]] = (
    OCI_INDEX,
    OCI_IMAGE,
    DOCKER_LIST,
    DOCKER_IMAGE,
    OCI_ARTIFACT,
    SCHEMA1_SIGNED,
    SCHEMA1,
)


class Shape(StrEnum):
    """The kinds of manifest, in the words of an error message."""

    INDEX = "an index"
    IMAGE = "an image"
    ARTIFACT = "an artifact"
    SCHEMA1 = "a schema 1 image"


_SHAPES: Final[Mapping[str, Shape]] = {
    OCI_INDEX: Shape.INDEX,
    DOCKER_LIST: Shape.INDEX,
    OCI_IMAGE: Shape.IMAGE,
    DOCKER_IMAGE: Shape.IMAGE,
    OCI_ARTIFACT: Shape.ARTIFACT,
    SCHEMA1_SIGNED: Shape.SCHEMA1,
    SCHEMA1: Shape.SCHEMA1,
}
# The keys that belong to one shape only. An artifact has none; its mediaType is compulsory and tells.
_MARKS: Final[Mapping[str, Shape]] = {
    "manifests": Shape.INDEX,
    "config": Shape.IMAGE,
    "layers": Shape.IMAGE,
    "fsLayers": Shape.SCHEMA1,
}

# RFC 6838 section 4.2. What matches can stand in a header.
_MEDIA_TYPE: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}", re.ASCII
)
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


@attrs.frozen
class Descriptor:
    """What a HEAD tells: media type, digest, and size in bytes."""

    media_type: str
    digest: Digest
    size: int


@attrs.frozen
class Manifest:
    """A verified manifest. `body` is returned to clients unchanged."""

    body: bytes = attrs.field(repr=False)
    media_type: str
    digest: Digest

    @classmethod
    def parse(cls, body: bytes, content_type: str | None, expected: Digest | None) -> Self:
        """Check a body that an upstream sent; raise BadUpstream unless it is a manifest and has the expected digest.

        `content_type` is the header as it came. Without `expected` the digest is the computed sha256.
        """
        if len(body) > MAX_MANIFEST_BYTES:
            raise BadUpstream(f"the upstream's manifest is larger than {MAX_MANIFEST_BYTES} bytes")
        digest = Digest.of(body, expected.algorithm if expected else "sha256")
        if expected and digest != expected:
            raise BadUpstream(f"the upstream sent a manifest with digest {digest} for {expected}")
        return cls(body, _media_type(_read_document(body), _bare_media_type(content_type)), digest)

    @classmethod
    def stored(cls, body: bytes, digest: Digest) -> Self:
        """Check a body that was read back from storage; raise BadUpstream if it is not what was put there."""
        return cls.parse(body, None, digest)

    @property
    def size(self) -> int:
        return len(self.body)

    @property
    def children(self) -> tuple[Digest, ...]:
        """The manifests that an index names."""
        return self._digests("manifests")

    @property
    def blobs(self) -> tuple[Digest, ...]:
        """The config and the layers that an image names, or the blobs of an artifact."""
        return self._digests("config", "layers", "blobs")

    def _digests(self, *keys: str) -> tuple[Digest, ...]:
        document = _read_document(self.body)
        found = [entry for key in keys for entry in _as_list(document.get(key))]
        texts = [str(entry.get("digest")) for entry in found if isinstance(entry, dict)]
        return tuple(digest for text in texts if (digest := _find_digest(text)))

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, self.size)


def _media_type(document: dict[str, Any], content_type: str) -> str:
    shape = _shape(document)
    declared = document.get("mediaType")
    if declared in (None, ""):  # Go programs write an unset one as ""
        return content_type if _SHAPES.get(content_type) == shape else _infer_media_type(document, shape)
    if not isinstance(declared, str) or not _MEDIA_TYPE.fullmatch(declared):
        raise BadUpstream("the mediaType of the upstream's manifest is not a media type")
    if _SHAPES.get(declared, shape) != shape:
        raise BadUpstream(f"the upstream's manifest calls itself {declared} but is shaped like {shape}")
    if declared in _SHAPES and content_type in _SHAPES and declared != content_type:
        raise BadUpstream(f"the upstream's manifest calls itself {declared} but was sent as {content_type}")
    return declared


def _find_digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except DigestInvalid:
        return None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _shape(document: dict[str, Any]) -> Shape:
    """Return the one shape that the document has; raise BadUpstream when it has none, or marks of several."""
    found = {shape for key, shape in _MARKS.items() if key in document}
    if document.get("mediaType") == OCI_ARTIFACT:
        found.add(Shape.ARTIFACT)
    if len(found) > 1:
        raise BadUpstream(f"the upstream's manifest is ambiguous: it looks like {' and '.join(sorted(found))}")
    if not found or not _has_shape(document, shape := found.pop()):
        raise BadUpstream("what the upstream sent is not a manifest")
    return shape


def _has_shape(document: dict[str, Any], shape: Shape) -> bool:
    match shape:
        case Shape.INDEX:
            return _is_list_of_objects(document["manifests"])
        case Shape.IMAGE:
            is_whole = isinstance(document.get("config"), dict) and "layers" in document
            return is_whole and _is_list_of_objects(document["layers"])
        case Shape.ARTIFACT:
            return _is_list_of_objects(document.get("blobs"))
        case Shape.SCHEMA1:
            return document.get("schemaVersion") == 1 and _is_list_of_objects(document["fsLayers"])


def _is_list_of_objects(value: Any) -> bool:
    """Tell whether this is a list of JSON objects. Go programs write an empty list as null."""
    return value is None or (isinstance(value, list) and all(isinstance(item, dict) for item in value))


def _infer_media_type(document: dict[str, Any], shape: Shape) -> str:
    """Return the type of a manifest that has no mediaType. Docker's schema 2 types demand one, so it is OCI's."""
    match shape:
        case Shape.INDEX:
            return OCI_INDEX
        case Shape.IMAGE:
            return OCI_IMAGE
        case Shape.ARTIFACT:
            return OCI_ARTIFACT
        case Shape.SCHEMA1:
            return SCHEMA1_SIGNED if document.get("signatures") else SCHEMA1


def _bare_media_type(content_type: str | None) -> str:
    """Return the Content-Type in lower case and without parameters; empty when there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def _read_document(body: bytes) -> dict[str, Any]:
    if body.count(b"{") + body.count(b"[") > _MAX_OBJECTS:
        raise BadUpstream("the upstream's manifest has too many parts")
    try:
        text = body.decode("utf-8")  # first, since json.loads would accept UTF-16 and UTF-32 bytes too
        document = json.loads(
            text,
            object_pairs_hook=_object_without_duplicates,
            parse_float=str,  # no manifest needs one, and a long one is costly to convert
            parse_constant=_refuse_constant,
        )
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(document, ensure_ascii=False).encode("utf-8")  # raises for half a pair
    except (ValueError, RecursionError) as exc:  # JSONDecodeError and UnicodeError are ValueErrors
        raise BadUpstream("what the upstream sent is not a JSON document that can be trusted") from exc
    if not isinstance(document, dict):
        raise BadUpstream("what the upstream sent is not a manifest")
    return document


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse what two JSON readers would read in two ways."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("duplicate keys")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

"""Manifests: bytes that are validated and never rewritten.

A body becomes a Manifest only if its digest matches and it has the structure of exactly one kind of manifest. A
document that could be parsed as two kinds is rejected (CVE-2021-41190), because two clients would pull two different
images under one digest.

The body is untrusted: `Manifest.parse` raises only BadUpstream, for any bytes, and JSON that is costly or ambiguous to
parse is rejected.
"""

import json
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, NoReturn, Self

import attrs

from dockyard.errors import BadUpstream, DigestInvalid
from dockyard.oci.reference import Digest

# The limit of clients: containers/image and oras accept 4 MiB, containerd slightly more.
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
# The largest real index has about ten thousand. Parsing a body that consists of braces takes a hundred times its size.
_MAX_JSON_OBJECTS: Final = 200_000

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_IMAGE: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_ARTIFACT: Final = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_IMAGE: Final = "application/vnd.docker.distribution.manifest.v2+json"
SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"
SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"

# Sent upstream completely, independent of what the client accepts, because a tag is cached once for all clients.
# Without it some registries convert the manifest to schema 1.
ACCEPT: Final[tuple[str, ...]] = (
    OCI_INDEX,
    OCI_IMAGE,
    DOCKER_LIST,
    DOCKER_IMAGE,
    OCI_ARTIFACT,
    SCHEMA1_SIGNED,
    SCHEMA1,
)


class ManifestKind(StrEnum):
    """The kinds of manifest. The values are for error messages."""

    INDEX = "an index"
    IMAGE = "an image"
    ARTIFACT = "an artifact"
    SCHEMA1 = "a schema 1 image"


_KINDS: Final[Mapping[str, ManifestKind]] = {
    OCI_INDEX: ManifestKind.INDEX,
    DOCKER_LIST: ManifestKind.INDEX,
    OCI_IMAGE: ManifestKind.IMAGE,
    DOCKER_IMAGE: ManifestKind.IMAGE,
    OCI_ARTIFACT: ManifestKind.ARTIFACT,
    SCHEMA1_SIGNED: ManifestKind.SCHEMA1,
    SCHEMA1: ManifestKind.SCHEMA1,
}
# The keys that only one kind has. An artifact has none, but its mediaType is required.
_DISTINCTIVE_KEYS: Final[Mapping[str, ManifestKind]] = {
    "manifests": ManifestKind.INDEX,
    "config": ManifestKind.IMAGE,
    "layers": ManifestKind.IMAGE,
    "fsLayers": ManifestKind.SCHEMA1,
}

# RFC 6838 section 4.2. Text that matches is valid in a header.
_MEDIA_TYPE: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}", re.ASCII
)
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


@attrs.frozen
class Descriptor:
    """Media type, digest, and size in bytes: the result of a HEAD request."""

    media_type: str
    digest: Digest
    size: int


@attrs.frozen
class Manifest:
    """A validated manifest. `body` is sent to clients unchanged."""

    body: bytes = attrs.field(repr=False)
    media_type: str
    digest: Digest

    @classmethod
    def parse(cls, body: bytes, content_type: str | None, expected: Digest | None) -> Self:
        """Validate the body of an upstream's response. Raises BadUpstream unless it is a manifest with this digest.

        `content_type` is the value of the header. Without `expected` the digest is the sha256 of the body.
        """
        if len(body) > MAX_MANIFEST_BYTES:
            raise BadUpstream(f"the upstream's manifest is larger than {MAX_MANIFEST_BYTES} bytes")
        digest = Digest.of(body, expected.algorithm if expected else "sha256")
        if expected and digest != expected:
            raise BadUpstream(f"the upstream sent a manifest with digest {digest} instead of {expected}")
        return cls(body, _media_type(parse_document(body), strip_parameters(content_type)), digest)

    @classmethod
    def stored(cls, body: bytes, digest: Digest) -> Self:
        """Validate a body that was read from storage. Raises BadUpstream if it is damaged."""
        return cls.parse(body, None, digest)

    @property
    def size(self) -> int:
        return len(self.body)

    @property
    def children(self) -> tuple[Digest, ...]:
        """The digests of the manifests in an index."""
        return self._digests("manifests")

    @property
    def blobs(self) -> tuple[Digest, ...]:
        """The digests of the config and layers of an image, or of the blobs of an artifact."""
        return self._digests("config", "layers", "blobs")

    def _digests(self, *keys: str) -> tuple[Digest, ...]:
        document = parse_document(self.body)
        found = [entry for key in keys for entry in _as_list(document.get(key))]
        texts = [str(entry.get("digest")) for entry in found if isinstance(entry, dict)]
        return tuple(digest for text in texts if (digest := _find_digest(text)))

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, self.size)


def _media_type(document: dict[str, Any], content_type: str) -> str:
    kind = _determine_kind(document)
    declared = document.get("mediaType")
    if declared in (None, ""):  # how Go programs encode an unset one
        return content_type if _KINDS.get(content_type) == kind else _infer_media_type(document, kind)
    if not isinstance(declared, str) or not _MEDIA_TYPE.fullmatch(declared):
        raise BadUpstream("the mediaType of the upstream's manifest is not a media type")
    if _KINDS.get(declared, kind) != kind:
        raise BadUpstream(f"the upstream's manifest has the mediaType {declared} but the structure of {kind}")
    if declared in _KINDS and content_type in _KINDS and declared != content_type:
        raise BadUpstream(f"the upstream's manifest has the mediaType {declared} but the Content-Type {content_type}")
    return declared


def _find_digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except DigestInvalid:
        return None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _determine_kind(document: dict[str, Any]) -> ManifestKind:
    """Return the kind of a document. Raises BadUpstream if it has none, or distinctive keys of several."""
    kinds = {kind for key, kind in _DISTINCTIVE_KEYS.items() if key in document}
    if document.get("mediaType") == OCI_ARTIFACT:
        kinds.add(ManifestKind.ARTIFACT)
    if len(kinds) > 1:
        raise BadUpstream(f"the upstream's manifest is ambiguous: it has the keys of {' and '.join(sorted(kinds))}")
    if not kinds or not _has_structure(document, kind := kinds.pop()):
        raise BadUpstream("the upstream's response is not a manifest")
    return kind


def _has_structure(document: dict[str, Any], kind: ManifestKind) -> bool:
    match kind:
        case ManifestKind.INDEX:
            return _is_list_of_objects(document["manifests"])
        case ManifestKind.IMAGE:
            is_complete = isinstance(document.get("config"), dict) and "layers" in document
            return is_complete and _is_list_of_objects(document["layers"])
        case ManifestKind.ARTIFACT:
            return _is_list_of_objects(document.get("blobs"))
        case ManifestKind.SCHEMA1:
            return document.get("schemaVersion") == 1 and _is_list_of_objects(document["fsLayers"])


def _is_list_of_objects(value: Any) -> bool:
    """Return whether this is a list of JSON objects. Go programs encode an empty list as null."""
    return value is None or (isinstance(value, list) and all(isinstance(item, dict) for item in value))


def _infer_media_type(document: dict[str, Any], kind: ManifestKind) -> str:
    """Return the type of a manifest without mediaType. It is an OCI type, because schema 2 of Docker requires one."""
    match kind:
        case ManifestKind.INDEX:
            return OCI_INDEX
        case ManifestKind.IMAGE:
            return OCI_IMAGE
        case ManifestKind.ARTIFACT:
            return OCI_ARTIFACT
        case ManifestKind.SCHEMA1:
            return SCHEMA1_SIGNED if document.get("signatures") else SCHEMA1


def strip_parameters(content_type: str | None) -> str:
    """Return the Content-Type in lower case and without parameters; empty if there is none."""
    return (content_type or "").partition(";")[0].strip().lower()


def parse_document(body: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises BadUpstream for what two parsers could read differently, or what is costly."""
    if body.count(b"{") + body.count(b"[") > _MAX_JSON_OBJECTS:
        raise BadUpstream("the upstream's manifest has too many parts")
    try:
        text = body.decode("utf-8")  # because json.loads also accepts UTF-16 and UTF-32 bytes
        document = json.loads(
            text,
            object_pairs_hook=_object_without_duplicates,
            parse_float=str,  # manifests need no floats, and long ones are costly to convert
            parse_constant=_reject_constant,
        )
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(document, ensure_ascii=False).encode("utf-8")  # raises ValueError for a lone surrogate
    except (ValueError, RecursionError) as exc:  # JSONDecodeError and UnicodeError are ValueErrors
        raise BadUpstream("the upstream's response is not valid, unambiguous JSON") from exc
    if not isinstance(document, dict):
        raise BadUpstream("the upstream's response is not a manifest")
    return document


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Reject duplicate keys, which JSON parsers handle in different ways."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("duplicate keys")
    return document


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

"""Manifests: bytes that are validated and never rewritten.

A body becomes a Manifest only if its digest matches and it has the structure of exactly one kind of manifest. A
document that could be parsed as two kinds is rejected (CVE-2021-41190), because two clients would pull two different
images under one digest.

The digest is that of the body. For a signed schema 1 manifest it is that of its payload; see `schema1`.

The media type is the Content-Type of the upstream, if that is a type of a manifest: clients reject a manifest whose
type changes. It must agree with the `mediaType` in the body, but for indexes: many registries send those of OCI with
Docker's type.

The body is untrusted: `Manifest.parse` raises only BadUpstream, for any bytes.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final, Self

import attrs

from dockyard.errors import BadUpstream, DigestInvalid
from dockyard.oci.documents import parse_document
from dockyard.oci.named_blobs import find_named_blobs
from dockyard.oci.reference import Digest
from dockyard.oci.schema1 import find_payload

# The limit of clients: containers/image and oras accept 4 MiB, containerd slightly more.
MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_IMAGE: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_ARTIFACT: Final = "application/vnd.oci.artifact.manifest.v1+json"
ORAS_ARTIFACT: Final = "application/vnd.cncf.oras.artifact.manifest.v1+json"
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
    ORAS_ARTIFACT,
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
    ORAS_ARTIFACT: ManifestKind.ARTIFACT,
    SCHEMA1_SIGNED: ManifestKind.SCHEMA1,
    SCHEMA1: ManifestKind.SCHEMA1,
}
# The keys that only one kind has. An artifact has none: its type must be stated.
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
# A type that is not in the table, but says more than application/json does.
_VENDOR_TYPE: Final = re.compile(r"application/vnd\.[A-Za-z0-9!#$&^_.+-]{1,122}", re.ASCII)


@attrs.frozen
class Descriptor:
    """Media type, digest, and size in bytes: the result of a HEAD request.

    `manifest` is what they describe, if a GET was necessary to find them out. `age_s`: how long ago the upstream has
    checked them itself, if it is a cache (RFC 9111 section 5.1). `is_stale`: it could not check them now.
    """

    media_type: str
    digest: Digest
    size: int
    manifest: "Manifest | None" = attrs.field(default=None, eq=False, repr=False)
    age_s: int = attrs.field(default=0, eq=False)
    is_stale: bool = attrs.field(default=False, eq=False)


@attrs.frozen
class Manifest:
    """A validated manifest. `body` is sent to clients unchanged.

    `is_of_other_type`: the registry sent it with the type of another kind of manifest, or with a type that is none. The
    registry has accepted it as that, and may not have looked for the blobs that it names.
    """

    body: bytes = attrs.field(repr=False)
    media_type: str
    digest: Digest
    is_of_other_type: bool = attrs.field(default=False, eq=False, repr=False)

    @classmethod
    def parse(cls, body: bytes, content_type: str | None, expected: Digest | None) -> Self:
        """Validate the body of an upstream's response. Raises BadUpstream unless it is a manifest with this digest.

        `content_type` is the value of the header. Without `expected` the digest is a sha256 digest.
        """
        if len(body) > MAX_MANIFEST_BYTES:
            raise BadUpstream(f"the upstream's manifest is larger than {MAX_MANIFEST_BYTES} bytes")
        algorithm = expected.algorithm if expected else "sha256"
        digest = Digest.of(body, algorithm)
        if digest != expected and (payload := find_payload(body)) is not None:
            digest = Digest.of(payload, algorithm)
        if expected and digest != expected:
            raise BadUpstream(f"the upstream sent a manifest with digest {digest} instead of {expected}")
        stated = strip_parameters(content_type)
        media_type, kind = _media_type(parse_document(body), stated)
        return cls(body, media_type, digest, is_of_other_type=_is_of_other_type(stated, kind))

    @classmethod
    def stored(cls, body: bytes, digest: Digest, media_type: str | None = None) -> Self:
        """Validate a body that was read from storage. Raises BadUpstream if it is damaged.

        `media_type` is what is stored with it. One that does not fit is ignored: in a bucket, it may be anything.
        """
        try:
            return cls.parse(body, media_type, digest)
        except BadUpstream:
            if media_type is None:
                raise
            return cls.parse(body, None, digest)

    @property
    def declares_media_type(self) -> bool:
        """Whether the body itself has this media type. Otherwise the type must be stored with it."""
        return parse_document(self.body).get("mediaType") == self.media_type

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
        return self._digests("config", "layers", "fsLayers", "blobs")

    @property
    def named_blobs(self) -> tuple[Digest, ...]:
        """The blobs that may be served under the repository of this manifest because of it. See `named_blobs`."""
        return find_named_blobs(self.body)

    def _digests(self, *keys: str) -> tuple[Digest, ...]:
        document = parse_document(self.body)
        found = [entry for key in keys for entry in _as_list(document.get(key))]
        texts = [str(entry.get("digest") or entry.get("blobSum")) for entry in found if isinstance(entry, dict)]
        return tuple(digest for text in texts if (digest := _find_digest(text)))

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, self.size, self)


def find_blob_size(body: bytes, digest: Digest) -> int | None:
    """The size that the descriptor of a blob has in a stored manifest; None when there is none."""
    if digest.encoded.encode() not in body:
        return None
    try:
        document = parse_document(body)
    except BadUpstream:
        return None
    for key in ("config", "layers", "blobs"):
        for entry in _as_list(document.get(key)):
            size = entry.get("size") if isinstance(entry, dict) and entry.get("digest") == str(digest) else None
            if type(size) is int and size >= 0:
                return size
    return None


def _media_type(document: dict[str, Any], content_type: str) -> tuple[str, ManifestKind]:
    """Return the media type of a document, and its kind. Raises BadUpstream."""
    declared = document.get("mediaType")
    if declared is None:
        declared = ""  # how Go programs encode an unset one
    if not isinstance(declared, str) or (declared and not _MEDIA_TYPE.fullmatch(declared)):
        raise BadUpstream("the mediaType of the upstream's manifest is not a media type")
    kind = _determine_kind(document, declared, content_type)
    if _KINDS.get(declared, kind) != kind:
        raise BadUpstream(f"the upstream's manifest has the mediaType {declared} but the structure of {kind}")
    is_other_type = declared in _KINDS and content_type in _KINDS and declared != content_type
    if _KINDS.get(content_type) == kind and (kind is ManifestKind.INDEX or not is_other_type):
        return content_type, kind
    if is_other_type:
        raise BadUpstream(f"the upstream's manifest has the mediaType {declared} but the Content-Type {content_type}")
    return declared or (content_type if _is_vendor_type(content_type) else _infer_media_type(document, kind)), kind


def _is_vendor_type(content_type: str) -> bool:
    return content_type not in _KINDS and _VENDOR_TYPE.fullmatch(content_type) is not None


def _is_of_other_type(content_type: str, kind: ManifestKind) -> bool:
    return _KINDS.get(content_type, kind) is not kind or _is_vendor_type(content_type)


def _find_digest(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except DigestInvalid:
        return None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _determine_kind(document: dict[str, Any], declared: str, content_type: str) -> ManifestKind:
    """Return the kind of a document. Raises BadUpstream if it has none, or distinctive keys of several."""
    kinds = {kind for key, kind in _DISTINCTIVE_KEYS.items() if key in document}
    stated = _KINDS.get(declared, _KINDS.get(content_type))
    if stated and (not kinds or _KINDS.get(declared) is ManifestKind.ARTIFACT):
        kinds.add(stated)
    if len(kinds) > 1:
        raise BadUpstream(f"the upstream's manifest is ambiguous: it has the keys of {' and '.join(sorted(kinds))}")
    if not kinds or not _has_structure(document, kind := kinds.pop(), is_stated=kind is stated):
        raise BadUpstream("the upstream's response is not a manifest")
    return kind


def _has_structure(document: dict[str, Any], kind: ManifestKind, *, is_stated: bool) -> bool:
    """Return whether a document has the structure of a kind. Where the kind is stated, lists may be left out."""
    may_be_absent = is_stated and document.get("schemaVersion") == 2
    match kind:
        case ManifestKind.INDEX:
            return _is_list_of_objects(document, "manifests", may_be_absent=may_be_absent)
        case ManifestKind.IMAGE:
            has_config = isinstance(document.get("config"), dict)
            return has_config and _is_list_of_objects(document, "layers", may_be_absent=may_be_absent)
        case ManifestKind.ARTIFACT:
            return _is_list_of_objects(document, "blobs", may_be_absent=bool(document.get("mediaType")))
        case ManifestKind.SCHEMA1:
            return document.get("schemaVersion") == 1 and _is_list_of_objects(document, "fsLayers")


def _is_list_of_objects(document: dict[str, Any], key: str, *, may_be_absent: bool = False) -> bool:
    """Return whether the value is a list of JSON objects. Go programs encode an empty list as null."""
    value = document.get(key)
    if value is None:
        return key in document or may_be_absent
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


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

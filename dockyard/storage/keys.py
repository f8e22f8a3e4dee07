"""Object keys, as pure functions.

They are part of the stored format and must not change: existing buckets and directories are read by them. `prefix` is
prepended as it is configured (`cache/`). Names are full names with the prefix of their upstream, normalised by
`routing`.

No two objects share a key: the last component but one is `tags` or an algorithm, and what precedes it is the whole
name. But one key may be a directory of another: a repository may be called `x/tags/latest`, so that a file system needs
a directory where it already has a file.
"""

from dockyard.errors import RegistryError
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.storage.items import BlobItem, Item, ManifestItem, TagItem


def manifest_key(prefix: str, name: Name, digest: Digest) -> str:
    """Return the key of a manifest's bytes."""
    return f"{manifest_root(prefix)}{name}/{digest.algorithm}/{digest.encoded}"


def media_type_key(prefix: str, name: Name, digest: Digest) -> str:
    """Return the key of the media type of a manifest, if its bytes do not have it.

    It is not used in a bucket: there the type is the Content-Type of the object.
    """
    return f"{media_type_root(prefix)}{name}/{digest.algorithm}/{digest.encoded}"


def tag_key(prefix: str, name: Name, tag: Tag) -> str:
    """Return the key of a tag's pointer, which holds a digest as text."""
    return f"{manifest_root(prefix)}{name}/tags/{tag}"


def list_key(prefix: str, name: Name, subject: Digest | None) -> str:
    """Return the key of the last known list of a repository: its tags, or the referrers of the manifest `subject`.

    No component of a name begins with an underscore, so no list is a directory of another.
    """
    which = "_tags" if subject is None else f"_referrers/{subject.algorithm}/{subject.encoded}"
    return f"{list_root(prefix)}{name}/{which}"


def link_key(prefix: str, name: Name, digest: Digest) -> str:
    """Return the key of a link: an empty object that says that a manifest of the repository names the blob.

    It is only used in a bucket, and not an item: it is written with its manifest.
    """
    return f"{prefix}links/{name}/{digest.algorithm}/{digest.encoded}"


def blob_key(prefix: str, digest: Digest) -> str:
    """Return the key of a blob. All repositories share it."""
    return f"{blob_root(prefix)}{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"


def blob_root(prefix: str) -> str:
    """Return the common prefix of the keys of all blobs."""
    return f"{prefix}blobs/"


def manifest_root(prefix: str) -> str:
    """Return the common prefix of the keys of all manifests and tag pointers."""
    return f"{prefix}manifests/"


def list_root(prefix: str) -> str:
    """Return the common prefix of the keys of all lists."""
    return f"{prefix}lists/"


def media_type_root(prefix: str) -> str:
    """Return the common prefix of the keys of all media types."""
    return f"{prefix}types/"


def find_item(prefix: str, key: str) -> Item | None:
    """Return the item that has this key; None when no item has it."""
    kind, *parts = key.removeprefix(prefix).split("/")
    try:
        match kind, parts:
            case "blobs", [algorithm, _, encoded]:
                return BlobItem(Digest.parse(f"{algorithm}:{encoded}"))
            case "manifests", [*name, "tags", tag]:
                return TagItem(Name.parse("/".join(name)), Tag.parse(tag))
            case "manifests", [*name, algorithm, encoded]:
                return ManifestItem(Name.parse("/".join(name)), Digest.parse(f"{algorithm}:{encoded}"))
    except RegistryError:
        pass
    return None

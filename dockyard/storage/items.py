"""What is stored under a key: blobs, manifests of a repository, and tag pointers. Each has one text form."""

import attrs

from dockyard.errors import RegistryError
from dockyard.oci.reference import Digest, Name, Tag


@attrs.frozen
class BlobItem:
    """A blob."""

    digest: Digest

    def __str__(self) -> str:
        return f"blob {self.digest}"


@attrs.frozen
class ManifestItem:
    """A manifest of a repository."""

    name: Name
    digest: Digest

    def __str__(self) -> str:
        return f"manifest {self.name} {self.digest}"


@attrs.frozen
class TagItem:
    """The pointer of a tag to a manifest."""

    name: Name
    tag: Tag

    def __str__(self) -> str:
        return f"tag {self.name} {self.tag}"


Item = BlobItem | ManifestItem | TagItem


def parse_item(text: str) -> Item:
    """Parse the text form of an item, as `str(item)` gives it. Raises ValueError."""
    try:
        match text.split(" "):
            case ["blob", digest]:
                return BlobItem(Digest.parse(digest))
            case ["manifest", name, digest]:
                return ManifestItem(Name.parse(name), Digest.parse(digest))
            case ["tag", name, tag]:
                return TagItem(Name.parse(name), Tag.parse(tag))
    except RegistryError as exc:
        raise ValueError(exc.message) from exc
    raise ValueError("not an item")

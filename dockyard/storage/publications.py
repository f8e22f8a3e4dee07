"""What is to be brought to S3, and the directory that remembers it.

An item that is in the local tier and not yet in the bucket has an empty file here, named for it. The directory is the
queue: it survives a restart, and an outage of S3 of any length. Nothing else about publishing is kept anywhere.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

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
    """The pointer of a tag."""

    name: Name
    tag: Tag

    def __str__(self) -> str:
        return f"tag {self.name} {self.tag}"


Item = BlobItem | ManifestItem | TagItem


def parse_item(text: str) -> Item:
    """The item that `str` wrote. Raises ValueError."""
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
    raise ValueError("no such kind of item")


class Publications:
    """The items that are not yet in the bucket. Methods raise OSError only where they say so."""

    def __init__(self, directory: Path) -> None:
        """Raises OSError when the directory cannot be made."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def add(self, item: Item) -> None:
        """Remember an item. A name too long for the file system is not remembered: it is published when next used."""
        with contextlib.suppress(OSError):
            (self._directory / quote(str(item), safe=" ")).touch()

    def remove(self, item: Item) -> None:
        """The item is in the bucket, or nowhere any more."""
        with contextlib.suppress(OSError):
            (self._directory / quote(str(item), safe=" ")).unlink(missing_ok=True)

    def __contains__(self, item: Item) -> bool:
        return (self._directory / quote(str(item), safe=" ")).exists()

    def __iter__(self) -> Iterator[Item]:
        """All items; a file that is none is passed over."""
        with contextlib.suppress(OSError):
            for path in sorted(self._directory.iterdir()):
                with contextlib.suppress(ValueError):
                    yield parse_item(unquote(path.name))

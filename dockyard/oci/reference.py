"""Names, tags and digests.

The grammar is that of the OCI distribution specification, "Pulling manifests", and of the image specification,
"Digests". The length is checked before a pattern is matched, and patterns match the whole text in ASCII.
"""

import functools
import hashlib
import re
from typing import Final, Protocol, Self

import attrs

from dockyard.errors import DigestInvalid, NameInvalid, ReferenceInvalid

# Many clients limit names to 255 characters (a note in the specification), and file systems limit each component.
MAX_NAME_CHARS: Final = 255
MAX_TAG_CHARS: Final = 128
# Digests that were parsed are kept: the same few are requested again and again.
MAX_CACHED_DIGESTS: Final = 1024

_COMPONENT: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG: Final = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]*", re.ASCII)
_HEX: Final = re.compile(r"[a-f0-9]+", re.ASCII)

# Supported algorithms, and the number of hex digits of each. hashlib.new() supports md5 and variable lengths too.
_HEX_DIGITS: Final = {"sha256": 64, "sha512": 128}


class Hasher(Protocol):
    """A hash object of hashlib."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@attrs.frozen
class Name:
    """A repository name, such as `docker.io/library/nginx`."""

    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a name of at most 255 characters. Raises NameInvalid."""
        if len(text) > MAX_NAME_CHARS:
            raise NameInvalid(f"a repository name has at most {MAX_NAME_CHARS} characters")
        if not _NAME.fullmatch(text):
            raise NameInvalid(f"not a repository name: {quote(text)}")
        return cls(text)

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(self.value.split("/"))

    def __str__(self) -> str:
        return self.value


@attrs.frozen
class Tag:
    """A tag, such as `latest`."""

    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a tag of at most 128 characters. Raises ReferenceInvalid."""
        if len(text) > MAX_TAG_CHARS:
            raise ReferenceInvalid(f"a tag has at most {MAX_TAG_CHARS} characters")
        if not _TAG.fullmatch(text):
            raise ReferenceInvalid(f"not a tag: {quote(text)}")
        return cls(text)

    def __str__(self) -> str:
        return self.value


@attrs.frozen
class Digest:
    """The content address of a blob or manifest. `encoded` is lower-case hex."""

    algorithm: str
    encoded: str

    @classmethod
    @functools.lru_cache(MAX_CACHED_DIGESTS)
    def parse(cls, text: str) -> Self:
        """Parse a sha256 or sha512 digest. Raises DigestInvalid, also for algorithms that cannot be verified."""
        algorithm, _, encoded = text.partition(":")
        hex_digits = _HEX_DIGITS.get(algorithm)
        if hex_digits is None:
            raise DigestInvalid(f"not a sha256 or sha512 digest: {quote(text)}")
        if len(encoded) != hex_digits or not _HEX.fullmatch(encoded):
            raise DigestInvalid(f"a {algorithm} digest has {hex_digits} lower-case hex digits: {quote(text)}")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview, algorithm: str = "sha256") -> Self:
        """Return the digest of these bytes."""
        hasher = _new_hasher(algorithm)
        hasher.update(data)
        return cls(algorithm, hasher.hexdigest())

    def hasher(self) -> Hasher:
        """Return a new hasher of the algorithm of this digest."""
        return _new_hasher(self.algorithm)

    def matches(self, hasher: Hasher) -> bool:
        """Return whether the data that the hasher was updated with has this digest."""
        return hasher.hexdigest() == self.encoded

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


Reference = Tag | Digest


def parse_reference(text: str) -> Reference:
    """Parse the last part of a manifest URL, a digest if it has a colon, else a tag.

    Raises DigestInvalid or ReferenceInvalid.
    """
    return Digest.parse(text) if ":" in text else Tag.parse(text)


def quote(text: str) -> str:
    """Return a text from a client as it may be in an error message: in quotes, printable ASCII, truncated."""
    return ascii(text) if len(text) <= MAX_TAG_CHARS else f"{text[:MAX_TAG_CHARS]!a}..."


def replace_unprintable(text: str) -> str:
    """Return a text of a server as it may be printed on a terminal: with spaces instead of control characters."""
    return "".join(char if char.isprintable() else " " for char in text)


def _new_hasher(algorithm: str) -> Hasher:
    match algorithm:
        case "sha256":
            return hashlib.sha256()
        case "sha512":
            return hashlib.sha512()
        case _:
            raise ValueError(f"unsupported digest algorithm: {algorithm}")

"""Parses the clients in `who` of rules and in `members` of groups. Pure."""

import enum
import re
from typing import Final, Self

import attrs

from dockyard.oci.patterns import ANY_TEXT, matches_text

ANONYMOUS: Final = "anonymous"
AUTHENTICATED: Final = "authenticated"
GROUP: Final = "group"
NETWORK: Final = "network"
RESERVED_NAMES: Final = frozenset({ANONYMOUS, AUTHENTICATED, GROUP, NETWORK})
"""Names that networks, groups, issuers and users must not have."""

_NO_TEXT: Final = "\0"  # stands for text that is in no name
_EVERYBODY: Final = frozenset({"*", "**"})


class ClientKind(enum.Enum):
    """What an entry of `who` refers to."""

    ANONYMOUS = enum.auto()
    AUTHENTICATED = enum.auto()
    USER = enum.auto()
    """A user of the htpasswd file."""
    TOKEN = enum.auto()
    """A name in tokens of an issuer."""
    GROUP = enum.auto()
    """A group of `access.groups`."""
    TOKEN_GROUP = enum.auto()
    """A group in tokens of an issuer."""
    NETWORK = enum.auto()
    """A network of `access.networks`."""


@attrs.frozen
class Clients:
    """An entry of `who`. `name` is that of the user, the group, the network or the issuer.

    `text` is the pattern for the name, or the group, in tokens of the issuer: `*` stands for any text.
    """

    kind: ClientKind
    name: str = ""
    text: str = ""

    @classmethod
    def parse(cls, entry: str) -> Self:
        """Parse an entry. Raises ValueError with the remedy."""
        if not entry:
            raise ValueError("is empty: write a name, or remove it")
        if re.search(r"\s", entry):
            raise ValueError("has a space in it: write one name in each element of the list")
        if kind := _KEYWORDS.get(entry):
            return cls(kind)
        first, colon, rest = entry.partition(":")
        if not colon:
            _check_user(entry)
            return cls(ClientKind.USER, entry)
        if not rest:
            raise ValueError(f"has no name after the colon: write {first}:NAME")
        if first == NETWORK:
            return cls(ClientKind.NETWORK, rest)
        if first == GROUP:
            issuer, colon, text = rest.partition(":")
            if colon and not (issuer and text):
                raise ValueError("must be group:NAME, or group:ISSUER:NAME for a group in tokens")
            return cls(ClientKind.TOKEN_GROUP, issuer, text) if colon else cls(ClientKind.GROUP, rest)
        if not first:
            raise ValueError("has no issuer before the colon: write ISSUER:NAME")
        return cls(ClientKind.TOKEN, first, rest)

    def matches_name(self, name: str) -> bool:
        """Return whether a name in a token, or a group in it, as `ISSUER:CLAIM`, is one of these."""
        issuer, colon, claim = name.partition(":")
        return bool(colon) and issuer == self.name and matches_text(self.text, claim)

    def includes(self, other: "Clients") -> bool:
        """Return whether all clients of another entry of the same kind are in this one."""
        if (self.kind, self.name) != (other.kind, other.name):
            return False
        return self.text == other.text or matches_text(self.text, other.text.replace(ANY_TEXT, _NO_TEXT))


_KEYWORDS: Final = {ANONYMOUS: ClientKind.ANONYMOUS, AUTHENTICATED: ClientKind.AUTHENTICATED}


def _check_user(name: str) -> None:
    if name.lower() in RESERVED_NAMES:
        remedy = f"write {name.lower()}" if name.lower() in _KEYWORDS else f"write {name.lower()}:NAME"
        raise ValueError(f"is not the name of a user: {remedy}")
    if name in _EVERYBODY:
        raise ValueError(
            "is not the name of a user: for all clients leave `who` empty, for all with a login write authenticated"
        )
    if ANY_TEXT in name:
        raise ValueError(
            "has * in it, which stands for any text in names of tokens (ISSUER:NAME) only: write each user, or a group"
        )

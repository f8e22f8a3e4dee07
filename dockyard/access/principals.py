"""Who sends a request. Pure."""

from typing import Literal

import attrs

Source = Literal["none", "htpasswd", "jwt"]


@attrs.frozen(cache_hash=True)
class Principal:
    """The client of a request, as far as it is known.

    `name` is that of a verified login: a user of the htpasswd file, or `ISSUER:CLAIM` of a token. It is empty without a
    login. `groups` are those of `access.groups` and, as `ISSUER:CLAIM`, those of a token. `networks` are the names of
    the networks that contain the address of the client, with or without a login.
    """

    name: str = ""
    groups: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    source: Source = "none"

    @property
    def is_authenticated(self) -> bool:
        """Whether the client has a verified login."""
        return self.source != "none"

    def __str__(self) -> str:
        """The client in logs."""
        if self.is_authenticated:
            return self.name
        return " ".join(f"network:{name}" for name in sorted(self.networks)) or "anonymous"

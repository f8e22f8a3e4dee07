"""Access tokens: what `/token` gives to clients that speak the token protocol of registries. For one thread.

An access token is a login that is sealed, with the time when that was done; or no login, for clients without one. A
request that has it is treated as if the client had sent the login itself: nothing is decided when a token is made, so a
user that is removed, or a rule that is changed, holds at once for tokens that exist.

See "Token Authentication Specification" of the distribution project.
"""

import json
import re
import time
from collections.abc import Callable
from typing import ClassVar, Final

import attrs
from cachetools import LRUCache

from dockyard.access.seal import Seal
from dockyard.errors import LoginRequired, RequestInvalid
from dockyard.oci.login import Login, format_authorization

# Clients count from when they receive the token, and clocks of several servers differ.
MAX_SKEW_S: Final = 60.0
MAX_TOKEN_CHARS: Final = 12 * 1024
MAX_REMEMBERED_CHARS: Final = 2**20
MARK: Final = "dockyard."
PURPOSE: Final = b"dockyard access tokens"
# Python decodes other texts as Base64 too, and ignores what does not fit.
_TOKEN: Final = re.compile(r"dockyard\.(?:[A-Za-z0-9_-]{4})+(?:[A-Za-z0-9_-]{2}==|[A-Za-z0-9_-]{3}=)?", re.ASCII)


@attrs.frozen
class _Opened:
    """What is in a token: the value of the Authorization header that it stands for, and until when it is valid."""

    authorization: str | None = attrs.field(repr=False)
    issued_at: float


class AccessTokens:
    """Makes access tokens, and opens them. `secret`: what all servers have that share their tokens; else a new key."""

    lifetime_s: ClassVar[int] = 300

    def __init__(self, secret: bytes = b"", clock: Callable[[], float] = time.time) -> None:
        self._seal = Seal(secret, PURPOSE)
        self._clock = clock
        self._opened: LRUCache[str, _Opened] = LRUCache(MAX_REMEMBERED_CHARS, getsizeof=_size)

    def issue(self, login: Login | None) -> str:
        """Return a token for a login, or for none. Raises RequestInvalid if it would be too long to be sent."""
        fields = [] if login is None else [login.username, login.password, login.is_bearer]
        token = MARK + self._seal.seal(json.dumps([self._clock(), *fields], ensure_ascii=False).encode())
        if len(token) > MAX_TOKEN_CHARS:
            raise RequestInvalid(f"an access token for this login would have more than {MAX_TOKEN_CHARS} characters")
        return token

    def is_ours(self, text: str) -> bool:
        """Whether a text is an access token of a Dockyard, as far as one can see."""
        return text.startswith(MARK)

    def open(self, token: str) -> str | None:
        """Return the value of the Authorization header that a token of ours stands for; None for no login.

        Raises LoginRequired unless it is valid: it has expired, or has been made with another key.
        """
        opened = self._opened.get(token)
        if opened is None:
            opened = self._opened[token] = self._open(token)
        age_s = self._clock() - opened.issued_at
        if not -MAX_SKEW_S <= age_s <= self.lifetime_s + MAX_SKEW_S:
            raise LoginRequired("the access token has expired: get another one")
        return opened.authorization

    def _open(self, token: str) -> _Opened:
        if len(token) > MAX_TOKEN_CHARS or not _TOKEN.fullmatch(token):
            raise LoginRequired("the access token is malformed")
        try:
            issued_at, *fields = json.loads(self._seal.unseal(token.removeprefix(MARK)))
        except ValueError as exc:
            raise LoginRequired("the access token is not valid here, or no longer: get another one") from exc
        if not fields:
            return _Opened(None, issued_at)
        username, password, is_bearer = fields
        return _Opened(format_authorization(Login(username, password, is_bearer=is_bearer)), issued_at)


def _size(opened: _Opened) -> int:
    """The characters of a token and what is in it, at most; with what objects take."""
    return 512 + 3 * len(opened.authorization or "")

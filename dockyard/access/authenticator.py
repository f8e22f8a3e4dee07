"""Who sends a request, by its Authorization header and the address of its client. Blocking, for many threads.

| login | result |
|---|---|
| none | a principal without a name |
| a token of one of our issuers, as a bearer token or as a password with any user name | a principal, or LoginRequired |
| a user of the htpasswd file | a principal, or LoginRequired for a wrong password |
| anything else | `foreign`: it may be a login for an upstream, and is wrong otherwise |

A login of ours is never `foreign`, right or wrong: no upstream gets it. Results are remembered for MAX_REMEMBERED_S, by
an HMAC of the header with a key that only this process has, as long as the file or the keys that they come from stay
the same.
"""

import hmac
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
from cachetools import LRUCache

from dockyard.access.attempts import Attempts
from dockyard.access.networks import Address, Networks
from dockyard.access.passwords import PasswordFile
from dockyard.access.principals import Principal, Source
from dockyard.config.settings import AccessSettings
from dockyard.errors import LoginRequired
from dockyard.oci.login import Login, parse_authorization

MAX_REMEMBERED_S = 60.0
# A login that was right within this time is verified without a delay, whatever others do behind the same address.
NOT_SLOWED_S = 3600.0
MAX_RIGHT = 4096
MAX_OTHERS = 4096
MAX_AUTHORIZATION_CHARS = 16 * 1024


@attrs.frozen
class Authenticated:
    """The client of a request. `foreign` is a login that is not ours: one for an upstream, or a wrong one."""

    principal: Principal
    foreign: Login | None = None


@attrs.frozen
class Identity:
    """A verified login: the name and the groups of its principal, and how many seconds it may be remembered.

    `is_current` tells whether it would be verified again, without blocking.
    """

    name: str
    groups: frozenset[str]
    source: Source
    is_current: Callable[[], bool]
    remember_s: float = MAX_REMEMBERED_S


@attrs.define(eq=False)
class _Result:
    """What was found out about a header: an identity, or a login that is not ours, or else that it is wrong."""

    found_at: float
    remember_s: float
    is_current: Callable[[], bool]
    identity: Identity | None = None
    foreign: Login | None = None
    is_counted: bool = False


class Authenticator:
    """Verifies logins."""

    def __init__(self, settings: AccessSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._networks = Networks(settings)
        self._passwords = PasswordFile(settings.htpasswd) if settings.htpasswd else None
        self._attempts = Attempts(clock)
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        # Apart from each other, so that wrong logins do not displace right ones.
        self._right: LRUCache[bytes, _Result] = LRUCache(MAX_RIGHT)
        self._others: LRUCache[bytes, _Result] = LRUCache(MAX_OTHERS)
        self.has_sources = self._passwords is not None

    def find_remembered(self, authorization: str | None, address: Address) -> Authenticated | None:
        """Return the result that needs no verification, or None; does not block. Raises LoginRequired."""
        if authorization is None:
            return self._anonymous(address)
        login = None if self.has_sources else _parse(authorization)
        if login is not None:
            return self._anonymous(address, login)
        result = self._find(self._digest(authorization))
        if result is None or not self._is_fresh(result):
            return None
        return self._use(result, address)

    @contextmanager
    def attempt(self, authorization: str, address: Address) -> Iterator[float]:
        """Yield how many seconds to wait before `authenticate`, which is called within the context.

        Raises TooManyRequests, Unavailable when too many attempts are waiting.
        """
        result = self._find(self._digest(authorization))
        if result is not None and result.identity is not None and result.is_current():
            yield 0.0
            return
        with self._attempts.start(address) as wait_s:
            yield wait_s

    def authenticate(self, authorization: str | None, address: Address) -> Authenticated:
        """Return the client of a request. Blocks. Raises LoginRequired for a login of ours that is wrong."""
        if self._passwords is not None and authorization is not None:
            self._passwords.refresh()
        remembered = self.find_remembered(authorization, address)
        if remembered is not None or authorization is None:
            return remembered or self._anonymous(address)
        result = self._verify(_parse(authorization))
        digest = self._digest(authorization)
        kept, other = (self._right, self._others) if result.identity else (self._others, self._right)
        with self._lock:
            kept[digest] = result
            other.pop(digest, None)
        if result.identity is None and result.foreign is None:
            self._count(result, address)
        return self._use(result, address)

    def refuse(self, authorization: str, address: Address) -> LoginRequired:
        """Return the error for a login that is not ours and not for an upstream, and count it as a wrong one."""
        result = self._find(self._digest(authorization))
        if result is not None:
            self._count(result, address)
        return _wrong_login()

    def _verify(self, login: Login) -> _Result:
        now = self._clock()
        passwords = self._passwords
        if login.is_bearer or passwords is None:
            return _Result(now, MAX_REMEMBERED_S, lambda: True, foreign=login)
        account = passwords.read(login.username)
        is_right = passwords.is_right(login.username, login.password, account)
        username = login.username

        def is_current() -> bool:
            return passwords.find(username) == account

        if is_right:
            identity = Identity(username, frozenset(), "htpasswd", is_current)
            return _Result(now, MAX_REMEMBERED_S, is_current, identity)
        return _Result(now, MAX_REMEMBERED_S, is_current, foreign=None if account.is_known else login)

    def _use(self, result: _Result, address: Address) -> Authenticated:
        if result.identity is not None:
            identity = result.identity
            return Authenticated(
                Principal(identity.name, identity.groups, self._networks.names_of(address), identity.source)
            )
        if result.foreign is None:
            raise _wrong_login()
        return self._anonymous(address, result.foreign)

    def _anonymous(self, address: Address, login: Login | None = None) -> Authenticated:
        return Authenticated(Principal(networks=self._networks.names_of(address)), login)

    def _count(self, result: _Result, address: Address) -> None:
        """Count a wrong login once, however often it is sent while it is remembered."""
        with self._lock:
            is_counted, result.is_counted = result.is_counted, True
        if not is_counted:
            self._attempts.count_failure(address)

    def _find(self, digest: bytes) -> _Result | None:
        with self._lock:
            result = self._right.get(digest) or self._others.get(digest)
        return result if result and self._clock() - result.found_at < NOT_SLOWED_S else None

    def _is_fresh(self, result: _Result) -> bool:
        return self._clock() - result.found_at < result.remember_s and result.is_current()

    def _digest(self, authorization: str) -> bytes:
        return hmac.digest(self._key, authorization.encode("utf-8", "surrogatepass"), "sha256")


def _parse(authorization: str) -> Login:
    if len(authorization) > MAX_AUTHORIZATION_CHARS:
        raise LoginRequired("the Authorization header is too long")
    try:
        return parse_authorization(authorization)
    except ValueError as exc:
        raise LoginRequired(str(exc)) from exc


def _wrong_login() -> LoginRequired:
    return LoginRequired("the user name or password is wrong")

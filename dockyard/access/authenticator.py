"""Who sends a request, by its Authorization header and the address of its client. Blocking, for many threads.

| login | result |
|---|---|
| none | a principal without a name |
| a token of one of our issuers, as a bearer token or as a password with any user name | a principal, or LoginRequired |
| a user of the htpasswd file | a principal, or LoginRequired for a wrong password |
| anything else | `foreign`: it may be a login for an upstream, and is wrong otherwise |

A login of ours is never `foreign`, right or wrong: no upstream gets it. Results are remembered by a keyed hash of the
header, whose key only this process has, as long as the file or the keys that they come from stay the same: right ones
for MAX_REMEMBERED_S, others for MAX_WRONG_S.
"""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
from cachetools import LRUCache

from dockyard.access.attempts import Attempts
from dockyard.access.identities import Identity
from dockyard.access.jwks import KeySource, make_source
from dockyard.access.networks import Address, Networks
from dockyard.access.passwords import PasswordFile
from dockyard.access.principals import Principal
from dockyard.access.rules import find_groups
from dockyard.access.tokens import Tokens
from dockyard.config.settings import AccessSettings, JwtIssuer
from dockyard.errors import LoginRequired
from dockyard.oci.login import Login, parse_authorization

# A login that was right within this time is verified without a delay, whatever others do behind the same address.
NOT_SLOWED_S = 3600.0
# What was wrong stays wrong as long as the file says the same of its user.
MAX_WRONG_S = 3600.0
# Logins that upstreams are asked about at the same time: they cost no CPU time, and jobs may have one each.
MAX_PENDING_ELSEWHERE_PER_ADDRESS = 64
MAX_PENDING_ELSEWHERE = 512
MAX_RIGHT = 4096
MAX_OTHERS = 4096
MAX_AUTHORIZATION_CHARS = 16 * 1024


@attrs.frozen
class Authenticated:
    """The client of a request. `foreign` is a login that is not ours: one for an upstream, or a wrong one."""

    principal: Principal
    foreign: Login | None = None


@attrs.define(eq=False)
class _Result:
    """What was found out about a header: the identity that it shows; else whether it is not ours, or is wrong.

    `last_used` is the client at the address where the identity was used last.
    """

    found_at: float
    is_current: Callable[[], bool]
    identity: Identity | None = None
    is_foreign: bool = False
    is_counted: bool = False
    last_used: tuple[Address, "Authenticated"] | None = None

    @property
    def remember_s(self) -> float:
        return MAX_WRONG_S if self.identity is None else self.identity.remember_s


class Authenticator:
    """Verifies logins."""

    def __init__(
        self,
        settings: AccessSettings,
        clock: Callable[[], float] = time.monotonic,
        make_source: Callable[[JwtIssuer], KeySource] = make_source,
    ) -> None:
        self._networks = Networks(settings)
        self._groups = settings.groups
        self._tokens = Tokens(settings.jwt, make_source)
        self._passwords = PasswordFile(settings.htpasswd) if settings.htpasswd else None
        self._attempts = Attempts(clock)
        self._attempts_elsewhere = Attempts(
            clock, max_pending_per_address=MAX_PENDING_ELSEWHERE_PER_ADDRESS, max_pending=MAX_PENDING_ELSEWHERE
        )
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        # Apart from each other, so that wrong logins do not displace right ones.
        self._right: LRUCache[bytes, _Result] = LRUCache(MAX_RIGHT)
        self._others: LRUCache[bytes, _Result] = LRUCache(MAX_OTHERS)
        self.has_sources = bool(settings.htpasswd or settings.jwt)

    def find_remembered(self, authorization: str | None, address: Address) -> Authenticated | None:
        """Return the client of a request if that is known without blocking, else None. Raises LoginRequired.

        No password is verified here, and a token only by keys in memory.
        """
        if authorization is None:
            return self._anonymous(address)
        digest = self._digest(authorization)
        result = self._find(digest)
        if result is not None and self._is_fresh(result):
            return self._use(result, authorization, address)
        login = _parse(authorization)
        if self._tokens.is_ours(login.password):
            identity = self._tokens.find(login.password)
            return None if identity is None else self._use(self._keep(digest, identity), authorization, address)
        if login.is_bearer or self._passwords is None:
            return self._anonymous(address, login)
        return None

    @contextmanager
    def attempt(self, authorization: str, address: Address) -> Iterator[float]:
        """Yield how many seconds to wait before `authenticate`, which is called within the context.

        Raises TooManyRequests, Unavailable when too many attempts are waiting.
        """
        if self.was_right(authorization) or not self.is_password(authorization):
            yield 0.0
            return
        with self._attempts.start(address, self._digest(authorization)) as wait_s:
            yield wait_s

    @contextmanager
    def attempt_elsewhere(self, authorization: str, address: Address) -> Iterator[float]:
        """As `attempt`, before an upstream is asked about a login that is not ours and not known to be right."""
        with self._attempts_elsewhere.start(address, self._digest(authorization)) as wait_s:
            yield wait_s

    def is_password(self, authorization: str) -> bool:
        """Whether `authenticate` would verify a password, which takes CPU time; a token may take a download."""
        try:
            login = _parse(authorization)
        except LoginRequired:
            return False  # `authenticate` raises it too
        return not (login.is_bearer or self._passwords is None or self._tokens.is_ours(login.password))

    def authenticate(self, authorization: str | None, address: Address) -> Authenticated:
        """Return the client of a request. Blocks.

        Raises LoginRequired for a login of ours that is wrong, Unavailable for a token that cannot be verified now.
        """
        if self._passwords is not None and authorization is not None:
            self._passwords.refresh()
        remembered = self.find_remembered(authorization, address)
        if remembered is not None or authorization is None:
            return remembered or self._anonymous(address)
        login = _parse(authorization)
        digest = self._digest(authorization)
        if self._passwords is None or self._tokens.is_ours(login.password):
            result = self._keep(digest, self._tokens.verify(login.password))
        else:
            result = self._verify_password(digest, login, self._passwords)
            if result.identity is None and not result.is_foreign:
                self._count(result, address)
        return self._use(result, authorization, address)

    def refuse(self, authorization: str, address: Address) -> LoginRequired:
        """Return the error for a login that is not ours and not right elsewhere, and count it as a wrong one."""
        digest = self._digest(authorization)
        result = self._find(digest)
        if result is None:
            # Only so that it is counted once: what is not current says nothing about the login.
            result = _Result(self._clock(), is_current=lambda: False, is_foreign=True)
            with self._lock:
                self._others[digest] = result
        self._count(result, address)
        return _wrong_login()

    def _verify_password(self, digest: bytes, login: Login, passwords: PasswordFile) -> _Result:
        username = login.username
        account = passwords.read(username)

        def is_current() -> bool:
            return passwords.find(username) == account

        if passwords.is_right(username, login.password, account):
            return self._keep(digest, Identity(username, frozenset(), "htpasswd", is_current))
        result = _Result(self._clock(), is_current, is_foreign=not account.is_known)
        with self._lock:
            self._others[digest] = result
            self._right.pop(digest, None)
        return result

    def _keep(self, digest: bytes, identity: Identity) -> _Result:
        """Remember a right login, with the groups of the settings that it is in."""
        groups = identity.groups | find_groups(self._groups, identity.name, identity.source)
        result = _Result(self._clock(), identity.is_current, attrs.evolve(identity, groups=groups))
        with self._lock:
            self._right[digest] = result
            self._others.pop(digest, None)
        return result

    def _use(self, result: _Result, authorization: str, address: Address) -> Authenticated:
        identity = result.identity
        if identity is not None:
            last = result.last_used
            if last is not None and last[0] is address:
                return last[1]
            networks = self._networks.names_of(address)
            used = Authenticated(Principal(identity.name, identity.groups, networks, identity.source))
            result.last_used = address, used
            return used
        if result.is_foreign:
            return self._anonymous(address, _parse(authorization))
        raise _wrong_login()

    def _anonymous(self, address: Address, login: Login | None = None) -> Authenticated:
        return Authenticated(Principal(networks=self._networks.names_of(address)), login)

    def was_right(self, authorization: str) -> bool:
        """Whether a login was right within NOT_SLOWED_S: it is no guess."""
        result = self._find(self._digest(authorization))
        return result is not None and result.identity is not None and result.is_current()

    def _count(self, result: _Result, address: Address) -> None:
        """Count a wrong login once, however often it is sent while it is remembered."""
        with self._lock:
            is_counted, result.is_counted = result.is_counted, True
        if is_counted:
            return
        self._attempts.count_failure(address)
        if result.is_foreign:
            self._attempts_elsewhere.count_failure(address)

    def _find(self, digest: bytes) -> _Result | None:
        with self._lock:
            result = self._right.get(digest) or self._others.get(digest)
        return result if result and self._clock() - result.found_at < NOT_SLOWED_S else None

    def _is_fresh(self, result: _Result) -> bool:
        return self._clock() - result.found_at < result.remember_s and result.is_current()

    def _digest(self, authorization: str) -> bytes:
        # A keyed hash, as HMAC is one, that takes a tenth of its time: this is done for each request.
        return hashlib.blake2b(authorization.encode("utf-8", "surrogatepass"), digest_size=32, key=self._key).digest()


def _parse(authorization: str) -> Login:
    if len(authorization) > MAX_AUTHORIZATION_CHARS:
        raise LoginRequired("the Authorization header is too long")
    try:
        return parse_authorization(authorization)
    except ValueError as exc:
        raise LoginRequired(str(exc)) from exc


def _wrong_login() -> LoginRequired:
    return LoginRequired("the user name or password is wrong")

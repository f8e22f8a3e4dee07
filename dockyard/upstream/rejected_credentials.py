"""Credentials that were rejected a short time ago. They are not sent again: repeated failures lock accounts.

A rejection is about the whole login, unless the same login was accepted a short time ago: then it is right, and the
rejection is about the part that was requested (a repository, the scopes of a token).
"""

import threading
import time
from collections.abc import Callable, Hashable

from cachetools import TTLCache

from dockyard.errors import FailureDetails
from dockyard.upstream.errors import AuthenticationFailed

REJECTED_FOR_S = 30.0
ACCEPTED_FOR_S = 300.0
MAX_REMEMBERED = 1024


class RejectedCredentials:
    """What became of the logins of one upstream. A login is any value that contains the credential and its place."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._rejected: TTLCache[Hashable, FailureDetails] = TTLCache(MAX_REMEMBERED, REJECTED_FOR_S, clock)
        self._accepted: TTLCache[Hashable, bool] = TTLCache(MAX_REMEMBERED, ACCEPTED_FOR_S, clock)
        self._lock = threading.Lock()

    def accept(self, login: Hashable) -> None:
        with self._lock:
            self._accepted[login] = True

    def reject(self, login: Hashable, part: Hashable, details: FailureDetails) -> bool:
        """The login was rejected when this part was requested; whether as a whole. `details`: of the response."""
        with self._lock:
            is_right = login in self._accepted
            self._rejected[(login, part) if is_right else login] = details
            return not is_right

    def reject_part(self, login: Hashable, part: Hashable, details: FailureDetails) -> None:
        """The login is right, but not allowed to have this part."""
        with self._lock:
            self._rejected[login, part] = details

    def check(self, login: Hashable, part: Hashable) -> None:
        """Raises AuthenticationFailed if the login was rejected a short time ago, as a whole or for this part."""
        with self._lock:
            of_login, of_part = self._rejected.get(login), self._rejected.get((login, part))
        details = of_login or of_part
        if details is not None:
            raise AuthenticationFailed(
                is_anonymous=False, details=details, remembered=True, is_login_wrong=of_login is not None
            )

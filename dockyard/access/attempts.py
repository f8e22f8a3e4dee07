"""Slows wrong passwords, for each address: a guess costs time, and the queue of guesses has a limit.

The first MAX_FREE_FAILURES wrong passwords from an address are free, as people mistype and machines have old ones.
After that each attempt from there begins later than the one before, by a delay that doubles with each failure. An
address without a failure for FORGET_S starts anew. For many threads; nothing waits here.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address

import attrs
from cachetools import LRUCache

from dockyard.errors import TooManyRequests, Unavailable

MAX_FREE_FAILURES = 5
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 10.0
MAX_WAIT_S = 20.0
FORGET_S = 300.0
MAX_PENDING_PER_ADDRESS = 16
MAX_PENDING = 64
MAX_ADDRESSES = 16_384
IPV6_HOST_BITS = 64  # one client has at least that many addresses


@attrs.define(eq=False)
class _Failures:
    count: int = 0
    last_at: float = -math.inf
    next_start: float = -math.inf


class Attempts:
    """The wrong passwords and the attempts in progress of each address.

    At most `max_pending_per_address` and `max_pending` attempts are in progress at the same time.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        max_pending_per_address: int = MAX_PENDING_PER_ADDRESS,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self._clock = clock
        self._max_pending_per_address = max_pending_per_address
        self._max_pending = max_pending
        self._lock = threading.Lock()
        self._failures: LRUCache[int, _Failures] = LRUCache(MAX_ADDRESSES)
        self._pending: Counter[int] = Counter()
        self._starts: dict[bytes, float] = {}

    @contextmanager
    def start(self, address: IPv4Address | IPv6Address, login: bytes) -> Iterator[float]:
        """Yield how many seconds an attempt must wait before it begins; the attempt is pending within the context.

        `login` identifies user and password. Attempts with the same one begin together and count once: the first one
        finds out for all. Raises TooManyRequests when too many of this address are pending, Unavailable when too many
        of all are.
        """
        key = _key(address)
        with self._lock:
            start = self._starts.get(login)
            is_first = start is None
            if start is None:
                start = self._reserve(key)
                self._pending[key] += 1
                self._starts[login] = start
            wait_s = max(0.0, start - self._clock())
        try:
            yield wait_s
        finally:
            if is_first:
                with self._lock:
                    del self._starts[login]
                    self._pending[key] -= 1
                    if not self._pending[key]:
                        del self._pending[key]

    def count_failure(self, address: IPv4Address | IPv6Address) -> None:
        """Count a wrong password."""
        with self._lock:
            key = _key(address)
            failures = self._find(key) or _Failures()
            failures.count += 1
            failures.last_at = self._clock()
            self._failures[key] = failures

    def _find(self, key: int) -> _Failures | None:
        failures = self._failures.get(key)
        return failures if failures and self._clock() - failures.last_at < FORGET_S else None

    def _reserve(self, key: int) -> float:
        """Return when the next attempt from an address begins. Raises TooManyRequests, Unavailable."""
        if self._pending[key] >= self._max_pending_per_address:
            raise _too_many(1.0)
        if len(self._starts) >= self._max_pending:
            raise Unavailable("too many logins are being verified", retry_after_s=1)
        now = self._clock()
        failures = self._find(key)
        if failures is None or failures.count <= MAX_FREE_FAILURES:
            return now
        delay_s = min(FIRST_DELAY_S * float(2 ** min(failures.count - MAX_FREE_FAILURES - 1, 16)), MAX_DELAY_S)
        start = max(now, failures.next_start, failures.last_at + delay_s)
        if start - now > MAX_WAIT_S:
            raise _too_many(start - now)
        failures.next_start = start + delay_s
        return start


def _too_many(wait_s: float) -> TooManyRequests:
    return TooManyRequests("too many wrong logins from this address", retry_after_s=math.ceil(wait_s))


def _key(address: IPv4Address | IPv6Address) -> int:
    return int(address) if address.version == 4 else -1 - (int(address) >> IPV6_HOST_BITS)

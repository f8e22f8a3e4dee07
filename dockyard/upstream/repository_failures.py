"""Repositories of one upstream that fail while the registry as a whole may be fine.

A registry may hang, or respond with 5xx, for one name only: it imports that image, or the name is one that it cannot
handle. That must not keep others from being asked, so such a failure concerns its repository first:

- A repository fails after one request without a response, or after five 5xx responses in a row. From then on its
  requests fail with the stored error at once, so that cached tags are served stale without a wait. Every three seconds
  at most, and one at a time, an operation that was rejected is tried in the background. Its success ends that; so does
  a minute without a try. The request that starts a try waits for its result, a second at most, unless there is
  something stale that can be served: nothing is requested in the background when nobody asks, so that the registry may
  have been well for a while.
- With each repository that starts to fail, and after five 5xx responses in a row of whatever repositories, the circuit
  breaker checks the registry itself: by the check of a tag in another repository that succeeded before, or by a request
  for `/v2/` if there is none. It opens if that fails as well.

The state is in the memory of one worker: each finds out for itself. Failed connections are not handled here: they
concern every repository, and open the circuit breaker at once.
"""

import threading
import time
from collections.abc import Callable

import attrs
import structlog
from cachetools import LRUCache

from dockyard.errors import RegistryError
from dockyard.upstream.errors import RETRY_AFTER_S, Cause, UpstreamError

INTERVAL_S = 3.0
FORGET_AFTER_S = 60.0
MAX_SERVER_ERRORS = 5
MAX_REPOSITORIES = 1024
MAX_TRIES = 4
TRY_WAIT_S = 1.0
MAX_KNOWN_GOOD = 4

log = structlog.get_logger()

Operation = Callable[[], object]
Check = Callable[[float], object]  # the argument is its deadline on the monotonic clock


@attrs.define(eq=False)
class _Repository:
    """`server_errors` in a row; `error` once it fails, and when it was tried last (monotonic clock)."""

    server_errors: int = 0
    error: RegistryError | None = None
    tried_at: float = 0.0
    is_being_tried: bool = False


class RepositoryFailures:
    """The failing repositories of one upstream.

    `record_outage(error, operation)` is called when a try finds that the registry is down or limits the rate of
    requests. Operations and checks raise UpstreamError or RegistryError.
    """

    def __init__(
        self,
        name: str,
        record_outage: Callable[[UpstreamError, Operation], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._record_outage = record_outage
        self._clock = clock
        self._lock = threading.Lock()
        self._repositories: LRUCache[str, _Repository] = LRUCache(MAX_REPOSITORIES)
        self._known_good: LRUCache[str, Check] = LRUCache(MAX_KNOWN_GOOD)
        self._server_errors = 0
        self._tries = 0

    def is_failing(self, repository: str) -> bool:
        """Whether `check` would raise, perhaps after a wait."""
        if not self._repositories:
            return False
        with self._lock:
            return self._find_failing(repository) is not None

    def check(self, repository: str, operation: Operation, *, may_wait: bool) -> None:
        """Raise the stored error if the repository fails; try `operation` in the background if that is due.

        `may_wait`: the caller that has it tried waits for the result, at most TRY_WAIT_S.
        """
        if not self._repositories:
            return
        with self._lock:
            found = self._find_failing(repository)
            if found is None or found.error is None:
                return
            error = found.error
            is_due = self._clock() - found.tried_at >= INTERVAL_S
            thread = self._start_try(repository, found, operation) if is_due else None
        if thread is not None and may_wait:
            thread.join(TRY_WAIT_S)
            if not self.is_failing(repository):
                return
        raise error.copy(retry_after_s=RETRY_AFTER_S, remembered=True)

    def record_success(self, repository: str, check: Check | None = None) -> None:
        """The registry responded to a request for this repository. `check` repeats the request, if that is cheap."""
        self._server_errors = 0
        if check is not None and repository not in self._known_good:
            with self._lock:
                self._known_good[repository] = check
        if self._repositories:
            with self._lock:
                found = self._repositories.pop(repository, None)
            if found and found.error:
                log.info("repository available again", upstream=self._name, repository=repository)

    def record_failure(self, repository: str, fault: UpstreamError) -> bool:
        """A request got no response (`Cause.NO_RESPONSE`) or a 5xx (`Cause.SERVER_ERROR`).

        True if the registry itself should be checked now.
        """
        with self._lock:
            found = self._repositories.setdefault(repository, _Repository())
            if fault.cause is Cause.SERVER_ERROR:
                found.server_errors += 1
                self._server_errors += 1
            is_failing = fault.cause is Cause.NO_RESPONSE or found.server_errors >= MAX_SERVER_ERRORS
            is_new = is_failing and found.error is None
            if is_failing:
                found.error, found.tried_at = fault.error, self._clock()
            has_many_errors = self._server_errors >= MAX_SERVER_ERRORS
            if has_many_errors:
                self._server_errors = 0
        if is_new:
            log.info(
                "repository unavailable: its cached content is served",
                upstream=self._name,
                repository=repository,
                **fault.error.log_fields(),
            )
        return is_new or has_many_errors

    def find_known_good(self, failing: str) -> Check | None:
        """The check of a tag in another repository that succeeded before."""
        with self._lock:
            return next((check for name, check in self._known_good.items() if name != failing), None)

    def forget(self) -> None:
        """The circuit breaker is open: it answers for all repositories."""
        if self._repositories:
            with self._lock:
                self._repositories.clear()

    def _find_failing(self, repository: str) -> _Repository | None:
        found = self._repositories.get(repository)
        if found is None or found.error is None:
            return None
        if self._clock() - found.tried_at > FORGET_AFTER_S:
            del self._repositories[repository]
            return None
        return found

    def _start_try(self, repository: str, found: _Repository, operation: Operation) -> threading.Thread | None:
        if found.is_being_tried or self._tries >= MAX_TRIES:
            return None
        found.is_being_tried, found.tried_at = True, self._clock()
        self._tries += 1
        thread = threading.Thread(target=self._try, args=(repository, found, operation), name="try", daemon=True)
        thread.start()
        return thread

    def _try(self, repository: str, found: _Repository, operation: Operation) -> None:
        try:
            operation()
            self.record_success(repository)
        except UpstreamError as fault:
            match fault.cause:
                case Cause.NO_RESPONSE | Cause.SERVER_ERROR:
                    with self._lock:
                        found.error, found.tried_at = fault.error, self._clock()
                case Cause.NOT_COUNTED:
                    self.record_success(repository)
                case _:
                    self._record_outage(fault, operation)
        except RegistryError:
            self.record_success(repository)  # not found or denied: the registry responded
        except Exception:
            log.exception("a probe failed", upstream=self._name)
        finally:
            with self._lock:
                found.is_being_tried = False
                self._tries -= 1

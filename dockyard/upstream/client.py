"""A registry as the cache uses it: a few operations, each with one result or one error.

Each operation checks the circuit breaker, sends its requests, and maps the status to a result or an error. It makes up
for what registries get wrong in practice: a HEAD that is rejected or incomplete is replaced by a GET, a redirect that
has expired is requested anew.

Errors: "not found" and "denied" are responses of the registry. Everything else is an Outage or TooManyRequests.
"""

import copy
import math
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import attrs
import structlog
from cachetools import TTLCache

from dockyard import metrics
from dockyard.config.hosts import HOSTS_WITHOUT_API_VERSION
from dockyard.config.settings import Upstream, UpstreamLimits
from dockyard.errors import (
    BadUpstream,
    Denied,
    FailureDetails,
    LoginRequired,
    LoopDetected,
    ManifestUnknown,
    RegistryError,
    UpstreamTimeout,
    reason_of,
)
from dockyard.http1.encoding import describe
from dockyard.oci.lists import Referrer
from dockyard.oci.login import Login
from dockyard.oci.manifest import ACCEPT, MAX_MANIFEST_BYTES, Descriptor, Manifest
from dockyard.oci.reference import Digest, Reference, Tag
from dockyard.upstream import errors
from dockyard.upstream.auth import ClientLoginAuth, credential_of, make_mode
from dockyard.upstream.blob_location import BlobLocation
from dockyard.upstream.blobs import UpstreamBlobs
from dockyard.upstream.challenges import ChallengeResponder
from dockyard.upstream.circuit_breaker import CircuitBreaker
from dockyard.upstream.client_operations import ClientOperations, VisibleRepositories
from dockyard.upstream.errors import AuthenticationFailed, Cause, RangesUnsupported, UpstreamError
from dockyard.upstream.headers import LIMIT_S, find_digest, is_of_dockyard, parse_retry_after
from dockyard.upstream.keychain import ANONYMOUS, Credential, Keychain
from dockyard.upstream.lists import ListReader
from dockyard.upstream.repository_failures import RepositoryFailures
from dockyard.upstream.responses import (
    UpstreamBlob,
    check_transfer_encoding,
    content_length,
    find_announced_size,
    find_descriptor,
    find_size,
    is_error_page,
    is_json,
    is_web_page,
    record_rate_limit,
)
from dockyard.upstream.session import (
    RegistryRequest,
    RegistryResponse,
    RegistrySession,
    denied,
    needs_login,
    not_found,
    refused,
)
from dockyard.upstream.tokens import CallLimits
from dockyard.upstream.transport import Transport, UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import Url

SKIP_HEAD_FOR_S = 300.0
ALL_REPOSITORIES = ""  # in the memory of those without HEAD
MISSING_FOR_S = 60.0
MAX_REMEMBERED_NAMES = 4096
REPORT_LOOP_EVERY_S = 3600.0
ACCEPT_HEADER = ", ".join(ACCEPT)

# A registry that responds to HEAD with one of these may support GET.
_RETRY_WITH_GET = frozenset({400, 401, 403, 405, 406, 451, 501})

log = structlog.get_logger()

T = TypeVar("T")


class RegistryClient:
    """The client of one upstream. Its methods block; many threads call them at the same time."""

    def __init__(
        self,
        upstream: Upstream,
        limits: UpstreamLimits,
        keychain: Keychain,
        breaker: CircuitBreaker,
        server_name: str = "",
    ) -> None:
        self._prefix = upstream.prefix
        self._origin = upstream.origin
        self._proxy_login = errors.explain_proxy_login(self._prefix)
        self._limits = limits
        self._breaker = breaker
        self._transport = Transport(upstream, limits, server_name)
        self._responder = ChallengeResponder(upstream, self._transport)
        self._mode = make_mode(upstream, keychain, self._responder)
        self._session = RegistrySession(upstream, self._transport, self._mode, self._responder)
        self._failures = RepositoryFailures(self._prefix, breaker.record_failure)
        self._lists = ListReader(self._prefix, self._session, self._status_error)
        self._blobs = UpstreamBlobs(self._session, limits, self._status_error)
        self._lock = threading.Lock()
        self._without_head: TTLCache[Hashable, bool] = TTLCache(MAX_REMEMBERED_NAMES, SKIP_HEAD_FOR_S)
        self._missing: TTLCache[Hashable, bool] = TTLCache(MAX_REMEMBERED_NAMES, MISSING_FOR_S)
        self._reported: TTLCache[str, bool] = TTLCache(1, REPORT_LOOP_EVERY_S)
        # Clients with logins of their own: `_with_login`.
        self._operator = self
        self._login: Credential | None = None
        self._is_check = False
        self._held: TTLCache[Credential, tuple[float, RegistryError]] = TTLCache(MAX_REMEMBERED_NAMES, LIMIT_S[1])
        self._visibility = VisibleRepositories()

    def head_manifest(
        self, repository: str, reference: Reference, deadline: float | None = None, *, has_copy: bool = False
    ) -> Descriptor:
        """The current descriptor of a tag or digest, before the deadline, by default within `check_timeout`.

        `has_copy`: the caller can serve something stale, which must not wait.
        """
        probe = partial(self._operator._head_manifest, repository, reference)
        # After a long wait for a thread, a timeout says little about the upstream.
        is_late = deadline is not None and deadline - time.monotonic() < self._limits.check_timeout / 2
        with self._guard("head_manifest", repository, probe, check=probe, is_late=is_late, has_copy=has_copy):
            return self._head_manifest(repository, reference, deadline)

    def get_manifest(self, repository: str, reference: Reference) -> Manifest:
        """A verified manifest."""

        def operation(client: RegistryClient) -> Manifest:
            return client._get_manifest(repository, reference, self._call_limits(self._limits.response_timeout_s))

        return self._run("get_manifest", repository, operation)

    def head_blob(self, repository: str, digest: Digest) -> int:
        """The size of a blob in bytes."""
        return self._run("head_blob", repository, lambda client: client._head_blob(repository, digest))

    def open_blob(
        self,
        repository: str,
        digest: Digest,
        start: int = 0,
        stop: int | None = None,
        location: BlobLocation | None = None,
    ) -> UpstreamBlob:
        """A blob from byte `start` on, to before `stop` if it is given; its headers must arrive within `stall_timeout`.

        `location` is what the download has learned about the blob, from all its requests. What continues a download
        bypasses the circuit breaker. Raises RangesUnsupported, only with `stop`, if the blob must be requested whole.
        """
        location = location or BlobLocation()

        def probe() -> None:
            self._operator._blobs.open(repository, digest, 0, BlobLocation()).close()

        is_resume = start > 0 if stop is None else location.is_known
        with self._guard("open_blob", repository, probe, is_resume=is_resume):
            if stop is None:
                return self._blobs.open(repository, digest, start, location)
            return self._blobs.open_range(repository, digest, start, stop, location)

    def list_tags(self, repository: str) -> list[str]:
        """All tags of a repository, sorted."""
        return self._run("list_tags", repository, lambda client: client._lists.tags(repository))

    def list_referrers(self, repository: str, digest: Digest) -> list[Referrer]:
        """The manifests whose subject is this one; empty when there are none."""
        return self._run("list_referrers", repository, lambda client: client._lists.referrers(repository, digest))

    # With the login of a client

    def with_login(self, login: Login | None) -> "ClientOperations":
        """The same operations for a client of Dockyard: with the operator's login, else with that of the client.

        They raise LoginRequired and AccessDenied where the registry refuses both. Whatever a login of a client causes
        is not remembered for others, and its login not for probes.
        """
        return ClientOperations(self, self._with_login(login), self._visibility)

    def check_access(
        self, login: Login | None, repository: str, what: Reference | None, *, is_blob: bool, deadline: float | None
    ) -> None:
        """Whether the registry admits a client to a manifest, a blob (`is_blob`) or the list of tags (None).

        The operator's login is not used. Raises LoginRequired, AccessDenied, ManifestUnknown and its like,
        or another RegistryError if the registry cannot be asked.
        """
        client = self._with_login(login, is_check=True)

        def operation(client: RegistryClient, deadline: float | None = None) -> None:
            if what is None:
                client._lists.check(repository, client._call_limits(self._limits.response_timeout_s, deadline))
            elif is_blob and isinstance(what, Digest):
                client._head_blob(repository, what, deadline)
            else:
                client._head_manifest(repository, what, deadline)

        client._run("check_access", repository, partial(operation, deadline=deadline), operation)

    def check_login(self, login: Login, deadline: float | None) -> None:
        """Whether a login of a client is right, as far as the registry tells without a repository.

        Raises LoginRequired, or another RegistryError if the registry cannot be asked.
        """
        client = self._with_login(login, is_check=True)
        client._run("check_login", "", lambda client: client._check_login(deadline), RegistryClient._check_login)

    def has_login(self, repository: str) -> bool:
        """Whether the operator has a login for a repository. Blocks."""
        try:
            credential = self._mode.credential(repository, self._call_limits(self._limits.check_timeout))
        except UpstreamError:
            return True  # the next request reports it
        return not credential.is_anonymous

    def _with_login(self, login: Login | None, *, is_check: bool = False) -> "RegistryClient":
        """This client with another login; all else is shared. `is_check`: to find out whether it is admitted, now.

        Raises LoginRequired for a login without content.
        """
        credential = credential_of(login)
        if login is not None and credential.is_anonymous:
            raise LoginRequired(f"{self._prefix} rejects this login")
        client = self._with_session(self._session.for_client(ClientLoginAuth(self._responder, credential)))
        client._login, client._is_check = credential, is_check
        return client

    def with_passed(self, passed: tuple[str, ...]) -> "RegistryClient":
        """This client for a request that has passed these servers: the registry is told."""
        return self._with_session(self._session.with_passed(passed))

    def _with_session(self, session: RegistrySession) -> "RegistryClient":
        """This client with another session; all else is shared."""
        client = copy.copy(self)
        client._session = session
        client._lists = ListReader(self._prefix, session, client._status_error)
        client._blobs = UpstreamBlobs(session, self._limits, client._status_error)
        return client

    def _is_as_operator(self, repository: str) -> bool:
        """Whether neither the client nor the operator has a login: then the limits of one are those of the other."""
        return self._login is not None and self._login.is_anonymous and not self._operator.has_login(repository)

    def _hold(self, credential: Credential, error: RegistryError) -> None:
        """Send no request with this login until Retry-After has passed."""
        with self._lock:
            self._held[credential] = time.monotonic() + (error.retry_after_s or errors.RETRY_AFTER_S), error

    def _check_held(self) -> None:
        """Raise the error of the rate limit that the registry has for this login."""
        if self._login is None or not self._held:
            return
        with self._lock:
            until, error = self._held.get(self._login) or (0.0, None)
        wait_s = until - time.monotonic()
        if error is not None and wait_s > 0:
            raise error.copy(retry_after_s=math.ceil(wait_s), remembered=True)

    def _check_login(self, deadline: float | None = None) -> None:
        rejected = f"{self._prefix} rejects this login"
        try:
            response = self._session.ping(self._call_limits(self._limits.response_timeout_s, deadline))
        except AuthenticationFailed as exc:
            raise LoginRequired(rejected, remembered=exc.remembered, details=exc.details) from exc
        http = response.http
        http.finish()
        if http.status in (401, 403):
            raise LoginRequired(rejected, details=http.details.with_cure(""))
        if http.status != 200:
            raise self._status_error(response, RegistryRequest("GET", "", url=http.url))
        if is_error_page(http):
            raise errors.web_page(http.server, http.details, "the API version")

    # State

    def check_api(self) -> str:
        """Request `/v2/` as an operation would be requested, and return what works. Nothing is remembered of it."""
        try:
            response = self._session.ping(self._call_limits(self._limits.response_timeout_s))
        except UpstreamError as error:
            raise error.error from error
        except AuthenticationFailed as exc:
            raise self._login_error(exc.details, is_anonymous=exc.is_anonymous) from exc
        http, authorization = response.http, response.authorization
        http.finish()
        is_anonymous = authorization.credential.is_anonymous
        match http.status:
            case 200 if authorization.header is None:
                return "the registry responds, and requires no login for /v2/"
            case 200:
                return f"the registry responds, and accepts the {'anonymous token' if is_anonymous else 'login'}"
            case 401 | 403 if is_anonymous and authorization.token:
                return "the registry responds, and gives anonymous tokens; some images may need a login"
            case 401 | 403 if not is_error_page(http):
                details = attrs.evolve(http.details, credentials=authorization.credential.source)
                raise self._login_error(details, is_anonymous=is_anonymous)
            case 404 if self._origin.host in HOSTS_WITHOUT_API_VERSION:
                return "the registry responds; it has no /v2/, as is known of it"
            case 404 | 410:
                details = http.details.with_cure(f"correct `registry` of the upstream {self._prefix}")
                raise BadUpstream(f"{self._prefix} is not a registry: it has no /v2/", details=details)
        request = RegistryRequest("GET", "", url=http.url)
        failure = self._status_error(response, request)
        raise failure.error if isinstance(failure, UpstreamError) else failure

    def _login_error(self, details: FailureDetails | None, *, is_anonymous: bool) -> Denied:
        problem = (
            "requires a login: set `auth` for this prefix" if is_anonymous else "rejects the login: correct `auth`"
        )
        return Denied(f"{self._prefix} {problem}", details=details and details.with_cure(""))

    @property
    def is_breaker_open(self) -> bool:
        """Whether operations fail without a request, because the upstream is unavailable or rate limited."""
        return self._breaker.is_open

    def close(self) -> None:
        """Close the idle connections and stop probing."""
        self._breaker.close()
        self._transport.close()

    def _run(
        self,
        name: str,
        repository: str,
        operation: Callable[["RegistryClient"], T],
        probe: Callable[["RegistryClient"], object] | None = None,
    ) -> T:
        """Run an operation. With the operator's login it also serves as the probe of the circuit breaker.

        `probe` serves as that instead, if the operation has a deadline: it has passed when the probe is repeated.
        """
        with self._guard(name, repository, partial(probe or operation, self._operator)):
            return operation(self)

    @contextmanager
    def _guard(
        self,
        name: str,
        repository: str,
        probe: Callable[[], object],
        *,
        check: Callable[[float], object] | None = None,
        is_resume: bool = False,
        is_late: bool = False,
        has_copy: bool = False,
    ) -> Iterator[None]:
        """Check before an operation whether the upstream and the repository are available, and record its result.

        `probe` repeats the operation; `check` repeats it at little cost until a deadline. `is_late`: a timeout is not
        counted. `has_copy`: the caller can serve something stale, which must not wait.
        """
        if not is_resume:
            self._check_available(repository, probe, has_copy=has_copy)
        try:
            with metrics.upstream_seconds.labels(self._prefix, name).time():
                yield
        except UpstreamError as error:
            metrics.upstream_failures.labels(self._prefix, reason_of(error.error)).inc()
            if isinstance(error.error, LoopDetected):
                self._report_loop(error.error)
            if not (is_late and isinstance(error.error, UpstreamTimeout)):
                self._record_failure(repository, error, probe)
            raise error.error from error
        except RegistryError as error:
            if not error.remembered:
                self._record_success(repository, check)
            raise
        except RangesUnsupported:
            self._record_success(repository, check)
            raise
        self._record_success(repository, check)

    def _report_loop(self, error: RegistryError) -> None:
        with self._lock:
            if self._reported:
                return
            self._reported[self._prefix] = True
        log.error(
            "an upstream leads back to a server that the request has passed: only cached content is served",
            upstream=self._prefix,
            **error.log_fields(),
        )

    def _check_available(self, repository: str, probe: Callable[[], object], *, has_copy: bool) -> None:
        self._check_held()
        try:
            self._breaker.check(probe, may_wait=not self._failures.is_failing(repository))
            self._failures.check(repository, probe, may_wait=not has_copy)
        except RegistryError:
            if self._breaker.is_open:
                self._failures.forget()
            raise

    def _record_success(self, repository: str, check: Callable[[float], object] | None) -> None:
        self._breaker.record_success()
        self._failures.record_success(repository, check)

    def _record_failure(self, repository: str, error: UpstreamError, probe: Callable[[], object]) -> None:
        match error.cause:
            case Cause.NOT_COUNTED:
                pass
            case Cause.RATE_LIMITED if self._login is not None and not self._is_as_operator(repository):
                self._hold(self._login, error.error)
            case Cause.NO_RESPONSE | Cause.SERVER_ERROR if self._is_check and self._login != ANONYMOUS:
                pass  # perhaps because of this login
            case Cause.NO_RESPONSE | Cause.SERVER_ERROR if not self._breaker.is_open:
                if self._failures.record_failure(repository, error):
                    self._breaker.suspect(error, probe, self._failures.find_known_good(repository) or self._ping)
            case _:
                self._breaker.record_failure(error, probe)

    def _ping(self, deadline: float) -> None:
        """Get any response of the registry but 5xx. Raises UpstreamError."""
        response = self._transport.send(UpstreamRequest(self._prefix, "GET", Url(self._origin, "/v2/"), {}, deadline))
        response.finish()
        if response.status >= 500:
            raise errors.server_error(self._prefix, response.status, response.details)

    # Manifests

    def _head_manifest(self, repository: str, reference: Reference, deadline: float | None = None) -> Descriptor:
        limits = self._call_limits(self._limits.check_timeout, deadline)
        with self._lock:
            has_no_head = repository in self._without_head or ALL_REPOSITORIES in self._without_head
        if has_no_head:
            return self._get_manifest(repository, reference, limits).descriptor
        request = RegistryRequest("HEAD", repository, reference, accept=ACCEPT_HEADER)
        response = self._session.send(request, limits)
        http = response.http
        http.finish()
        record_rate_limit(self._prefix, http)
        if http.status == 200 and (descriptor := find_descriptor(http, reference)) is not None:
            return descriptor
        is_missing = http.status in (404, 410)
        if is_missing and not self._must_confirm(repository, reference, http):
            raise self._status_error(response, request)
        if http.status != 200 and not is_missing and not _needs_get(http):
            raise self._status_error(response, request)
        try:
            descriptor = self._get_manifest(repository, reference, limits).descriptor
        except ManifestUnknown:
            if is_missing:
                self._set(self._missing, (repository, reference, self._login))
            raise
        if http.status in (405, 501):
            self._set(self._without_head, ALL_REPOSITORIES)
        if is_missing:
            self._set(self._without_head, repository)
        return descriptor

    def _must_confirm(self, repository: str, reference: Reference, http: UpstreamResponse) -> bool:
        """Whether a 404 to HEAD is confirmed by GET: once a minute for each tag, and always if it is not JSON.

        Some registries respond to HEAD with 404 although they have the tag, for example those that import it for a GET.
        """
        with self._lock:
            is_confirmed = (repository, reference, self._login) in self._missing
        return _needs_get(http) or (isinstance(reference, Tag) and not is_confirmed)

    def _set(self, cache: "TTLCache[Hashable, bool]", key: Hashable) -> None:
        with self._lock:
            cache[key] = True

    def _get_manifest(self, repository: str, reference: Reference, limits: CallLimits) -> Manifest:
        """A body that breaks off is requested once more. (The transport retries what breaks off before its headers.)"""
        request = RegistryRequest("GET", repository, reference, accept=ACCEPT_HEADER)
        response = self._session.send(request, limits)
        try:
            return self._read_manifest(response, request)
        except UpstreamError as error:
            if not error.is_retryable:
                raise
        return self._read_manifest(self._session.send(request, limits), request)

    def _read_manifest(self, response: RegistryResponse, request: RegistryRequest) -> Manifest:
        http = response.http
        record_rate_limit(self._prefix, http)
        if http.status != 200:
            http.finish()
            raise self._status_error(response, request)
        try:
            length = content_length(http)
            check_transfer_encoding(http)
            if length is not None and length > MAX_MANIFEST_BYTES:
                problem = f"has a manifest of more than {MAX_MANIFEST_BYTES} bytes"
                raise errors.bad_response(self._prefix, problem, http.details)
            body = http.read(MAX_MANIFEST_BYTES)
        except UpstreamError as error:
            http.close()
            raise response.attribute(error) from error
        announced = find_digest(http.header("Docker-Content-Digest"))
        expected = request.reference if isinstance(request.reference, Digest) else announced
        try:
            return Manifest.parse(body, http.header("Content-Type"), expected)
        except BadUpstream as error:
            # Without a length, a truncated body cannot be distinguished from a wrong one.
            is_truncated = length is None and http.header("Transfer-Encoding") is None
            if is_web_page(http):
                raise errors.web_page(http.server, http.details) from error
            described = BadUpstream(error.message + describe(http.encoding), details=http.details)
            raise UpstreamError(described, Cause.NOT_COUNTED, is_retryable=is_truncated) from error

    # Blobs

    def _head_blob(self, repository: str, digest: Digest, deadline: float | None = None) -> int:
        limits = self._call_limits(self._limits.response_timeout_s, deadline)
        request = RegistryRequest("HEAD", repository, digest, is_blob=True)
        response = self._session.send(request, limits)
        http = response.http
        http.finish()
        if http.status == 200:
            if (size := find_announced_size(http, digest)) is not None:
                return size
        elif not _needs_get(http):
            raise self._status_error(response, request)
        return self._size_by_range(repository, digest, limits)

    def _size_by_range(self, repository: str, digest: Digest, limits: CallLimits) -> int:
        """Request the first byte: some registries reject HEAD, and so do URLs that are signed for GET."""
        request = RegistryRequest("GET", repository, digest, is_blob=True, byte_range="bytes=0-0")
        response = self._session.send(request, limits)
        http = response.http
        if http.status >= 400 and http.status != 416:
            http.finish()
            raise self._status_error(response, request)
        try:
            size = find_size(http, digest)
        finally:
            http.close()
        if size is None:
            raise self._status_error(response, request)
        return size

    # Errors and limits

    def _call_limits(self, timeout_s: float, deadline: float | None = None) -> CallLimits:
        if deadline is None and timeout_s:
            deadline = time.monotonic() + timeout_s
        return CallLimits(deadline, renews_tokens=self._is_check)

    def _status_error(self, response: RegistryResponse, request: RegistryRequest) -> UpstreamError | RegistryError:
        """The error for a status that is not a success. The response was finished."""
        http = response.http
        match http.status:
            case 401 | 403 | 404 | 410 | 451:
                return self._refusal(response, request)
            case 400 if http.url.origin == self._origin and self._origin.scheme == "http" and _wants_tls(http):
                problem = f"requires TLS: write `registry: https://...` for the upstream {self._prefix}"
                error = errors.bad_response(http.server, problem, http.details)
            case 429:
                wait_s = parse_retry_after(http.header("Retry-After"), time.time())
                error = errors.rate_limited(http.server, wait_s, http.details)
            case 407:
                error = errors.unreachable(http.server, self._proxy_login, http.details)
            case 408:
                error = errors.timed_out(http.server, http.details)
            case 508:
                error = errors.loop_detected(http.server, http.details)
            case status if 500 <= status < 600:
                header = http.header("Retry-After")
                wait_s = parse_retry_after(header, time.time()) if header else errors.RETRY_AFTER_S
                error = errors.server_error(http.server, status, http.details, wait_s)
            case status:
                error = errors.bad_response(http.server, f"responded with status {status}", http.details)
        if is_of_dockyard(http.header_values("Cache-Status")):
            error = error.as_not_counted()  # it is well itself, and has content for which it needs no upstream
        return response.attribute(error)

    def _refusal(self, response: RegistryResponse, request: RegistryRequest) -> UpstreamError | RegistryError:
        """The error for a status that says that something does not exist, or may not be read."""
        http = response.http
        credential = response.authorization.credential
        details = attrs.evolve(http.details, credentials=credential.source)
        is_for_client = self._session.is_for_client and not response.is_from_other_origin
        match http.status:
            case 401 | 403 if is_for_client:
                failed = AuthenticationFailed(is_anonymous=credential.is_anonymous, details=details)
                return refused(self._prefix, failed)
            case 451 if is_for_client:
                return not_found(self._prefix, request, details)
            case 401 | 403 if response.is_from_other_origin and needs_login(http):
                if response.authorization.header and not response.authorization.credential.is_anonymous:
                    return denied(self._prefix, request, details)
                error = errors.login_elsewhere(self._prefix, details)
            case 401 | 403 if response.is_from_other_origin:
                error = errors.server_error(http.server, http.status, details)
            case 401 | 403 | 451 if not response.authorization.credential.is_anonymous:
                return denied(self._prefix, request, details)
            case status if is_error_page(http):
                error = errors.error_page(http.server, status, details)
            case 401 | 403:
                return not_found(self._prefix, request, details, may_need_login=True)
            case _:
                return not_found(self._prefix, request, details)
        return response.attribute(error)


def _needs_get(http: UpstreamResponse) -> bool:
    """Whether a response to HEAD says little: GET may work, or its body tells that a firewall responded."""
    return http.status in _RETRY_WITH_GET or (http.status in (404, 410) and not is_json(http))


def _wants_tls(http: UpstreamResponse) -> bool:
    """Whether the body of an error says that the server expects TLS: that of Go and nginx, or of Apache."""
    body = (http.drained or b"").lower()
    return any(text in body for text in (b"http request to an https server", b"https port", b"ssl-enabled server port"))

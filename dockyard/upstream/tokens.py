"""Bearer tokens from the token service of a registry: fetched once for all waiting threads, and cached.

A token belongs to (realm, service, scopes, credential). Its lifetime starts when our request is sent and is measured
on the monotonic clock; timestamps of the service are ignored. If a token cannot be renewed while
it is valid, it stays in use, and the renewal is tried again after `RETRY_REFRESH_S`.

How a failure is understood:

| response of the token service | meaning | error |
|---|---|---|
| none: refused, unknown host, TLS, timeout | as if the registry had not responded for the repository | UpstreamError |
| 5xx, 200 with anything but JSON | as if the registry had responded with 5xx for the repository | UpstreamError |
| 429 | no token of this service until Retry-After has passed; tokens that are valid stay in use | UpstreamError |
| 401, 403 | the credentials are rejected, or anonymous access | AuthenticationFailed |
| any other 4xx, 200 without a token | no token for these scopes; there may be one for others | TokenRefused |
| 4xx with a web page (401: without credentials) | it comes from a firewall or a proxy | UpstreamError |

See "Token Authentication Specification" of the distribution project.
"""

import json
import math
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Protocol
from urllib.parse import quote, urlencode

import attrs
import structlog
from cachetools import LRUCache

from dockyard.errors import BadUpstream, FailureDetails, RegistryError, TooManyRequests, Unavailable
from dockyard.log import is_debug
from dockyard.upstream import errors
from dockyard.upstream.errors import AuthenticationFailed, Cause, UpstreamError
from dockyard.upstream.headers import parse_retry_after
from dockyard.upstream.keychain import Credential
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.rejected_credentials import RejectedCredentials
from dockyard.upstream.responses import is_error_page
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import REDIRECTS, InvalidUrl, Url, resolve_redirect

MAX_TOKEN_RESPONSE_BYTES = 64 * 1024
MIN_LIFETIME_S = 60.0
MAX_LIFETIME_S = 3600.0
RETRY_REFRESH_S = 10.0
RETRY_CONNECT_S = 1.0
MAX_CACHED_TOKENS = 1024
MAX_HELD = 64
MAX_REALMS = 64
MAX_SCOPES_CHARS = 300  # in messages
MAX_REDIRECTS = 10
CLIENT_ID = "dockyard"
STAGE = "token"  # in the details of errors


log = structlog.get_logger()


class RequestSender(Protocol):
    """Sends one HTTP request: the transport, or a fake in tests."""

    def send(self, request: UpstreamRequest) -> UpstreamResponse: ...


@attrs.define(eq=False)
class CallLimits:
    """What one operation on a registry may still use, and what it has used.

    `deadline` is on the monotonic clock; None: no deadline. `new_tokens` were made for this operation: if the registry
    refuses one, another one would not help. `asked_without_token`: where a request without Authorization was sent.
    `renews_tokens`: tokens that were made for other operations are not used: they may say what is not true any more.
    `passed`: the servers that the request has passed for which the operation is done.
    """

    deadline: float | None
    token_requests: int = 3
    pings: int = 1
    renews_tokens: bool = False
    passed: tuple[str, ...] = ()
    new_tokens: set[str] = attrs.field(factory=set, repr=False)
    asked_without_token: set[Hashable] = attrs.field(factory=set)

    def may_use(self, token: str) -> bool:
        """Whether a token that was made before may be used."""
        return not self.renews_tokens or token in self.new_tokens

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline, at least 0; None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())


@attrs.frozen
class TokenEndpoint:
    """The token service of a registry and what a token is requested for. `registry_zone` is the registry's own."""

    realm: Url
    service: str
    scopes: tuple[str, ...]
    registry_zone: NetworkZone


@attrs.define(eq=False)
class _Token:
    value: str = attrs.field(repr=False)
    refresh_at: float
    expires_at: float


class TokenRefused(UpstreamError):
    """The token service is up and has no token for the requested scopes."""

    def __init__(self, server: str, problem: str, details: FailureDetails) -> None:
        super().__init__(BadUpstream(f"{server} {problem}", details=details), Cause.NOT_COUNTED)


class TokenProvider:
    """The tokens of one upstream."""

    def __init__(self, prefix: str, sender: RequestSender, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = f"the token service of {prefix}"
        self._proxy_login = errors.explain_proxy_login(prefix)
        self._sender = sender
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: LRUCache[Hashable, _Token] = LRUCache(MAX_CACHED_TOKENS)
        self._pending: dict[Hashable, Future[str]] = {}
        self._rejected = RejectedCredentials(clock)
        self._held: LRUCache[Hashable, tuple[float, RegistryError]] = LRUCache(MAX_HELD)
        self._has_post: LRUCache[Url, bool] = LRUCache(MAX_REALMS)

    def get(self, endpoint: TokenEndpoint, credential: Credential, limits: CallLimits) -> str:
        """A token: the cached one, or a new one. Raises UpstreamError, AuthenticationFailed."""
        key = (endpoint.realm, endpoint.service, endpoint.scopes, credential)
        with self._lock:
            cached = self._tokens.get(key)
            if cached is not None and (self._clock() >= cached.expires_at or not limits.may_use(cached.value)):
                cached = None
            pending = self._pending.get(key)
            if cached is not None and (pending is not None or self._clock() < cached.refresh_at):
                return cached.value
            if pending is None:
                future = self._pending[key] = Future()
        if pending is not None:
            token = self._wait(pending, endpoint, limits)
            limits.new_tokens.add(token)
            return token
        try:
            token = self._refresh(key, endpoint, credential, limits, cached)
        except BaseException as exc:
            future.set_exception(exc)
            raise
        else:
            future.set_result(token)
            return token
        finally:
            with self._lock:
                del self._pending[key]

    def drop(self, token: str) -> None:
        """Forget a token that the registry refused, whatever it was requested for."""
        with self._lock:
            for key in [key for key, kept in self._tokens.items() if kept.value == token]:
                del self._tokens[key]

    def _wait(self, pending: "Future[str]", endpoint: TokenEndpoint, limits: CallLimits) -> str:
        """The result of the request that another thread has sent."""
        try:
            return pending.result(limits.remaining_s)
        except TimeoutError as exc:
            error = "timed out: another request for this token is still waiting"
            details = FailureDetails(endpoint.realm.origin.host_and_port, error, STAGE)
            raise errors.timed_out(self._server, details) from exc
        except UpstreamError as exc:
            raise _as_final(exc) from exc
        except AuthenticationFailed as exc:
            raise AuthenticationFailed(
                is_anonymous=exc.is_anonymous, details=exc.details, is_login_wrong=exc.is_login_wrong
            ) from exc

    def _refresh(
        self, key: Hashable, endpoint: TokenEndpoint, credential: Credential, limits: CallLimits, cached: _Token | None
    ) -> str:
        """A new token; the cached one if that fails."""
        started = self._clock()
        deadline = limits.deadline
        if cached is not None and limits.remaining_s is not None:
            # The cached token is still valid: its renewal may use half of the time that the operation has left.
            deadline = time.monotonic() + limits.remaining_s / 2
        try:
            value, lifetime_s = self._fetch_with_retry(endpoint, credential, limits, deadline)
        except UpstreamError as error:
            if cached is None:
                # The retry was made here, and one by the caller would exceed the limits.
                raise _as_final(error) from error
            cached.refresh_at = self._clock() + RETRY_REFRESH_S
            if is_debug():
                log.debug("token not renewed: the current one stays in use", **error.error.log_fields())
            return cached.value
        token = _Token(value, started + min(lifetime_s * 2 / 3, lifetime_s - 10.0), started + lifetime_s)
        with self._lock:
            self._tokens[key] = token
        limits.new_tokens.add(value)
        return value

    def _fetch_with_retry(
        self, endpoint: TokenEndpoint, credential: Credential, limits: CallLimits, deadline: float | None
    ) -> tuple[str, float]:
        """As `_fetch`; a lost connection allows one more attempt."""
        try:
            return self._fetch(endpoint, credential, limits, deadline)
        except UpstreamError as error:
            if not error.is_retryable or not limits.token_requests:
                raise
        return self._fetch(endpoint, credential, limits, deadline)

    def _fetch(
        self, endpoint: TokenEndpoint, credential: Credential, limits: CallLimits, deadline: float | None
    ) -> tuple[str, float]:
        """Request a token; return it and its lifetime in seconds. Raises UpstreamError, AuthenticationFailed."""
        login, part = (endpoint.realm, credential), (endpoint.service, endpoint.scopes)
        if not credential.is_anonymous:
            self._rejected.check(login, part)
        self._check_held(endpoint.realm, login)
        try:
            response = self._request(endpoint, credential, limits, deadline)
        except UpstreamError as error:
            if error.cause is not Cause.NO_CONNECTION:
                raise
            # The registry may have other token services, and does respond: this concerns who needs this service.
            self._hold(endpoint.realm, RETRY_CONNECT_S, error.error)
            raise UpstreamError(error.error, Cause.NO_RESPONSE, is_retryable=error.is_retryable) from error
        if response.status == 200:
            token = self._read_token(response, endpoint, credential)
            if is_debug():
                log.debug(
                    "token fetched",
                    host=endpoint.realm.origin.host_and_port,
                    service=endpoint.service,
                    scopes=" ".join(endpoint.scopes),
                    expires_in_s=token[1],
                    credentials=credential.source,
                )
            if not credential.is_anonymous:
                self._rejected.accept(login)
            return token
        response.finish()
        if (
            400 <= response.status < 500
            and is_error_page(response)
            and (response.status != 401 or credential.is_anonymous)
        ):
            raise errors.error_page(self._server, response.status, _details(response, credential))
        if response.status in (401, 403):
            raise self._rejection(response, endpoint, credential)
        raise self._status_error(response, endpoint, credential)

    def _rejection(
        self, response: UpstreamResponse, endpoint: TokenEndpoint, credential: Credential
    ) -> AuthenticationFailed:
        """The error for a 401 or 403, which is remembered."""
        details = _details(response, credential)
        login, part = (endpoint.realm, credential), (endpoint.service, endpoint.scopes)
        is_part = response.status != 401 or (credential.is_of_client and bool(endpoint.scopes))
        is_login_wrong = False
        if not credential.is_anonymous and not is_part:
            is_login_wrong = self._rejected.reject(login, part, details)
        elif not credential.is_anonymous:
            self._rejected.reject_part(login, part, details)
        return AuthenticationFailed(
            is_anonymous=credential.is_anonymous, details=details, is_login_wrong=is_login_wrong
        )

    def _status_error(
        self, response: UpstreamResponse, endpoint: TokenEndpoint, credential: Credential
    ) -> UpstreamError:
        details = _details(response, credential)
        match response.status:
            case 407:
                return errors.unreachable(self._server, self._proxy_login, response.details)
            case 408:
                return errors.timed_out(self._server, details)
            case 508:
                return errors.loop_detected(self._server, details)
            case 429:
                wait_s = parse_retry_after(response.header("Retry-After"), time.time())
                limited = errors.rate_limited(self._server, wait_s, details)
                self._hold((endpoint.realm, credential), wait_s, limited.error)
                return limited.as_not_counted()
            case status if 400 <= status < 500:
                return TokenRefused(self._server, f"responded with status {status} to {_names(endpoint)}", details)
            case status:
                header = response.header("Retry-After")
                wait_s = parse_retry_after(header, time.time()) if header else errors.RETRY_AFTER_S
                return errors.server_error(self._server, status, details, wait_s)

    def _hold(self, key: Hashable, wait_s: float, error: RegistryError) -> None:
        """Send no request to a realm, or with a login, for some seconds."""
        with self._lock:
            self._held[key] = self._clock() + wait_s, error

    def _check_held(self, *keys: Hashable) -> None:
        """Raises UpstreamError while no request may be sent."""
        for key in keys:
            with self._lock:
                until, error = self._held.get(key) or (0.0, None)
            wait_s = until - self._clock()
            if error is not None and wait_s > 0:
                if isinstance(error, TooManyRequests):
                    raise UpstreamError(error.copy(retry_after_s=math.ceil(wait_s)), Cause.NOT_COUNTED)
                raise UpstreamError(error.copy(), Cause.NO_RESPONSE)

    def _request(
        self, endpoint: TokenEndpoint, credential: Credential, limits: CallLimits, deadline: float | None
    ) -> UpstreamResponse:
        """POST an identity token where the service supports it, else GET.

        A 404 or 405 says that it does not, if a GET succeeds there, and no POST has succeeded before.
        """
        if not credential.identity_token or self._has_post.get(endpoint.realm) is False:
            return self._get(endpoint, credential, limits, deadline)
        response = self._post(endpoint, credential, limits, deadline)
        if response.status not in (404, 405) or self._has_post.get(endpoint.realm):
            if response.status == 200:
                self._has_post[endpoint.realm] = True
            return response
        response.finish()
        response = self._get(endpoint, credential, limits, deadline)
        if response.status == 200:
            self._has_post[endpoint.realm] = False
        return response

    def _post(
        self, endpoint: TokenEndpoint, credential: Credential, limits: CallLimits, deadline: float | None
    ) -> UpstreamResponse:
        """Exchange an OAuth 2.0 refresh token (RFC 6749 section 6)."""
        fields = {
            "grant_type": "refresh_token",
            "service": endpoint.service,
            "client_id": CLIENT_ID,
            "scope": " ".join(endpoint.scopes),
            "refresh_token": credential.identity_token,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        request = UpstreamRequest(
            self._server,
            "POST",
            endpoint.realm,
            headers,
            deadline,
            endpoint.registry_zone,
            body=urlencode(fields).encode(),
            passed=limits.passed,
        )
        return self._send(request, credential, limits)

    def _get(
        self, endpoint: TokenEndpoint, credential: Credential, limits: CallLimits, deadline: float | None
    ) -> UpstreamResponse:
        """Request a token with Basic credentials or none; they are not sent to another origin after a redirect."""
        service = [("service", endpoint.service)] if endpoint.service else []
        scopes = [("scope", scope) for scope in endpoint.scopes]
        url = endpoint.realm.with_query(urlencode([*service, *scopes], quote_via=quote))
        headers = {} if credential.is_anonymous else {"Authorization": credential.basic()}
        for _ in range(MAX_REDIRECTS):
            request = UpstreamRequest(
                self._server,
                "GET",
                url,
                headers,
                deadline,
                endpoint.registry_zone,
                may_repeat=False,
                passed=limits.passed,
            )
            response = self._send(request, credential, limits)
            if response.status not in REDIRECTS:
                return response
            response.finish()
            try:
                url = resolve_redirect(url, response.header("Location"))
            except InvalidUrl as exc:
                problem = f"sent an invalid redirect: {exc}"
                raise errors.destination_not_allowed(self._server, problem, _details(response, credential)) from exc
            limits.token_requests += 1  # a redirect belongs to the same request
            if url.origin != endpoint.realm.origin:
                headers = {}
        raise errors.bad_response(
            self._server, f"redirects more than {MAX_REDIRECTS} times", _details(response, credential)
        )

    def _send(self, request: UpstreamRequest, credential: Credential, limits: CallLimits) -> UpstreamResponse:
        if limits.token_requests <= 0:
            error = "no token: the operation has sent as many requests for one as it may"
            details = FailureDetails(request.url.origin.host_and_port, error, STAGE, credential.source)
            raise AuthenticationFailed(is_anonymous=credential.is_anonymous, details=details)
        limits.token_requests -= 1
        return self._sender.send(request)

    def _read_token(
        self, response: UpstreamResponse, endpoint: TokenEndpoint, credential: Credential
    ) -> tuple[str, float]:
        try:
            document = json.loads(response.read(MAX_TOKEN_RESPONSE_BYTES))
        except (ValueError, RecursionError) as exc:
            raise self._invalid(response) from exc
        except UpstreamError as exc:
            if isinstance(exc.error, BadUpstream):
                raise self._invalid(response) from exc
            raise UpstreamError(exc.error, Cause.NO_RESPONSE, is_retryable=exc.is_retryable) from exc
        if not isinstance(document, dict):
            raise self._invalid(response)
        token = document.get("token") or document.get("access_token")
        if not token and not credential.is_anonymous:
            # Some services send an empty token if the password is wrong.
            details = attrs.evolve(_details(response, credential), error=f"an empty token ({response.details.error})")
            part = (endpoint.service, endpoint.scopes)
            is_login_wrong = self._rejected.reject((endpoint.realm, credential), part, details)
            raise AuthenticationFailed(is_anonymous=False, details=details, is_login_wrong=is_login_wrong)
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
            problem = f"sent no valid token for {_names(endpoint)}"
            raise TokenRefused(self._server, problem, _details(response, credential))
        return token, _parse_lifetime_s(document.get("expires_in"))

    def _invalid(self, response: UpstreamResponse) -> UpstreamError:
        """The error for a response that no token service sends: the page of a proxy, an endless one."""
        message = f"{self._server} sent a response without a token"
        details = attrs.evolve(response.details, stage=STAGE)
        error = Unavailable(message, retry_after_s=errors.RETRY_AFTER_S, details=details)
        return UpstreamError(error, Cause.SERVER_ERROR)


def _parse_lifetime_s(value: object) -> float:
    """`expires_in` within the limits; the minimum when it is absent or not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= MIN_LIFETIME_S:
        return MIN_LIFETIME_S
    return float(value) if value < MAX_LIFETIME_S else MAX_LIFETIME_S


def _as_final(error: UpstreamError) -> UpstreamError:
    """A copy that says nothing about another attempt."""
    if isinstance(error, TokenRefused):
        return error
    return UpstreamError(error.error, error.cause)


def _details(response: UpstreamResponse, credential: Credential) -> FailureDetails:
    """The details of a response of the token service."""
    return attrs.evolve(response.details, stage=STAGE, credentials=credential.source)


def _names(endpoint: TokenEndpoint) -> str:
    """The requested scopes, in a message."""
    return " ".join(endpoint.scopes)[:MAX_SCOPES_CHARS] or "a request without a scope"

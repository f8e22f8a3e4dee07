"""Bearer tokens from the token service of a registry: fetched once for all waiting threads, and cached.

A token belongs to (realm, service, scopes, credential). Its lifetime starts when our request is sent and is measured
on the monotonic clock; timestamps of the service are ignored. If a token cannot be renewed while
it is valid, it stays in use, and the renewal is tried again after `RETRY_REFRESH_S`.

See "Token Authentication Specification" of the distribution project.
"""

import json
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, NoReturn, Protocol
from urllib.parse import quote, urlencode

import attrs
from cachetools import LRUCache, TTLCache

from dockyard.errors import Unavailable, UpstreamTimeout
from dockyard.upstream import errors
from dockyard.upstream.errors import AuthenticationFailed, Cause, UpstreamError
from dockyard.upstream.headers import parse_retry_after
from dockyard.upstream.keychain import Credential
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import REDIRECTS, InvalidUrl, Url, resolve_redirect

MAX_TOKEN_RESPONSE_BYTES = 64 * 1024
MIN_LIFETIME_S = 60.0
MAX_LIFETIME_S = 3600.0
RETRY_REFRESH_S = 10.0
REJECTED_FOR_S = 30.0
MAX_CACHED_TOKENS = 1024
MAX_REDIRECTS = 10
CLIENT_ID = "dockyard"


class RequestSender(Protocol):
    """Sends one HTTP request: the transport, or a fake in tests."""

    def send(self, request: UpstreamRequest) -> UpstreamResponse: ...


@attrs.define(eq=False)
class CallLimits:
    """What one operation on a registry may still use. `deadline` is on the monotonic clock; None: no deadline."""

    deadline: float | None
    token_requests: int = 2
    pings: int = 1

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


class RejectedCredentials:
    """Credentials that were rejected a short time ago. They are not sent again: repeated failures lock accounts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._rejected: TTLCache[Hashable, bool] = TTLCache(MAX_CACHED_TOKENS, REJECTED_FOR_S, clock)
        self._lock = threading.Lock()

    def add(self, key: Hashable) -> None:
        with self._lock:
            self._rejected[key] = True

    def check(self, *keys: Hashable) -> None:
        """Raises AuthenticationFailed if one of the keys was added a short time ago."""
        with self._lock:
            is_rejected = any(key in self._rejected for key in keys)
        if is_rejected:
            raise AuthenticationFailed(is_anonymous=False, remembered=True)


class TokenProvider:
    """The tokens of one upstream."""

    def __init__(self, prefix: str, sender: RequestSender, clock: Callable[[], float] = time.monotonic) -> None:
        self._server = f"the token service of {prefix}"
        self._sender = sender
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: LRUCache[Hashable, _Token] = LRUCache(MAX_CACHED_TOKENS)
        self._pending: dict[Hashable, Future[str]] = {}
        self._rejected = RejectedCredentials(clock)
        self._realms_without_post: set[Url] = set()

    def get(
        self, endpoint: TokenEndpoint, credential: Credential, limits: CallLimits, rejected_token: str | None = None
    ) -> str:
        """A token other than the one that was just rejected. Raises UpstreamError, AuthenticationFailed."""
        key = (endpoint.realm, endpoint.service, endpoint.scopes, credential)
        with self._lock:
            cached = self._tokens.get(key)
            if cached is not None and cached.value == rejected_token:
                del self._tokens[key]
                cached = None
            if cached is not None and self._clock() >= cached.expires_at:
                cached = None
            pending = self._pending.get(key)
            if cached is not None and (pending is not None or self._clock() < cached.refresh_at):
                return cached.value
            if pending is None:
                future = self._pending[key] = Future()
        if pending is not None:
            return self._wait(pending, limits)
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

    def _wait(self, pending: "Future[str]", limits: CallLimits) -> str:
        """The result of the request that another thread has sent."""
        try:
            return pending.result(limits.remaining_s)
        except TimeoutError as exc:
            raise errors.timed_out(self._server) from exc
        except UpstreamError as exc:
            raise UpstreamError(exc.error, exc.cause) from exc
        except AuthenticationFailed as exc:
            raise AuthenticationFailed(is_anonymous=exc.is_anonymous) from exc

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
                # Not retryable: the retry was made here, and one by the caller would exceed the limits.
                raise UpstreamError(error.error, error.cause) from error
            cached.refresh_at = self._clock() + RETRY_REFRESH_S
            return cached.value
        token = _Token(value, started + min(lifetime_s * 2 / 3, lifetime_s - 10.0), started + lifetime_s)
        with self._lock:
            self._tokens[key] = token
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
        login = (endpoint.realm, credential)
        login_for_scopes = (*login, endpoint.service, endpoint.scopes)
        if not credential.is_anonymous:
            self._rejected.check(login, login_for_scopes)
        response = self._request(endpoint, credential, limits, deadline)
        match response.status:
            case 200:
                return self._read_token(response, login, credential)
            case 401:
                self._reject(response, login, credential)
            case 403:
                self._reject(response, login_for_scopes, credential)
        response.finish()
        if response.status == 429:
            raise errors.rate_limited(self._server, parse_retry_after(response.header("Retry-After"), time.time()))
        raise _as_outage(errors.server_error(self._server, response.status))

    def _reject(self, response: UpstreamResponse, key: Hashable, credential: Credential) -> NoReturn:
        response.finish()
        if not credential.is_anonymous:
            self._rejected.add(key)
        raise AuthenticationFailed(is_anonymous=credential.is_anonymous)

    def _request(
        self, endpoint: TokenEndpoint, credential: Credential, limits: CallLimits, deadline: float | None
    ) -> UpstreamResponse:
        """POST an identity token where the service supports it, else GET."""
        if credential.identity_token and endpoint.realm not in self._realms_without_post:
            response = self._post(endpoint, credential, limits, deadline)
            if response.status not in (404, 405):
                return response
            response.finish()
            self._realms_without_post.add(endpoint.realm)
        return self._get(endpoint, credential, limits, deadline)

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
                self._server, "GET", url, headers, deadline, endpoint.registry_zone, may_repeat=False
            )
            response = self._send(request, credential, limits)
            if response.status not in REDIRECTS:
                return response
            response.finish()
            try:
                url = resolve_redirect(url, response.header("Location"))
            except InvalidUrl as exc:
                raise errors.destination_not_allowed(self._server, f"sent an invalid redirect: {exc}") from exc
            limits.token_requests += 1  # a redirect belongs to the same request
            if url.origin != endpoint.realm.origin:
                headers = {}
        raise errors.bad_response(self._server, f"redirects more than {MAX_REDIRECTS} times")

    def _send(self, request: UpstreamRequest, credential: Credential, limits: CallLimits) -> UpstreamResponse:
        if limits.token_requests <= 0:
            raise AuthenticationFailed(is_anonymous=credential.is_anonymous)
        limits.token_requests -= 1
        return self._sender.send(request)

    def _read_token(self, response: UpstreamResponse, login: Hashable, credential: Credential) -> tuple[str, float]:
        try:
            document = json.loads(response.read(MAX_TOKEN_RESPONSE_BYTES))
        except (ValueError, RecursionError) as exc:
            raise self._invalid_token() from exc
        except UpstreamError as exc:
            raise _as_outage(exc) from exc
        fields: dict[str, Any] = document if isinstance(document, dict) else {}
        token = fields.get("token") or fields.get("access_token")
        if not token and not credential.is_anonymous:
            self._reject(response, login, credential)  # some services send an empty token if the password is wrong
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
            raise self._invalid_token()
        return token, _parse_lifetime_s(fields.get("expires_in"))

    def _invalid_token(self) -> UpstreamError:
        return _as_outage(errors.bad_response(self._server, "sent a response without a valid token"))


def _parse_lifetime_s(value: object) -> float:
    """`expires_in` within the limits; the minimum when it is absent or not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= MIN_LIFETIME_S:
        return MIN_LIFETIME_S
    return float(value) if value < MAX_LIFETIME_S else MAX_LIFETIME_S


def _as_outage(error: UpstreamError) -> UpstreamError:
    """The error for a token service that failed or sent an invalid response: the upstream is unavailable."""
    registry_error = error.error
    if not isinstance(registry_error, Unavailable | UpstreamTimeout):
        registry_error = Unavailable(registry_error.message, retry_after_s=errors.RETRY_AFTER_S)
    return UpstreamError(registry_error, Cause.NO_RESPONSE, is_retryable=error.is_retryable)

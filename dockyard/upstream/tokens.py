"""Tokens: made once for many waiting threads, kept for most of their life.

A token belongs to (realm, service, scope, credential). Its life is counted from our own request on the monotonic
clock; what the service says of the time of day is not used. While a token is still good, a
token service that fails does not matter: the old token goes on and the service is asked again a little later.
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, NoReturn, Protocol
from urllib.parse import quote, urlencode

import attrs

from dockyard.errors import Unavailable, UpstreamTimeout
from dockyard.upstream import errors
from dockyard.upstream.errors import AuthenticationFailed, Cause, UpstreamError
from dockyard.upstream.headers import parse_retry_after
from dockyard.upstream.keychain import Credential
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.transport import UpstreamRequest, UpstreamResponse
from dockyard.upstream.urls import REDIRECTS, InvalidUrl, Url, resolve_redirect

MAX_TOKEN_RESPONSE_BYTES = 64 * 1024
LIFE_S = (60.0, 3600.0)
RETRY_REFRESH_S = 10.0
REFUSED_FOR_S = 30.0
MAX_CACHED_TOKENS = 1024
MAX_REDIRECTS = 10
CLIENT_ID = "dockyard"


class RequestSender(Protocol):
    """What sends a request: the transport."""

    def send(self, request: UpstreamRequest) -> UpstreamResponse: ...


@attrs.define(eq=False)
class CallLimits:
    """What one call to a registry may still cost. `deadline` is on the monotonic clock; None: no limit in all."""

    deadline: float | None
    token_requests: int = 2
    pings: int = 1

    def left(self, max_bytes: float) -> float:
        """Seconds, at least 0."""
        return max_bytes if self.deadline is None else max(0.0, min(max_bytes, self.deadline - time.monotonic()))


@attrs.frozen
class TokenEndpoint:
    """Where a registry has its tokens made, and for what."""

    realm: Url
    name: str
    scopes: tuple[str, ...]
    registry_zone: NetworkZone  # where the registry lies


@attrs.define(eq=False)
class _Token:
    value: str = attrs.field(repr=False)
    refresh_at: float
    expires_at: float


class Refusals:
    """Logins that were refused a moment ago: asking again and again would lock an account."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: OrderedDict[Hashable, float] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, key: Hashable) -> None:
        with self._lock:
            self._until[key] = self._clock() + REFUSED_FOR_S
            while len(self._until) > MAX_CACHED_TOKENS:
                self._until.popitem(last=False)

    def check(self, *keys: Hashable) -> None:
        """Raises LoginRefused."""
        if any(self._until.get(key, 0.0) > self._clock() for key in keys):
            raise AuthenticationFailed(is_anonymous=False, remembered=True)


class TokenProvider:
    """The tokens of one upstream."""

    def __init__(self, who: str, sender: RequestSender, clock: Callable[[], float] = time.monotonic) -> None:
        self._who = f"the token service of {who}"
        self._sender = sender
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: OrderedDict[Hashable, _Token] = OrderedDict()
        self._downloads: dict[Hashable, Future[str]] = {}
        self._refusals = Refusals(clock)
        self._without_post: set[Url] = set()

    def get(
        self, service: TokenEndpoint, credential: Credential, budget: CallLimits, refused: str | None = None
    ) -> str:
        """A token; not the one that was just refused. Raises Fault, LoginRefused."""
        key = (service.realm, service.name, service.scopes, credential)
        with self._lock:
            kept = self._tokens.get(key)
            if kept is not None and kept.value == refused:
                del self._tokens[key]
                kept = None
            if kept is not None and self._clock() >= kept.expires_at:
                kept = None
            download = self._downloads.get(key)
            if kept is not None and (download is not None or self._clock() < kept.refresh_at):
                self._tokens.move_to_end(key)
                return kept.value
            is_ours = download is None
            if download is None:
                download = self._downloads[key] = Future()
        if not is_ours:
            return self._wait(download, budget)
        try:
            token = self._make(key, service, credential, budget, kept)
        except BaseException as exc:
            download.set_exception(exc)
            raise
        else:
            download.set_result(token)
            return token
        finally:
            with self._lock:
                del self._downloads[key]

    def _wait(self, download: "Future[str]", budget: CallLimits) -> str:
        try:
            return download.result(None if budget.deadline is None else budget.left(float("inf")))
        except TimeoutError as exc:
            raise errors.timed_out(self._who) from exc
        except UpstreamError as exc:
            raise UpstreamError(exc.error, exc.cause) from exc
        except AuthenticationFailed as exc:
            raise AuthenticationFailed(is_anonymous=exc.is_anonymous) from exc

    def _make(
        self, key: Hashable, service: TokenEndpoint, credential: Credential, budget: CallLimits, kept: _Token | None
    ) -> str:
        begun = self._clock()
        try:
            # While the old token is good, its renewal takes at most half of the time that the call has.
            deadline = budget.deadline
            if kept is not None and deadline is not None:
                deadline = time.monotonic() + budget.left(float("inf")) / 2
            value, life_s = self._try(service, credential, budget, deadline)
        except UpstreamError as fault:
            if kept is None:
                # Another try was made here. One more by the caller would find the budget used up: a refusal, it seems.
                raise UpstreamError(fault.error, fault.cause) from fault
            kept.refresh_at = self._clock() + RETRY_REFRESH_S
            return kept.value
        token = _Token(value, begun + min(life_s * 2 / 3, life_s - 10.0), begun + life_s)
        with self._lock:
            self._tokens[key] = token
            while len(self._tokens) > MAX_CACHED_TOKENS:
                self._tokens.popitem(last=False)
        return value

    def _try(
        self, service: TokenEndpoint, credential: Credential, budget: CallLimits, deadline: float | None
    ) -> tuple[str, float]:
        """As _exchange; an answer that breaks off gets one more try."""
        try:
            return self._exchange(service, credential, budget, deadline)
        except UpstreamError as fault:
            if not fault.is_retryable or not budget.token_requests:
                raise
        return self._exchange(service, credential, budget, deadline)

    def _exchange(
        self, service: TokenEndpoint, credential: Credential, budget: CallLimits, deadline: float | None
    ) -> tuple[str, float]:
        """Ask the token service; the token and its life in seconds."""
        login = (service.realm, credential)
        if not credential.is_anonymous:
            self._refusals.check(login, (*login, service.name, service.scopes))
        answer = self._ask(service, credential, budget, deadline)
        match answer.status:
            case 200:
                return self._read(answer, login, credential)
            case 401:
                self._refuse(answer, login, credential)
            case 403:
                self._refuse(answer, (*login, service.name, service.scopes), credential)
        answer.finish()
        if answer.status == 429:
            raise errors.rate_limited(self._who, parse_retry_after(answer.header("Retry-After"), time.time()))
        raise _outage(errors.server_error(self._who, answer.status))

    def _refuse(self, answer: UpstreamResponse, key: Hashable, credential: Credential) -> NoReturn:
        answer.finish()
        if not credential.is_anonymous:
            self._refusals.note(key)
        raise AuthenticationFailed(is_anonymous=credential.is_anonymous)

    def _ask(
        self, service: TokenEndpoint, credential: Credential, budget: CallLimits, deadline: float | None
    ) -> UpstreamResponse:
        """POST for identity tokens where the service knows it, else GET."""
        if credential.identity_token and service.realm not in self._without_post:
            fields = {
                "grant_type": "refresh_token",
                "service": service.name,
                "client_id": CLIENT_ID,
                "scope": " ".join(service.scopes),
                "refresh_token": credential.identity_token,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            body = urlencode(fields).encode()
            request = UpstreamRequest(self._who, "POST", service.realm, headers, deadline, service.registry_zone, body)
            answer = self._send(request, credential, budget)
            if answer.status not in (404, 405):
                return answer
            answer.finish()
            self._without_post.add(service.realm)
        scopes = [("scope", scope) for scope in service.scopes]
        query = urlencode([*([("service", service.name)] if service.name else []), *scopes], quote_via=quote)
        place = service.realm.with_query(query)
        headers = {} if credential.is_anonymous else {"Authorization": credential.basic()}
        for _ in range(MAX_REDIRECTS):
            request = UpstreamRequest(
                self._who, "GET", place, headers, deadline, service.registry_zone, may_repeat=False
            )
            answer = self._send(request, credential, budget)
            if answer.status not in REDIRECTS:
                return answer
            answer.finish()
            try:
                place = resolve_redirect(place, answer.header("Location"))
            except InvalidUrl as exc:
                raise errors.destination_not_allowed(self._who, f"redirects to {exc}") from exc
            budget.token_requests += 1  # a redirect is the same request
            if place.origin != service.realm.origin:
                headers = {}
        raise errors.bad_response(self._who, "redirects without end")

    def _send(self, request: UpstreamRequest, credential: Credential, budget: CallLimits) -> UpstreamResponse:
        if budget.token_requests <= 0:
            raise AuthenticationFailed(is_anonymous=credential.is_anonymous)
        budget.token_requests -= 1
        return self._sender.send(request)

    def _read(self, answer: UpstreamResponse, login: Hashable, credential: Credential) -> tuple[str, float]:
        try:
            document = json.loads(answer.read(MAX_TOKEN_RESPONSE_BYTES))
        except (ValueError, RecursionError) as exc:
            raise _outage(errors.bad_response(self._who, "sent something that is no token")) from exc
        except UpstreamError as exc:
            raise _outage(exc) from exc
        fields: dict[str, Any] = document if isinstance(document, dict) else {}
        token = fields.get("token") or fields.get("access_token")
        if not token and not credential.is_anonymous:
            self._refuse(answer, login, credential)  # how some services answer a wrong password
        if not isinstance(token, str) or not token.isascii() or not token.isprintable() or " " in token:
            raise _outage(errors.bad_response(self._who, "sent something that is no token"))
        return token, _life_s(fields.get("expires_in"))


def _life_s(value: object) -> float:
    """`expires_in`, 60 s when absent or absurd, within a minute and an hour."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= LIFE_S[0]:
        return LIFE_S[0]
    return float(value) if value < LIFE_S[1] else LIFE_S[1]


def _outage(fault: UpstreamError) -> UpstreamError:
    """A token service that fails or talks nonsense is down, for who needs a token."""
    error = fault.error
    if not isinstance(error, Unavailable | UpstreamTimeout):
        error = Unavailable(error.message, retry_after_s=errors.RETRY_AFTER_S)
    return UpstreamError(error, Cause.NO_RESPONSE, is_retryable=fault.is_retryable)

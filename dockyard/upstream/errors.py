"""The exceptions inside `dockyard.upstream`, and functions that make them.

`UpstreamError` carries the `RegistryError` for the client and what the circuit breaker needs to know. `client.py`
unwraps it: no other package sees it. It passes on `RangesUnsupported`.

A message names the upstream by its configured prefix, and the setting that would help. It contains no address, path,
query or secret. The host that failed, and the error of the system, are in the details of the error, for the log.
"""

from enum import Enum, auto

from dockyard import metrics
from dockyard.errors import (
    BadUpstream,
    Denied,
    FailureDetails,
    LoopDetected,
    RegistryError,
    TooManyRequests,
    Unavailable,
    UpstreamTimeout,
)

RETRY_AFTER_S = 3
WEB_PAGE_CURE = "let the firewall allow this host, set `proxy` of the upstream, or correct its `registry`"


class Cause(Enum):
    """Why a request failed: what it says about the registry as a whole, and about the repository."""

    NO_CONNECTION = auto()  # refused, unknown host, TLS error, timeout while connecting: concerns every repository
    NO_RESPONSE = auto()  # connected, but no response: perhaps only for this repository
    SERVER_ERROR = auto()  # a 5xx response: perhaps only for this repository
    RATE_LIMITED = auto()  # a 429 response
    NOT_COUNTED = auto()  # the registry is up, or another host failed: bad content, a CDN, a credential helper


class UpstreamError(Exception):
    """A request to an upstream failed.

    `error` is what the client gets. `is_retryable`: the connection was lost, another attempt may succeed.
    `is_from_other_origin`: the failing host is one that the registry redirected to.
    """

    def __init__(
        self, error: RegistryError, cause: Cause, *, is_retryable: bool = False, is_from_other_origin: bool = False
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.cause = cause
        self.is_retryable = is_retryable
        self.is_from_other_origin = is_from_other_origin

    def as_not_counted(self, *, is_from_other_origin: bool = False) -> "UpstreamError":
        """A copy that the circuit breaker ignores."""
        return UpstreamError(
            self.error,
            Cause.NOT_COUNTED,
            is_retryable=self.is_retryable,
            is_from_other_origin=is_from_other_origin,
        )


class RangesUnsupported(Exception):
    """Ranges of a blob cannot be used, the whole blob may be. For the download, not for clients.

    `concerns_all_blobs`: the server does not support ranges, or not correctly; else its response contradicts former
    ones for this blob, or cannot be believed before the whole blob is verified.
    """

    def __init__(self, reason: str = "ranges are not supported", *, concerns_all_blobs: bool = False) -> None:
        super().__init__(reason)
        self.concerns_all_blobs = concerns_all_blobs


class AuthenticationFailed(Exception):
    """The registry or its token service rejects the credentials, or anonymous access.

    `remembered`: rejected a short time ago and not sent again. `is_login_wrong`: as a whole, not only for what was
    requested. `details`: of the response that rejected them.
    """

    def __init__(
        self,
        *,
        is_anonymous: bool,
        details: FailureDetails | None,
        remembered: bool = False,
        is_login_wrong: bool = False,
    ) -> None:
        super().__init__("authentication failed")
        self.is_anonymous = is_anonymous
        self.details = details
        self.remembered = remembered
        self.is_login_wrong = is_login_wrong


# `server` is the subject of each message: the prefix of the upstream, or "the token service of <prefix>". `details` are
# those of the log.


def unreachable(server: str, reason: str, details: FailureDetails) -> UpstreamError:
    """No connection: refused, unknown host, no route, or a proxy that makes none."""
    error = Unavailable(f"{server} cannot be reached: {reason}", retry_after_s=RETRY_AFTER_S, details=details)
    return UpstreamError(error, Cause.NO_CONNECTION)


def explain_proxy_login(prefix: str) -> str:
    """The reason of `unreachable` when the proxy of this upstream responds with 407."""
    return f"the proxy requires a login: set user and password in `proxy` of the upstream {prefix}"


def connect_timed_out(server: str, details: FailureDetails, *, what: str = "accept a connection") -> UpstreamError:
    """No connection within the time limit."""
    message = f"{server} did not {what} in time"
    return UpstreamError(
        UpstreamTimeout(message, retry_after_s=RETRY_AFTER_S, details=details),
        Cause.NO_CONNECTION,
    )


def connection_lost(server: str, details: FailureDetails, *, hint: str = "") -> UpstreamError:
    """The connection was closed before the response was complete."""
    message = f"{server} closed the connection before its response was complete{hint}"
    error = Unavailable(message, retry_after_s=RETRY_AFTER_S, details=details)
    return UpstreamError(error, Cause.NO_RESPONSE, is_retryable=True)


def timed_out(server: str, details: FailureDetails) -> UpstreamError:
    """No response within the time limit."""
    error = UpstreamTimeout(f"{server} did not respond in time", retry_after_s=RETRY_AFTER_S, details=details)
    return UpstreamError(error, Cause.NO_RESPONSE)


def tls_failed(server: str, reason: str, details: FailureDetails) -> UpstreamError:
    """The TLS handshake or the verification of the certificate failed. Counted: it may be an attack."""
    metrics.upstream_untrusted.labels(server, "tls").inc()
    error = BadUpstream(f"no trusted TLS connection to {server}: {reason}", details=details)
    return UpstreamError(error, Cause.NO_CONNECTION)


def bad_response(server: str, problem: str, details: FailureDetails) -> UpstreamError:
    """A response that is malformed, or that does not match the request."""
    return UpstreamError(BadUpstream(f"{server} {problem}", details=details), Cause.NOT_COUNTED)


def error_page(server: str, status: int, details: FailureDetails) -> UpstreamError:
    """A web page with an error status: of a firewall or a proxy, not of the server."""
    problem = (
        f"responded with status {status} and a web page instead of an error of the registry: "
        "there may be a firewall or a proxy in between"
    )
    return bad_response(server, problem, details.with_cure(WEB_PAGE_CURE))


def web_page(server: str, details: FailureDetails, expected: str = "a manifest") -> UpstreamError:
    """A web page with status 200 instead of what was requested: of a firewall, a proxy or a captive portal."""
    problem = f"responded with a web page instead of {expected}: there may be a firewall or a proxy in between"
    return bad_response(server, problem, details.with_cure(WEB_PAGE_CURE))


def destination_not_allowed(server: str, problem: str, details: FailureDetails) -> UpstreamError:
    """A redirect or token service at a destination that is not allowed. Counted: it may be an attack."""
    metrics.upstream_untrusted.labels(server, "place").inc()
    details = details.with_cure("if this host belongs to the registry, list it in `trusted_hosts` of the upstream")
    return UpstreamError(BadUpstream(f"{server} {problem}", details=details), Cause.NOT_COUNTED)


def login_elsewhere(server: str, details: FailureDetails) -> UpstreamError:
    """A redirect to another host that requires a login, which is not sent there."""
    problem = (
        "redirects to another host that requires a login, or has no such repository. A login is sent only to hosts of "
        "the registry: if that host is one, list it in trusted_hosts of this upstream, and set auth"
    )
    error = BadUpstream(f"{server} {problem}", details=details.with_cure(""))
    return UpstreamError(error, Cause.NOT_COUNTED)


def server_error(
    server: str, status: int, details: FailureDetails, retry_after_s: int = RETRY_AFTER_S
) -> UpstreamError:
    """A 5xx response."""
    error = Unavailable(f"{server} responded with status {status}", retry_after_s=retry_after_s, details=details)
    return UpstreamError(error, Cause.SERVER_ERROR)


def loop_detected(server: str, details: FailureDetails) -> UpstreamError:
    """A 508 response: not an outage of the server, but a mistake in settings."""
    problem = "leads back to a server that the request has passed: correct `registry` of this upstream, or of one there"
    error = LoopDetected(f"{server} {problem}", details=details.with_cure(""))
    return UpstreamError(error, Cause.NOT_COUNTED)


def rate_limited(server: str, retry_after_s: int, details: FailureDetails) -> UpstreamError:
    """A 429 response."""
    message = f"{server} limits the rate of requests"
    return UpstreamError(TooManyRequests(message, retry_after_s=retry_after_s, details=details), Cause.RATE_LIMITED)


def plain_http_credentials(server: str, details: FailureDetails) -> UpstreamError:
    """Credentials for a host that is reached without TLS; they are not sent. Counted: it may be an attack."""
    metrics.upstream_untrusted.labels(server, "secret").inc()
    details = details.with_cure("write `registry: https://...` for the upstream, or remove its `auth`")
    error = Denied(f"{server} uses plain HTTP: credentials are not sent without TLS", details=details)
    return UpstreamError(error, Cause.NOT_COUNTED)


def keychain_failed(message: str, details: FailureDetails) -> UpstreamError:
    """The keychain of this machine, or one of its credential helpers, failed."""
    return UpstreamError(Unavailable(message, retry_after_s=RETRY_AFTER_S, details=details), Cause.NOT_COUNTED)

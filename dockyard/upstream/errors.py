"""The exceptions inside `dockyard.upstream`, and functions that make them.

`UpstreamError` carries the `RegistryError` for the client and what the circuit breaker needs to know. `client.py`
unwraps it: no other package sees it.

A message names the upstream by its configured prefix. It contains no address, path, query or secret.
"""

from enum import Enum, auto

from dockyard import metrics
from dockyard.errors import BadUpstream, Denied, RegistryError, TooManyRequests, Unavailable, UpstreamTimeout

RETRY_AFTER_S = 3


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


class AuthenticationFailed(Exception):
    """The registry or its token service rejects the credentials, or anonymous access.

    `remembered`: rejected a short time ago and not sent again.
    """

    def __init__(self, *, is_anonymous: bool, remembered: bool = False) -> None:
        super().__init__("authentication failed")
        self.is_anonymous = is_anonymous
        self.remembered = remembered


# `server` is the subject of each message: the prefix of the upstream, or "the token service of <prefix>".


def unreachable(server: str, reason: str) -> UpstreamError:
    """No connection: refused, unknown host, or no route."""
    error = Unavailable(f"{server} cannot be reached: {reason}", retry_after_s=RETRY_AFTER_S)
    return UpstreamError(error, Cause.NO_CONNECTION)


def connect_timed_out(server: str) -> UpstreamError:
    """No connection within the time limit."""
    error = UpstreamTimeout(f"{server} did not accept a connection in time", retry_after_s=RETRY_AFTER_S)
    return UpstreamError(error, Cause.NO_CONNECTION)


def connection_lost(server: str) -> UpstreamError:
    """The connection was closed before the response was complete."""
    error = Unavailable(f"{server} closed the connection before its response was complete", retry_after_s=RETRY_AFTER_S)
    return UpstreamError(error, Cause.NO_RESPONSE, is_retryable=True)


def timed_out(server: str) -> UpstreamError:
    """No response within the time limit."""
    error = UpstreamTimeout(f"{server} did not respond in time", retry_after_s=RETRY_AFTER_S)
    return UpstreamError(error, Cause.NO_RESPONSE)


def tls_failed(server: str, reason: str) -> UpstreamError:
    """The TLS handshake or the verification of the certificate failed. Counted: it may be an attack."""
    metrics.upstream_untrusted.labels(server, "tls").inc()
    return UpstreamError(BadUpstream(f"no trusted TLS connection to {server}: {reason}"), Cause.NO_CONNECTION)


def bad_response(server: str, problem: str) -> UpstreamError:
    """A response that is malformed, or that does not match the request."""
    return UpstreamError(BadUpstream(f"{server} {problem}"), Cause.NOT_COUNTED)


def error_page(server: str, status: int) -> UpstreamError:
    """A web page with an error status: of a firewall or a proxy, not of the server."""
    return bad_response(
        server,
        f"responded with status {status} and a web page instead of an error of the registry: "
        "there may be a firewall or a proxy in between",
    )


def destination_not_allowed(server: str, problem: str) -> UpstreamError:
    """A redirect or token service at a destination that is not allowed. Counted: it may be an attack."""
    metrics.upstream_untrusted.labels(server, "place").inc()
    return UpstreamError(BadUpstream(f"{server} {problem}"), Cause.NOT_COUNTED)


def login_elsewhere(server: str) -> UpstreamError:
    """A redirect to another host that requires a login, which is not sent there."""
    problem = (
        "redirects to another host that requires a login, or has no such repository. A login is sent only to hosts of "
        "the registry: if that host is one, list it in trusted_hosts of this upstream, and set auth"
    )
    return UpstreamError(BadUpstream(f"{server} {problem}"), Cause.NOT_COUNTED)


def server_error(server: str, status: int, retry_after_s: int = RETRY_AFTER_S) -> UpstreamError:
    """A 5xx response."""
    error = Unavailable(f"{server} responded with status {status}", retry_after_s=retry_after_s)
    return UpstreamError(error, Cause.SERVER_ERROR)


def rate_limited(server: str, retry_after_s: int) -> UpstreamError:
    """A 429 response."""
    error = TooManyRequests(f"{server} limits the rate of requests", retry_after_s=retry_after_s)
    return UpstreamError(error, Cause.RATE_LIMITED)


def plain_http_credentials(server: str) -> UpstreamError:
    """Credentials for a host that is reached without TLS; they are not sent. Counted: it may be an attack."""
    metrics.upstream_untrusted.labels(server, "secret").inc()
    error = Denied(f"{server} uses plain HTTP: credentials are not sent without TLS")
    return UpstreamError(error, Cause.NOT_COUNTED)


def keychain_failed(message: str) -> UpstreamError:
    """The keychain of this machine, or one of its credential helpers, failed."""
    return UpstreamError(Unavailable(message, retry_after_s=RETRY_AFTER_S), Cause.NOT_COUNTED)

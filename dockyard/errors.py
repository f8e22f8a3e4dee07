"""Every error that reaches a client: its OCI code, HTTP status and message.

The packages below `web` raise these; `web` renders them. Codes come from the table "Error Codes" of the OCI
distribution specification; 5xx responses have no code there and use `UNKNOWN` and `UNAVAILABLE`.

Clients see the messages: they name what was requested, never a secret, a file path, or a URL with a query. What only
the operator may see is in `FailureDetails`, for the log.
"""

from typing import ClassVar, Self

import attrs

MAX_DETAIL_CHARS = 500


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_DETAIL_CHARS else f"{text[: MAX_DETAIL_CHARS - 3]}..."


@attrs.frozen
class FailureDetails:
    """What the log says about a failure, and clients do not get: servers, addresses, files, errors of the system.

    `host`: `host:port` of the server that failed, or the program. `error`: the error of the system or of the TLS
    library, or the status of the response. `stage`: what the request was waiting for: a value of
    `upstream.dialer.Stage`, or `token`, `credentials` or `bucket`. `credentials`: where the credentials of the request
    came from. `cure`: what the operator may change or look at, unless the message of the error says it. Nothing here is
    secret: no URL with a query, no header, no user name, no body. Texts of more than MAX_DETAIL_CHARS are shortened.
    """

    host: str = attrs.field(default="", converter=_shorten)
    error: str = attrs.field(default="", converter=_shorten)
    stage: str = ""
    credentials: str = attrs.field(default="", converter=_shorten)
    cure: str = attrs.field(default="", converter=_shorten)

    def with_cure(self, cure: str) -> "FailureDetails":
        """The same details with another cure."""
        return attrs.evolve(self, cure=cure)


class RegistryError(Exception):
    """An error response.

    `retry_after_s` is sent as `Retry-After` (whole seconds). `remembered` is True when no request was sent to the
    upstream, because its circuit breaker is open or its rate limit is exceeded. `details` are for the log only.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: int | None = None,
        remembered: bool = False,
        details: FailureDetails | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.remembered = remembered
        self.details = details

    def copy(self, *, retry_after_s: int | None = None, remembered: bool = False) -> Self:
        """The same error for another request. Not for subclasses with a constructor of their own."""
        wait_s = self.retry_after_s if retry_after_s is None else retry_after_s
        return type(self)(self.message, retry_after_s=wait_s, remembered=remembered, details=self.details)

    def log_fields(self) -> dict[str, object]:
        """The fields of a log line: what the client gets as `reason`, and the details. Without those that are empty."""
        fields: dict[str, object] = {"reason": self.message, "remembered": self.remembered}
        if self.details is not None:
            fields |= attrs.asdict(self.details)
        return {name: value for name, value in fields.items() if value}


class NameInvalid(RegistryError):
    """The repository name is invalid."""

    status = 400
    code = "NAME_INVALID"


class ReferenceInvalid(RegistryError):
    """The tag is invalid (the table has no TAG_INVALID)."""

    status = 400
    code = "MANIFEST_INVALID"


class DigestInvalid(RegistryError):
    """The digest is invalid, or of an algorithm that Dockyard cannot verify."""

    status = 400
    code = "DIGEST_INVALID"


class RequestInvalid(RegistryError):
    """The request is malformed: its target, its Host header, too many ranges."""

    status = 400
    code = "UNSUPPORTED"


class Denied(RegistryError):
    """The upstream rejects the credentials of Dockyard. Not 401, on which clients would log in to Dockyard."""

    status = 403
    code = "DENIED"


class LoginRequired(RegistryError):
    """The client has no login, or a wrong one, and what it requests needs one (OCI code UNAUTHORIZED)."""

    status = 401
    code = "UNAUTHORIZED"


class AccessDenied(RegistryError):
    """The login of the client is right, and may not have what it requests."""

    status = 403
    code = "DENIED"


class NameUnknown(RegistryError):
    """No upstream is configured for this name, or the upstream has no such repository."""

    status = 404
    code = "NAME_UNKNOWN"


class ManifestUnknown(RegistryError):
    """The upstream has no such manifest."""

    status = 404
    code = "MANIFEST_UNKNOWN"


class BlobUnknown(RegistryError):
    """The upstream has no such blob."""

    status = 404
    code = "BLOB_UNKNOWN"


class Unsupported(RegistryError):
    """The method or endpoint is not supported by a read-only cache."""

    status = 405
    code = "UNSUPPORTED"


class RangeNotSatisfiable(RegistryError):
    """No byte of the blob is in the requested range (RFC 9110 section 15.5.17)."""

    status = 416
    code = "SIZE_INVALID"

    def __init__(self, size: int) -> None:
        super().__init__(f"the range is outside the {size} bytes of this blob")
        self.size = size


class TooManyRequests(RegistryError):
    """The rate limit of the upstream is exceeded, and nothing is cached; or a client sends too many wrong passwords."""

    status = 429
    code = "TOOMANYREQUESTS"


class Outage(RegistryError):
    """The upstream sent no usable response. A cached copy is served instead if there is one."""


class BadUpstream(Outage):
    """The upstream sent an invalid response: not HTTP, a wrong digest, a redirect that is not allowed."""

    status = 502


class LoopDetected(Outage):
    """The request has passed this server before, or the upstream says so of the one that it was sent (RFC 5842)."""

    status = 508


class Unavailable(Outage):
    """The upstream cannot be reached, or a resource for the request is exhausted."""

    status = 503
    code = "UNAVAILABLE"


class UpstreamTimeout(Outage):
    """The upstream did not respond in time."""

    status = 504


def reason_of(error: RegistryError) -> str:
    """Return an error as a metric label: its class, and whether it is remembered."""
    return f"{type(error).__name__}{' (remembered)' if error.remembered else ''}"

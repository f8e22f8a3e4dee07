"""Every error that reaches a client: its OCI code, HTTP status and message.

The packages below `web` raise these; `web` renders them. Codes come from the table "Error Codes" of the OCI
distribution specification; 5xx responses have no code there and use `UNKNOWN` and `UNAVAILABLE`.

Clients see the messages: they name what was requested, never a secret, a file path, or a URL with a query.
"""

from typing import ClassVar


class RegistryError(Exception):
    """An error response.

    `retry_after_s` is sent as `Retry-After` (whole seconds). `remembered` is True when no request was sent to the
    upstream, because its circuit breaker is open or its rate limit is exceeded.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, retry_after_s: int | None = None, remembered: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.remembered = remembered


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
    """The rate limit of the upstream is exceeded, and nothing is cached."""

    status = 429
    code = "TOOMANYREQUESTS"


class Outage(RegistryError):
    """The upstream sent no usable response. A cached copy is served instead if there is one."""


class BadUpstream(Outage):
    """The upstream sent an invalid response: not HTTP, a wrong digest, a redirect that is not allowed."""

    status = 502


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

"""Every error that reaches a client: its OCI code, HTTP status and message.

Rooms below `web` raise these; `web` renders them. Codes come from the table "Error Codes" of the OCI distribution
specification; 5xx answers have no code there and use `UNKNOWN` and `UNAVAILABLE`.

A message is read by strangers: it names what was asked, never a secret, a path, or a URL with a query.
"""

from typing import ClassVar


class RegistryError(Exception):
    """An answer other than success.

    `retry_after_s` is sent as `Retry-After` (whole seconds). `remembered` is True when the answer comes from memory
    (an open breaker, a running rate-limit window) and the upstream was not asked for it.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, retry_after_s: int | None = None, remembered: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.remembered = remembered


class NameInvalid(RegistryError):
    """The repository name is outside the grammar."""

    status = 400
    code = "NAME_INVALID"


class ReferenceInvalid(RegistryError):
    """The tag is outside the grammar (the table has no TAG_INVALID)."""

    status = 400
    code = "MANIFEST_INVALID"


class DigestInvalid(RegistryError):
    """The digest is outside the grammar, or of an algorithm that Dockyard cannot verify."""

    status = 400
    code = "DIGEST_INVALID"


class RequestInvalid(RegistryError):
    """The request itself is malformed: its target, its Host, too many ranges."""

    status = 400
    code = "UNSUPPORTED"


class Denied(RegistryError):
    """The upstream refuses our credentials. Not 401: that would invite the client to log in here."""

    status = 403
    code = "DENIED"


class NameUnknown(RegistryError):
    """No upstream is configured for this name, or the upstream does not know it."""

    status = 404
    code = "NAME_UNKNOWN"


class ManifestUnknown(RegistryError):
    """The upstream says that there is no such manifest."""

    status = 404
    code = "MANIFEST_UNKNOWN"


class BlobUnknown(RegistryError):
    """The upstream says that there is no such blob."""

    status = 404
    code = "BLOB_UNKNOWN"


class Unsupported(RegistryError):
    """A method or endpoint that a read-only cache does not have."""

    status = 405
    code = "UNSUPPORTED"


class RangeNotSatisfiable(RegistryError):
    """No byte of the blob is in the range asked for (RFC 9110 section 15.5.17)."""

    status = 416
    code = "SIZE_INVALID"

    def __init__(self, size: int) -> None:
        super().__init__(f"the range is outside the {size} bytes of this blob")
        self.size = size


class TooManyRequests(RegistryError):
    """The upstream limits us and nothing is cached."""

    status = 429
    code = "TOOMANYREQUESTS"


class Outage(RegistryError):
    """The upstream gave no usable answer. Whoever has a cached copy serves it instead."""


class BadUpstream(Outage):
    """The upstream answered with something that cannot be right: garbage, a wrong digest, a forbidden redirect."""

    status = 502


class Unavailable(Outage):
    """The upstream, or the way to it, is down, or we have no room for the request."""

    status = 503
    code = "UNAVAILABLE"


class UpstreamTimeout(Outage):
    """The upstream did not answer in time."""

    status = 504


def reason_of(error: RegistryError) -> str:
    """An error in a word or two, for a counter: its class, and whether the upstream was asked."""
    return f"{type(error).__name__}{' (remembered)' if error.remembered else ''}"

"""Error responses in the format of the OCI distribution specification: JSON with a code of its table."""

import json
from collections.abc import Mapping, Sequence

from dockyard.errors import (
    BlobUnknown,
    LoginRequired,
    ManifestUnknown,
    NameUnknown,
    RangeNotSatisfiable,
    RegistryError,
    Unsupported,
)
from dockyard.web.challenges import LOGIN_CHALLENGE

ALLOW = "GET, HEAD"
_SAME_FOR_ALL_CAUSES: Mapping[type[RegistryError], str] = {
    ManifestUnknown: "there is no such manifest for this client",
    BlobUnknown: "there is no such blob for this client",
    NameUnknown: "there is no such repository for this client",
}


def error_body(code: str, message: str) -> bytes:
    """The JSON body of an error (OCI distribution specification, "Error Codes")."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def error_response(error: RegistryError, challenge: str = LOGIN_CHALLENGE) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an error. `challenge` is for one that needs a login."""
    body = error_body(error.code, error.message)
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "cache-control": "no-store",
    }
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, RangeNotSatisfiable):
        headers["content-range"] = f"bytes */{error.size}"
    if isinstance(error, Unsupported):
        headers["allow"] = ALLOW
    if isinstance(error, LoginRequired):
        headers["www-authenticate"] = challenge
    return error.status, headers, body


def without_cause(error: RegistryError) -> RegistryError:
    """Return an error for a client that must not learn whether something does not exist, or is not for this client."""
    message = _SAME_FOR_ALL_CAUSES.get(type(error))
    return type(error)(message) if message else error


def with_names(error: RegistryError, replaced: Sequence[tuple[str, str]]) -> RegistryError:
    """Return an error about what a client has requested, not about what was looked up instead of it."""
    message = error.message
    for looked_up, requested in replaced:
        message = message.replace(looked_up, requested)
    return error if message == error.message else type(error)(message, retry_after_s=error.retry_after_s)

"""Error responses in the format of the OCI distribution specification: JSON with a code of its table."""

import json

from dockyard.errors import RangeNotSatisfiable, RegistryError, Unsupported

ALLOW = "GET, HEAD"


def error_body(code: str, message: str) -> bytes:
    """The JSON body of an error (OCI distribution specification, "Error Codes")."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


def error_response(error: RegistryError) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an error."""
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
    return error.status, headers, body

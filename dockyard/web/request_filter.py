"""What is rejected before a request is routed.

The path is checked as it was sent, before it is decoded, so that two spellings of a path cannot differ for the checks
and for the router. Request smuggling (RFC 9112 section 11.2) is prevented by rejecting ambiguous headers.
"""

import re

from dockyard.errors import FailureDetails, LoopDetected, NameInvalid, RequestInvalid, Unsupported
from dockyard.oci.cdn_loop import HEADER, has_passed, parse_passed
from dockyard.web.asgi import Scope

MAX_PATH_BYTES = 2048
MAX_HEADER_BYTES = 16 * 1024
MAX_FORM_BYTES = 32 * 1024
_METHODS = {"GET", "HEAD"}
_CDN_LOOP = HEADER.lower().encode()
_LOOP = FailureDetails(
    cure="see `registry` of the upstreams of this server, and of the one that sent the request: one leads back to here"
)
_PLAIN_PATH = re.compile(rb"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]*)+")
_ENCODED_COLON = re.compile(rb"%3[Aa]")


class HeadersTooLarge(RequestInvalid):
    """The headers of the request are larger than MAX_HEADER_BYTES."""

    status = 431


class PathTooLong(RequestInvalid):
    """The path of the request is longer than MAX_PATH_BYTES."""

    status = 414


class FormTooLarge(RequestInvalid):
    """The body of the request is larger than MAX_FORM_BYTES."""

    status = 413


def check_request(scope: Scope, form_path: str | None = None) -> None:
    """Check host, headers, path and method of a request. Raises RegistryError for one that must not be handled.

    `form_path` accepts POST, with a form of at most MAX_FORM_BYTES.
    """
    _check_headers(scope)
    path: bytes = scope["raw_path"]
    if len(path) > MAX_PATH_BYTES:
        raise PathTooLong(f"the path of the request is longer than {MAX_PATH_BYTES} bytes")
    plain = _decode(path)
    if not _PLAIN_PATH.fullmatch(plain) or (b"/." in plain and not {b".", b".."}.isdisjoint(plain.split(b"/"))):
        raise NameInvalid("the path contains characters that are not allowed in names, tags and digests")
    if scope["method"] == "POST" and form_path is not None and path == form_path.encode():
        _check_form(scope["headers"])
    elif scope["method"] not in _METHODS:
        raise Unsupported(
            "this registry is a read-only cache: only GET and HEAD are supported",
            details=FailureDetails(cure="push to the registry itself: `docker push` without the address of Dockyard"),
        )


def _check_headers(scope: Scope) -> None:
    """Check the host, the length and the framing of a request. Raises RequestInvalid."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    hosts: list[bytes] = []  # Granian adds an empty one if there is none
    has_transfer_encoding = False
    size = 0
    for name, value in headers:
        size += len(name) + len(value)
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding":
            has_transfer_encoding = True
    if len(hosts) > 1 or (not any(hosts) and scope["http_version"] != "1.0"):
        raise RequestInvalid("a request must have exactly one Host header")
    if has_transfer_encoding and scope["method"] in _METHODS:
        # Together with Content-Length, it could be used for request smuggling.
        raise RequestInvalid("Transfer-Encoding is not allowed in a GET or HEAD request")
    if size > MAX_HEADER_BYTES:
        if size - sum(len(name) + len(value) for name, value in headers if name == b"range") <= MAX_HEADER_BYTES:
            # Clients request fewer ranges after a 400, and fail after any other status.
            raise RequestInvalid(f"the headers of the request are larger than {MAX_HEADER_BYTES} bytes by their ranges")
        raise HeadersTooLarge(f"the headers of the request are larger than {MAX_HEADER_BYTES} bytes")


def _check_form(headers: list[tuple[bytes, bytes]]) -> None:
    """Check the announced size of a form. Raises RequestInvalid."""
    sizes = [value for name, value in headers if name == b"content-length"]
    if len(sizes) != 1 or not sizes[0].isdigit() or any(name == b"transfer-encoding" for name, _ in headers):
        raise RequestInvalid("a form must be sent with its Content-Length, and without Transfer-Encoding")
    if len(sizes[0]) > 9 or int(sizes[0]) > MAX_FORM_BYTES:
        raise FormTooLarge(f"the body of the request is larger than {MAX_FORM_BYTES} bytes")


def find_passed(scope: Scope, server_name: str) -> tuple[str, ...]:
    """Return the servers that a request has passed. Raises LoopDetected if this one, `server_name`, is among them."""
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == _CDN_LOOP]
    if not values:
        return ()
    passed = parse_passed(values)
    if has_passed(passed, server_name):
        raise LoopDetected("this request has passed this server before: an upstream leads back to it", details=_LOOP)
    return passed


def path_to_route(scope: Scope) -> str:
    """Return the path of a checked request, decoded."""
    return _decode(scope["raw_path"]).decode("ascii")


def _decode(path: bytes) -> bytes:
    """Decode `%3A`, the only escape that is allowed."""
    return _ENCODED_COLON.sub(b":", path) if b"%" in path else path

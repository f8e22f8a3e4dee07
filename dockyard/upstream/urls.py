"""URLs that an upstream sends: parsed once, strictly, and resolved when they are redirects.

They are not trusted. A URL whose host two parsers could read differently is rejected here, so that the host that was
checked is the host that is connected to. Path and query are opaque: they are sent byte for byte as they came, because
signatures cover them. Only what cannot be part of a request line (RFC 9112 section 3) is percent-encoded: spaces and
bytes outside ASCII. Control characters are rejected.
"""

import re
from ipaddress import IPv6Address

import attrs

from dockyard.oci.origin import DEFAULT_PORTS, Origin, bracket

MAX_URL_LENGTH = 8192
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_ALLOWED = re.compile(r"[ -~\x80-\xff]+")  # no control characters; a header value is decoded as Latin-1
_NOT_IN_REQUEST_LINE = re.compile(r"[ \x80-\xff]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_URL = re.compile(r"([A-Za-z]+)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?")
_RELATIVE = re.compile(r"([^?#]*)(\?[^#]*)?(?:#.*)?")
_HOST = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,251}[a-z0-9.])?")
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@]+)(?::([0-9]{1,5}))?")


class InvalidUrl(ValueError):
    """The text is not a URL that may be requested. The message gives the reason and does not quote the text."""


@attrs.frozen
class Url:
    """An origin and a request target: path and query as they are sent."""

    origin: Origin
    target: str = attrs.field(repr=False)

    @property
    def text(self) -> str:
        """The whole URL. Its query may contain a signature: not for logs and messages."""
        return f"{self.origin}{self.target}"

    def with_query(self, query: str) -> "Url":
        """The same URL with `query` appended to its query."""
        separator = "&" if "?" in self.target else "?"
        return Url(self.origin, f"{self.target}{separator}{query}")


def parse_http_url(text: str) -> Url:
    """Parse an absolute http or https URL without userinfo; a fragment is dropped. Raises InvalidUrl."""
    match = _URL.fullmatch(_encode(text))
    if match is None:
        raise InvalidUrl("malformed URL")
    scheme, authority, path, query = match[1].lower(), match[2].lower(), match[3], match[4] or ""
    if scheme not in DEFAULT_PORTS:
        raise InvalidUrl("the scheme is neither http nor https")
    if "@" in authority:
        raise InvalidUrl("the URL contains a user name")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise InvalidUrl("malformed URL")
    host, port = _parse_host(parts[1].strip("[]")), int(parts[2] or DEFAULT_PORTS[scheme])
    if not 0 < port < 65536:
        raise InvalidUrl("malformed URL")
    return Url(Origin(scheme, host, port), (path or "/") + query)


def resolve(base: Url, reference: str) -> Url:
    """Resolve a URL reference against `base` (RFC 3986 section 5.2). Raises InvalidUrl.

    Dot segments are removed from a relative path only; other paths stay as they are.
    """
    reference = _encode(reference)
    if _SCHEME.match(reference):
        return parse_http_url(reference)
    if reference.startswith("//"):
        return parse_http_url(f"{base.origin.scheme}:{reference}")
    match = _RELATIVE.fullmatch(reference)
    if match is None:
        raise InvalidUrl("malformed URL")
    path, query = match[1], match[2]
    base_path = base.target.partition("?")[0]
    if path.startswith("/"):
        target = path + (query or "")
    elif path:
        target = _remove_dot_segments(base_path[: base_path.rindex("/") + 1] + path) + (query or "")
    elif query is not None:
        target = base_path + query
    else:
        target = base.target
    return Url(base.origin, target)


def resolve_redirect(base: Url, location: str | None) -> Url:
    """Resolve a Location header against `base`; a redirect from https to http is rejected. Raises InvalidUrl."""
    if not location:
        raise InvalidUrl("missing Location header")
    url = resolve(base, location)
    if base.origin.scheme == "https" and url.origin.scheme == "http":
        raise InvalidUrl("redirect from https to http")
    return url


def is_in_host_list(origin: Origin, hosts: tuple[str, ...]) -> bool:
    """Whether a list of `host` and `host:port` entries contains the origin."""
    return bool({origin.host, bracket(origin.host), origin.host_and_port} & {entry.lower() for entry in hosts})


def _parse_host(host: str) -> str:
    if ":" not in host:
        if _HOST.fullmatch(host) and ".." not in host:
            return host
        raise InvalidUrl("malformed URL")
    try:
        return str(IPv6Address(host))
    except ValueError:
        raise InvalidUrl("malformed URL") from None


def _encode(text: str) -> str:
    """Percent-encode what cannot be part of a request line. Raises InvalidUrl."""
    if len(text) > MAX_URL_LENGTH or not _ALLOWED.fullmatch(text):
        raise InvalidUrl("malformed URL")
    return _NOT_IN_REQUEST_LINE.sub(lambda match: f"%{ord(match[0]):02X}", text)


def _remove_dot_segments(path: str) -> str:
    """RFC 3986 section 5.2.4."""
    segments = path.split("/")[1:]
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    is_directory = segments[-1] in {".", ".."}
    return "/" + "/".join([*kept, ""] if is_directory else kept)

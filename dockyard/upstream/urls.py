"""URLs that an upstream sends: parsed once, strictly, and resolved when they are redirects.

They are not trusted. A URL that two parsers could read differently is rejected here, so that the host that was checked
is the host that is connected to.
"""

import re
from ipaddress import IPv6Address
from urllib.parse import urljoin, urlsplit

import attrs

from dockyard.oci.origin import DEFAULT_PORTS, Origin

MAX_URL_LENGTH = 8192
REDIRECTS = frozenset({301, 302, 303, 307, 308})

_PRINTABLE = re.compile(r"[!-\[\]-~]+")  # ASCII without spaces, controls and the backslash
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
    if len(text) > MAX_URL_LENGTH or not _PRINTABLE.fullmatch(text):
        raise InvalidUrl("malformed URL")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise InvalidUrl("malformed URL") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise InvalidUrl("the scheme is neither http nor https")
    if "@" in parts.netloc:
        raise InvalidUrl("the URL contains a user name")
    match = _AUTHORITY.fullmatch(parts.netloc.lower())
    if match is None:
        raise InvalidUrl("malformed URL")
    host, port = _parse_host(match[1].strip("[]")), int(match[2] or DEFAULT_PORTS[parts.scheme])
    if not 0 < port < 65536:
        raise InvalidUrl("malformed URL")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(Origin(parts.scheme, host, port), target)


def resolve_redirect(base: Url, location: str | None) -> Url:
    """Resolve a Location header against `base`; a redirect from https to http is rejected. Raises InvalidUrl."""
    if not location or len(location) > MAX_URL_LENGTH or not _PRINTABLE.fullmatch(location):
        raise InvalidUrl("missing or malformed Location header")
    try:
        url = parse_http_url(urljoin(base.text, location))
    except InvalidUrl:
        raise
    except ValueError:
        raise InvalidUrl("malformed URL") from None
    if base.origin.scheme == "https" and url.origin.scheme == "http":
        raise InvalidUrl("redirect from https to http")
    return url


def is_in_host_list(origin: Origin, hosts: tuple[str, ...]) -> bool:
    """Whether a list of `host` and `host:port` entries contains the origin."""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    return bool({origin.host, host, f"{host}:{origin.port}"} & {entry.lower() for entry in hosts})


def _parse_host(host: str) -> str:
    if ":" not in host:
        if _HOST.fullmatch(host) and ".." not in host:
            return host
        raise InvalidUrl("malformed URL")
    try:
        return str(IPv6Address(host))
    except ValueError:
        raise InvalidUrl("malformed URL") from None

"""Where requests go: URLs taken apart once, strictly, and the rules for following a redirect.

What an upstream sends as a URL is not trusted. Anything that two parsers could read in two ways is refused here, so
that what was checked is what is connected to.
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
    """The text is no URL that we go to. The message says why and does not repeat the text."""


@attrs.frozen
class Url:
    """An origin, and what is asked for there: path and query as they are sent."""

    origin: Origin
    target: str = attrs.field(repr=False)

    @property
    def url(self) -> str:
        return f"{self.origin}{self.target}"

    def with_query(self, query: str) -> "Url":
        """The same place with more in its query."""
        separator = "&" if "?" in self.target else "?"
        return Url(self.origin, f"{self.target}{separator}{query}")


def parse_http_url(url: str) -> Url:
    """An absolute http or https URL without userinfo; a fragment is dropped. Raises NotAPlace."""
    if len(url) > MAX_URL_LENGTH or not _PRINTABLE.fullmatch(url):
        raise InvalidUrl("a malformed URL")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidUrl("a malformed URL") from None
    if parts.scheme not in DEFAULT_PORTS:
        raise InvalidUrl("a URL that is neither http nor https")
    if "@" in parts.netloc:
        raise InvalidUrl("a URL with a user name")
    match = _AUTHORITY.fullmatch(parts.netloc.lower())
    if match is None:
        raise InvalidUrl("a malformed URL")
    host, port = _parse_host(match[1].strip("[]")), int(match[2] or DEFAULT_PORTS[parts.scheme])
    if not 0 < port < 65536:
        raise InvalidUrl("a malformed URL")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(Origin(parts.scheme, host, port), target)


def resolve_redirect(here: Url, location: str | None) -> Url:
    """Where a redirect leads: relative to `here`, never from https to http. Raises NotAPlace."""
    if not location or len(location) > MAX_URL_LENGTH or not _PRINTABLE.fullmatch(location):
        raise InvalidUrl("no usable Location")
    try:
        place = parse_http_url(urljoin(here.url, location))
    except InvalidUrl:
        raise
    except ValueError:
        raise InvalidUrl("a malformed URL") from None
    if here.origin.scheme == "https" and place.origin.scheme == "http":
        raise InvalidUrl("a step down from https to http")
    return place


def is_in_host_list(origin: Origin, hosts: tuple[str, ...]) -> bool:
    """Is the origin in a list of `host` and `host:port` entries?"""
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    return bool({origin.host, host, f"{host}:{origin.port}"} & {entry.lower() for entry in hosts})


def _parse_host(host: str) -> str:
    if ":" not in host:
        if _HOST.fullmatch(host) and ".." not in host:
            return host
        raise InvalidUrl("a malformed URL")
    try:
        return str(IPv6Address(host))
    except ValueError:
        raise InvalidUrl("a malformed URL") from None

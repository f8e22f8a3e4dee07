"""Image references in the notation of Docker: `nginx`, `ghcr.io/org/app:v1`, `name@sha256:...`. Pure.

The rules are those of distribution/reference. A first component with a dot or a colon, or `localhost`, is a registry;
the default is Docker Hub, where names of one component are in `library/`. The default tag is `latest`. A tag beside a
digest is ignored.

The prefixes of the server come first: `internal/team/app` is an image of its upstream `internal` if it has one. No name
becomes one of the upstream that the server marks as `default`, which may be any registry.
"""

import re
from collections.abc import Collection
from typing import Final

import attrs

from dockyard.config.hosts import DOCKER_HUB, DOCKER_HUB_HOSTS
from dockyard.errors import NameInvalid, NameUnknown
from dockyard.oci.reference import Digest, Name, Reference, Tag, quote

_HOST_AND_PORT: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]):[0-9]{1,5}", re.ASCII)
# What the URLs of pages of Docker Hub begin with, before the name of the image.
_HUB_PAGES: Final = ("hub.docker.com/_/", "hub.docker.com/r/")
_LOOPBACK: Final = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?=:|$)")


@attrs.frozen
class Image:
    """An image as requested from Dockyard: `/v2/{name}/...`, with `?ns=` for a registry with a port.

    A port cannot be a part of the name, because names contain no colon.
    """

    name: Name
    reference: Reference
    ns: str | None = None

    def __str__(self) -> str:
        registry = f"{self.ns}/" if self.ns else ""
        return f"{registry}{self.name}{'@' if isinstance(self.reference, Digest) else ':'}{self.reference}"


def parse_image(text: str, server: str, prefixes: Collection[str] | None = None) -> Image:
    """Parse one reference. Raises NameInvalid, ReferenceInvalid, DigestInvalid, or NameUnknown.

    `server` is the `host[:port]` of Dockyard. If the reference begins with it, as in the command line of a client that
    pulls from Dockyard, the rest is the name. `prefixes` are those of its upstreams, None if they are not known.
    """
    _check_form(text)
    path, at, digest = text.partition("@")
    before, slash, last = path.rpartition("/")
    last, colon, tag = last.partition(":")
    path = f"{before}{slash}{last}"
    parsed_tag = Tag.parse(tag if colon else "latest")
    reference = Digest.parse(digest) if at else parsed_tag
    first, slash, rest = path.partition("/")
    host = first.lower() if slash and _is_registry(first) else ""
    if host and _is_same_server(host, server):
        return Image(_parse_name(rest, path), reference)
    if host and not any(mark in host for mark in ".:") and host != "localhost":
        raise NameInvalid(f"not a repository name: {quote(path)}: names are in lower case, write {path.lower()}")
    if ":" in host:
        if not _HOST_AND_PORT.fullmatch(host):
            raise NameInvalid(f"not a registry: {quote(first)}")
        return _with_port(host, _parse_name(rest, path), reference, prefixes or ())
    if not host and _has_prefix(path, prefixes or ()):
        return Image(_parse_name(path, path), reference)
    if not host or host in DOCKER_HUB_HOSTS:
        return Image(_parse_name(_hub_name(rest if host else path), path), reference)
    name = _parse_name(f"{host}/{rest}", path)
    if prefixes is None or _has_prefix(str(name), prefixes) or _is_ambiguous(rest, prefixes):
        return Image(name, reference)
    return Image(Name.parse(rest), reference, ns=host)  # an upstream may have another prefix than its host


def _check_form(text: str) -> None:
    """Raise NameInvalid for the URL of an image or of its page, with the reference to write instead."""
    scheme, separator, rest = text.partition("://")
    path = (rest if separator else text).rstrip("/")
    for page in _HUB_PAGES:
        if path.startswith(page):
            raise NameInvalid(f"is the address of a web page: write {path.removeprefix(page)}")
    if separator:
        raise NameInvalid(f"is not the name of an image: write {path}, without {scheme}://")


def _parse_name(text: str, path: str) -> Name:
    """Parse a name. If only capital letters are wrong, the error says how to write `path`, the reference."""
    try:
        return Name.parse(text)
    except NameInvalid as exc:
        try:
            Name.parse(text.lower())
        except NameInvalid:
            raise exc from None
        raise NameInvalid(f"{exc.message}: names are in lower case, write {path.lower()}") from None


def _with_port(host: str, name: Name, reference: Reference, prefixes: Collection[str]) -> Image:
    """An image of a registry with a port. Raises NameUnknown if the server would take another upstream for it."""
    if _is_ambiguous(str(name), prefixes):
        raise NameUnknown(
            f"the server has an upstream for {name.components[0]}, and would take the image from there instead of from "
            f"{host}: write the prefix of the upstream for {host} in its place (the prefixes of the server: "
            f"{', '.join(sorted(prefixes))})"
        )
    return Image(name, reference, ns=host)


def _is_ambiguous(path: str, prefixes: Collection[str]) -> bool:
    """Whether a name without its registry looks like a full name to the server."""
    return _has_prefix(path, prefixes) or path.partition("/")[0] in DOCKER_HUB_HOSTS


def _has_prefix(path: str, prefixes: Collection[str]) -> bool:
    """Whether a name begins with a prefix of the server, and goes on after it."""
    return any(path.startswith(f"{prefix}/") for prefix in prefixes)


def _hub_name(path: str) -> str:
    return f"{DOCKER_HUB}/{path}" if "/" in path else f"{DOCKER_HUB}/library/{path}"


def _is_registry(component: str) -> bool:
    return "." in component or ":" in component or component == "localhost" or component != component.lower()


def _is_same_server(host: str, server: str) -> bool:
    """Compare two `host[:port]`; all names of the loopback interface are equal, and a default port may be missing."""
    host, server = _LOOPBACK.sub("localhost", host), _LOOPBACK.sub("localhost", server)
    return host in {server, f"{server}:80", f"{server}:443"}

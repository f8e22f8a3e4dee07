"""Image references in the notation of Docker: `nginx`, `ghcr.io/org/app:v1`, `name@sha256:...`. Pure.

The rules are those of distribution/reference. A first component with a dot or a colon, or `localhost`, is a registry;
the default is Docker Hub, where names of one component are in `library/`. The default tag is `latest`. A tag beside a
digest is ignored.
"""

import re
from typing import Final

import attrs

from dockyard.config.hosts import DOCKER_HUB, DOCKER_HUB_HOSTS
from dockyard.errors import NameInvalid
from dockyard.oci.reference import Digest, Name, Reference, Tag, quote

_HOST_AND_PORT: Final = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]):[0-9]{1,5}", re.ASCII)
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


def parse_image(text: str, server: str) -> Image:
    """Parse one reference. Raises NameInvalid, ReferenceInvalid or DigestInvalid.

    `server` is the `host[:port]` of Dockyard. If the reference begins with it, as in the command line of a client that
    pulls from Dockyard, the rest is the name.
    """
    path, at, digest = text.partition("@")
    before, slash, last = path.rpartition("/")
    last, colon, tag = last.partition(":")
    path = f"{before}{slash}{last}"
    parsed_tag = Tag.parse(tag if colon else "latest")
    reference = Digest.parse(digest) if at else parsed_tag
    first, slash, rest = path.partition("/")
    host = first.lower() if slash and _is_registry(first) else ""
    if host and _is_same_server(host, server):
        return Image(Name.parse(rest), reference)
    if ":" in host:
        if not _HOST_AND_PORT.fullmatch(host):
            raise NameInvalid(f"not a registry: {quote(first)}")
        return Image(Name.parse(rest), reference, ns=host)
    return Image(Name.parse(_full_name(host, rest if host else path)), reference)


def _full_name(host: str, path: str) -> str:
    if host and host not in DOCKER_HUB_HOSTS:
        return f"{host}/{path}"
    return f"{DOCKER_HUB}/{path}" if "/" in path else f"{DOCKER_HUB}/library/{path}"


def _is_registry(component: str) -> bool:
    return "." in component or ":" in component or component == "localhost" or component != component.lower()


def _is_same_server(host: str, server: str) -> bool:
    """Compare two `host[:port]`; all names of the loopback interface are equal."""
    return _LOOPBACK.sub("localhost", host) == _LOOPBACK.sub("localhost", server)

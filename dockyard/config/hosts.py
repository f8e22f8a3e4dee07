"""Hosts and ports as operators write them: registries, proxies, listen addresses. Pure.

Nothing here quotes its input in an error: an address may hold a password.
"""

import re
from ipaddress import IPv6Address, ip_address

import attrs

from dockyard.errors import NameInvalid
from dockyard.oci.reference import Name

DEFAULT_PORTS = {"http": 80, "https": 443}

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"  # underscores: names of services in compose files
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@]+)(?::(?P<port>[0-9]{1,5}))?")


@attrs.frozen
class Origin:
    """Where a registry listens. The host is in lower case, an IPv6 address without its brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """`host` or `host:port`, as a URL and a Host header want it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def is_loopback(host: str) -> bool:
    """True for `localhost`, the names below it (RFC 6761 section 6.3), and loopback addresses."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_host(text: str) -> str:
    """A host name or an address without brackets, in lower case; raises ValueError."""
    try:
        return str(ip_address(text))
    except ValueError:
        pass
    # All digits and dots would be an address; this one is not.
    if len(text) > 253 or not _HOST.fullmatch(text) or re.fullmatch(r"[0-9.]+", text):
        raise ValueError("must be a host name or an IP address")
    return text.lower()


def parse_authority(text: str) -> tuple[str, int | None]:
    """`host`, `host:port` or `[address]:port` -> host and port; raises ValueError."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError("must be host or host:port")
    host = match["host"]
    host = str(_bracketed(host)) if host.startswith("[") else parse_host(host)
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise ValueError("must have a port from 1 to 65535")
    return host, port


def parse_registry(text: str) -> tuple[Origin, str]:
    """`[scheme://]host[:port][/path]` -> its origin, and the path that is put before the repository.

    Without a scheme it is https, for loopback hosts http. Raises ValueError.
    """
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme.lower() not in DEFAULT_PORTS:
        raise ValueError("must be host[:port][/path], with http:// or https:// before it or nothing")
    if "@" in rest:
        raise ValueError("must not hold a user or a password; they belong in auth")
    if "?" in rest or "#" in rest:
        raise ValueError("must not have a query or a fragment")
    authority, _, path = rest.partition("/")
    host, port = parse_authority(authority)
    if host == "docker.io":
        host = "registry-1.docker.io"  # docker.io itself answers with web pages
    scheme = scheme.lower() or ("http" if is_loopback(host) else "https")
    return Origin(scheme, host, port or DEFAULT_PORTS[scheme]), _repository_path(path.strip("/"))


def check_proxy(text: str) -> None:
    """Accept `http://[user:password@]host[:port]` and https alike; raises ValueError for anything else."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in DEFAULT_PORTS:
        raise ValueError("must be a URL such as http://proxy.example:3128")
    parse_authority(rest.removesuffix("/").rpartition("@")[2])


def hide_userinfo(url: str) -> str:
    """The URL as it may be shown: `***` in the place of a user and a password."""
    before, at, after = url.rpartition("@")
    return f"{before.rpartition('//')[0]}//***@{after}" if at else url


def _bracketed(text: str) -> IPv6Address:
    try:
        return IPv6Address(text[1:-1])
    except ValueError as exc:
        raise ValueError("must have an IPv6 address between its brackets") from exc


def _repository_path(path: str) -> str:
    if not path:
        return ""
    if path.partition("/")[0] in {"v1", "v2"}:
        raise ValueError("must not hold /v2: it is part of every request")
    try:
        return str(Name.parse(path))
    except NameInvalid as exc:
        raise ValueError("must have a path that can begin a repository name, as in ghcr.io/my-org") from exc

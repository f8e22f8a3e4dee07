"""Parses hosts and ports in settings: registries, proxies, listen addresses. Pure.

No error quotes its input, because an address may contain a password.
"""

import re
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from dockyard.errors import NameInvalid
from dockyard.oci.origin import DEFAULT_PORTS, Origin
from dockyard.oci.reference import Name

DOCKER_HUB: Final = "docker.io"
# Every host by which clients, settings and keychains refer to Docker Hub; the usual ones first.
DOCKER_HUB_HOSTS: Final = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com")
# Registries that have manifests and blobs, but respond to `/v2/` with 404.
HOSTS_WITHOUT_API_VERSION: Final = frozenset({"registry.ollama.ai"})

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"  # with underscores, for service names in compose files
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@]+)(?::(?P<port>[0-9]{1,5}))?")


def is_loopback(host: str) -> bool:
    """True for `localhost`, its subdomains (RFC 6761 section 6.3), and loopback addresses."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """Parse an address or a network, such as `10.0.0.0/8`. Raises ValueError.

    IPv4 networks that are written as IPv6 (`::ffff:10.0.0.0/104`) are returned as IPv4.
    """
    try:
        network = ip_network(text)
    except ValueError as exc:
        try:
            hint = f": write {ip_network(text, strict=False)}"
        except ValueError:
            hint = ""
        raise ValueError(f"must be an address or a network, such as 10.0.0.0/8 or fd00::/8{hint}") from exc
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network[0].ipv4_mapped is not None:
        return IPv4Network((network[0].ipv4_mapped, network.prefixlen - 96))
    return network


def parse_host(text: str) -> str:
    """Return a host name, or an address without brackets, in lower case. Raises ValueError."""
    try:
        return str(ip_address(text))
    except ValueError:
        pass
    # Digits and dots only are meant as an address, and this is not a valid one.
    if len(text) > 253 or not _HOST.fullmatch(text) or re.fullmatch(r"[0-9.]+", text):
        raise ValueError("must be a host name or an IP address")
    return text.lower()


def parse_authority(text: str) -> tuple[str, int | None]:
    """Parse `host`, `host:port` or `[address]:port` to host and port. Raises ValueError."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise ValueError("must be host or host:port")
    host = match["host"]
    host = str(_parse_bracketed(host)) if host.startswith("[") else parse_host(host)
    port = int(match["port"]) if match["port"] else None
    if port is not None and not 1 <= port <= 65535:
        raise ValueError("must have a port from 1 to 65535")
    return host, port


def check_listen_host(text: str) -> None:
    """Raise ValueError unless the text is a host name or an address, without brackets and without a port."""
    try:
        parse_host(text)
    except ValueError as exc:
        raise ValueError(f"{exc}{_listen_hint(text)}") from exc


def _listen_hint(text: str) -> str:
    if "://" in text:
        return ", without a scheme: write the host only; server.tls: true serves HTTPS"
    if text == "*":
        return "; leave it empty to listen on all addresses"
    if text != text.strip():
        return ", without spaces"
    try:
        host, port = parse_authority(text)
    except ValueError:
        return ""
    return f", without a port: write {host}, and set server.port to {port}" if port else f": write {host}"


def is_aws(endpoint: str) -> bool:
    """Whether an S3 endpoint is that of AWS; an empty one is."""
    host = endpoint.partition(":")[0].lower()
    return not host or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def check_endpoint(text: str) -> None:
    """Raise ValueError unless the text is an S3 endpoint, `host[:port]`."""
    scheme, separator, rest = text.rpartition("://")
    _, at, rest = rest.rpartition("@")
    host, slash, path = rest.partition("/")
    try:
        parse_authority(host)
    except ValueError as exc:
        raise ValueError(f"{exc}, such as s3.example.com or minio:9000") from exc
    wrong = []
    if separator:
        use_ssl = str(scheme.lower() != "http").lower()
        wrong.append(f"without a scheme: write {host}, and set storage.use_ssl: {use_ssl}")
    if at:
        wrong.append("without user and password: set storage.access_key and storage.secret_key")
    if path:
        wrong.append("without a path: the bucket is set by storage.bucket, the path in it by storage.prefix")
    elif slash and not separator:
        wrong.append(f"without the / at the end: write {host}")
    if wrong:
        raise ValueError(f"must be host or host:port, {'; '.join(wrong)}")


def parse_registry(text: str) -> tuple[Origin, str]:
    """Parse `[scheme://]host[:port][/path]` to an origin, and the path that is put before the repository.

    The default scheme is https, for loopback hosts http. Raises ValueError.
    """
    scheme, separator, rest = text.rpartition("://")
    if separator and scheme.lower() not in DEFAULT_PORTS:
        raise ValueError("must be host[:port][/path], optionally with http:// or https:// before it")
    if "@" in rest:
        raise ValueError("must not contain a user or a password; set them in auth")
    if "?" in rest or "#" in rest:
        raise ValueError("must not have a query or a fragment")
    authority, _, path = rest.partition("/")
    host, port = parse_authority(authority)
    if host == "docker.io":
        host = "registry-1.docker.io"  # docker.io itself serves web pages
    scheme = scheme.lower() or ("http" if is_loopback(host) else "https")
    return Origin(scheme, host, port or DEFAULT_PORTS[scheme]), _parse_repository_path(path.strip("/"))


def check_proxy(text: str) -> None:
    """Raise ValueError unless the text is `http://[user:password@]host[:port]`, or the same with https."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in DEFAULT_PORTS:
        raise ValueError("must be a URL such as http://proxy.example:3128")
    userinfo, _, host = rest.removesuffix("/").rpartition("@")
    if not {"/", "?", "#"}.isdisjoint(userinfo):
        raise ValueError("must have %2F, %3F and %23 instead of / ? and # in user and password")
    parse_authority(host)


def hide_userinfo(url: str) -> str:
    """Return the URL with `***` in place of user and password."""
    before, at, after = url.rpartition("@")
    return f"{before.rpartition('//')[0]}//***@{after}" if at else url


def _parse_bracketed(text: str) -> IPv6Address:
    try:
        return IPv6Address(text[1:-1])
    except ValueError as exc:
        raise ValueError("must have an IPv6 address between the brackets") from exc


def _parse_repository_path(path: str) -> str:
    if not path:
        return ""
    if path.partition("/")[0] in {"v1", "v2"}:
        raise ValueError("must not contain /v2, which is added to every request")
    try:
        return str(Name.parse(path))
    except NameInvalid as exc:
        raise ValueError("must have a path that is valid in a repository name, as in ghcr.io/my-org") from exc

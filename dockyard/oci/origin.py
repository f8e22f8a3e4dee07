"""Where a registry listens: scheme, host and port (RFC 6454)."""

from typing import Final

import attrs

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"{bracket(host)}:{port}"


def bracket(host: str) -> str:
    """A host as it stands before a port: an IPv6 address is in brackets."""
    return f"[{host}]" if ":" in host else host


@attrs.frozen
class Origin:
    """A scheme, a host and a port. The host is in lower case, an IPv6 address without its brackets."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """`host` or `host:port`, as in a URL and in a Host header: without the default port of the scheme."""
        return bracket(self.host) if self.port == DEFAULT_PORTS.get(self.scheme) else self.host_and_port

    @property
    def host_and_port(self) -> str:
        """`host:port` as messages name a server: always with the port."""
        return join_host_port(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"

"""The URL of the server and a pull to try, as they are typed into a shell."""

from collections.abc import Sequence

from dockyard.config.hosts import is_loopback
from dockyard.config.settings import ServerSettings, Upstream
from dockyard.oci.origin import Origin

ALL_ADDRESSES = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  compared with, not listened on
# A small image that everybody may pull, of registries that have one.
_EXAMPLES = {
    "docker.io": "library/alpine",
    "registry-1.docker.io": "library/alpine",
    "ghcr.io": "nginx/nginx-prometheus-exporter",
    "quay.io": "prometheus/busybox",
    "registry.k8s.io": "pause:3.10",
    "public.ecr.aws": "docker/library/alpine",
    "gcr.io": "distroless/static",
    "mcr.microsoft.com": "hello-world",
}


def server_url(server: ServerSettings, host_name: str) -> str:
    """The URL of the server.

    If it listens on all addresses, the host is `localhost`, and with TLS, whose certificate is seldom for that, it is
    `host_name`, the name of this machine.
    """
    return f"{'https' if server.tls else 'http'}://{_authority(server, host_name)}"


def describe_address(server: ServerSettings) -> str:
    """What the server listens on: one address with its port, or all of this machine."""
    if server.host in ALL_ADDRESSES - {"0.0.0.0"}:  # noqa: S104
        return f"all addresses, port {server.port}"
    if server.host in ALL_ADDRESSES:
        return f"all IPv4 addresses, port {server.port}"
    return str(Origin("", server.host, server.port).authority)


def example_pull(server: ServerSettings, upstreams: Sequence[Upstream], host_name: str) -> str:
    """A command that pulls an image through the server.

    Docker pulls by plain HTTP from loopback addresses only, unless it is configured to.
    """
    image = example_image(next(filter(_example_of, upstreams), upstreams[0]))
    if server.tls or server.host in ALL_ADDRESSES or is_loopback(server.host):
        return f"docker pull {_authority(server, host_name)}/{image}"
    return f"dockyard pull --server {server_url(server, host_name)} {image}"


def example_image(upstream: Upstream) -> str:
    """The name of an image of an upstream; with placeholders if none is known."""
    return f"{upstream.prefix}/{_example_of(upstream) or 'NAME:TAG'}"


def _authority(server: ServerSettings, host_name: str) -> str:
    host = server.host
    if host in ALL_ADDRESSES:
        host = host_name if server.tls else "localhost"
    return Origin("", host, server.port).authority


def _example_of(upstream: Upstream) -> str:
    """The example of a registry, or of the one that it mirrors by its prefix, if the upstream is all of it."""
    is_whole = not upstream.path and "/" not in upstream.prefix
    return (_EXAMPLES.get(upstream.origin.host) or _EXAMPLES.get(upstream.prefix, "")) if is_whole else ""

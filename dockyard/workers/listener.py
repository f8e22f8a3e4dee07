"""The sockets that clients connect to: one for each worker, on the same address.

The kernel distributes new connections over them (SO_REUSEPORT). The supervisor keeps each one open while its worker is
replaced, so that connections wait for the new worker instead of being refused or reset.
"""

import errno
import os
import select
import socket
from pathlib import Path
from typing import Any

import attrs

from dockyard.oci.origin import join_host_port

BACKLOG = 2048

_NO_IPV6 = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}


@attrs.frozen
class ListenAddress:
    """An address and a port that can be listened on; `::` is all addresses of IPv6 and IPv4."""

    family: int
    socket_address: Any

    def __str__(self) -> str:
        return join_host_port(*self.socket_address[:2])


def find_address(host: str, port: int) -> ListenAddress:
    """The address for `server.host`, which may be a name; for an empty one all addresses of this machine.

    Raises OSError when it cannot be listened on, in particular when another program does: with SO_REUSEPORT, two
    servers would silently share its connections.
    """
    if not host:
        try:
            return _check(ListenAddress(socket.AF_INET6, ("::", port)))
        except OSError as exc:
            if exc.errno not in _NO_IPV6:
                raise
        return _check(ListenAddress(socket.AF_INET, ("0.0.0.0", port)))  # noqa: S104  as documented
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = [ListenAddress(family, address) for family, _, _, _, address in found]
    addresses.sort(key=lambda address: address.family)  # IPv4 first, which all clients of a name can use
    return _check(addresses[0])


def open_listener(address: ListenAddress) -> socket.socket:
    """A socket that listens, beside others on the same address. Raises OSError."""
    listener = _bind(address, shares_port=True)
    listener.listen(BACKLOG)
    return listener


def stop_accepting(listener: int) -> None:
    """Let this process accept no more connections, while other processes do. `listener` is a descriptor.

    Granian has no such call: its stop ends TLS handshakes as well. So the socket is taken out of its event loop.
    """
    for name in os.listdir("/proc/self/fdinfo"):
        try:
            lines = Path(f"/proc/self/fdinfo/{name}").read_text().splitlines()
        except OSError:  # closed meanwhile
            continue
        if any(line.split()[:2] == ["tfd:", str(listener)] for line in lines):
            with select.epoll.fromfd(os.dup(int(name))) as epoll:
                epoll.unregister(listener)


def _check(address: ListenAddress) -> ListenAddress:
    _bind(address, shares_port=False).close()
    return address


def _bind(address: ListenAddress, *, shares_port: bool) -> socket.socket:
    listener = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if address.family == socket.AF_INET6:
            # Whatever net.ipv6.bindv6only is; it has no effect on other addresses than ::.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.setblocking(False)
        listener.bind(address.socket_address)
    except OSError:
        listener.close()
        raise
    return listener

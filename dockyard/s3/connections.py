"""Connection pools of urllib3 with a timeout for each write, whose reads can be aborted from another thread."""

from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from dockyard.http1.connections import PlainPool, StrictConnection, TLSPool, use_strict_pools

# How long a write may be blocked, and by default how long the service may send nothing.
STALL_TIMEOUT_S = 10.0
MAX_IDLE_CONNECTIONS = 64
WRITE_BYTES = 64 * 1024


class _S3Connection(StrictConnection):
    """Mixed into the connection classes of urllib3.

    A service may receive a body slowly, as long as each write ends within STALL_TIMEOUT_S. `open_socket` is the socket,
    also while a response is read whose connection urllib3 will not reuse: `sock` is None then. `request_number` counts
    the requests of this connection.
    """

    request_number = 0
    open_socket: Any = None

    def connect(self) -> None:
        super().connect()
        self.open_socket = self.sock

    def request(self, *args: Any, **kwargs: Any) -> None:
        self.request_number += 1
        super().request(*args, **kwargs)

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        # Otherwise the connect timeout would apply, and to a whole sendall().
        self.sock.settimeout(STALL_TIMEOUT_S)
        view = memoryview(data)
        for start in range(0, len(view), WRITE_BYTES):
            super().send(view[start : start + WRITE_BYTES])  # type: ignore[misc]


class _PlainConnection(_S3Connection, HTTPConnection):  # type: ignore[misc]
    pass


class _TLSConnection(_S3Connection, HTTPSConnection):  # type: ignore[misc]
    pass


class _PlainPool(PlainPool):
    ConnectionCls = _PlainConnection


class _TLSPool(TLSPool):
    ConnectionCls = _TLSConnection


def make_pools() -> urllib3.PoolManager:
    """Create the connection pools. TLS trusts the certificate authorities of the system, or those of SSL_CERT_FILE."""
    pools = urllib3.PoolManager(num_pools=2, maxsize=MAX_IDLE_CONNECTIONS, block=False)
    use_strict_pools(pools, _PlainPool, _TLSPool)
    return pools

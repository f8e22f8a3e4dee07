"""Connections for a store that may be slow: urllib3's pools, with our limits on each wait."""

import ssl
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

STALL_TIMEOUT_S = 10.0
MAX_IDLE_CONNECTIONS = 64
SENT_AT_ONCE_BYTES = 64 * 1024


class _Patient:
    """What our connections do differently: a slow store may take a body slowly, and a read can be aborted."""

    turn = 0
    wire: Any = None
    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self.wire = self.sock

    def request(self, *args: Any, **kwargs: Any) -> None:
        self.turn += 1
        super().request(*args, **kwargs)  # type: ignore[misc]

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        # The limit holds for a whole sendall() and would otherwise be that of connecting.
        self.sock.settimeout(STALL_TIMEOUT_S)
        view = memoryview(data)
        for start in range(0, len(view), SENT_AT_ONCE_BYTES):
            super().send(view[start : start + SENT_AT_ONCE_BYTES])  # type: ignore[misc]


class _PlainConnection(_Patient, HTTPConnection):
    pass


class _TLSConnection(_Patient, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def make_pools() -> urllib3.PoolManager:
    """Pools of such connections. TLS trusts the roots of the system (or those of SSL_CERT_FILE)."""
    pools = urllib3.PoolManager(
        num_pools=2, maxsize=MAX_IDLE_CONNECTIONS, block=False, ssl_context=ssl.create_default_context()
    )
    pools.pool_classes_by_scheme = {"http": _PlainPool, "https": _TLSPool}
    return pools

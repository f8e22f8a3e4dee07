"""Downloads the key set of an issuer. Blocking.

TLS is verified, no redirect is followed, and the token for the URL is sent nowhere else. The response must be complete
within MAX_DOWNLOAD_S.
"""

import re
import time
from http.client import HTTPException
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from dockyard import __version__
from dockyard.config.files import read_file
from dockyard.config.settings import JwtIssuer
from dockyard.http1.connections import PlainPool, StrictConnection, TLSPool, use_strict_pools
from dockyard.http1.encoding import TooLong, parse_encoding, unpack
from dockyard.http1.response import ResponseReader
from dockyard.http1.tls import explain_failure, make_tls_context

MAX_DOWNLOAD_S = 10.0
CONNECT_TIMEOUT_S = 5.0
MAX_KEY_SET_BYTES = 512 * 1024
MAX_TOKEN_FILE_BYTES = 64 * 1024
READ_BYTES = 64 * 1024

_ERRNO = re.compile(r"^\[Errno -?[0-9]+\] ")


class DownloadFailed(Exception):
    """There is no key set. The message says why, for the log."""


def download_key_set(issuer: JwtIssuer) -> bytes:
    """Return the body of the URL in `jwks`. Raises DownloadFailed."""
    headers = {
        "User-Agent": f"dockyard/{__version__}",
        "Accept": "application/jwk-set+json, application/json",
        "Accept-Encoding": "identity",
    }
    if issuer.token_file:
        headers["Authorization"] = f"Bearer {_read_token(issuer.token_file)}"
    pools = urllib3.PoolManager(num_pools=1, retries=False, timeout=urllib3.Timeout(CONNECT_TIMEOUT_S))
    use_strict_pools(pools, _PlainPool, _TLSPool, lambda: make_tls_context(issuer.ca_file or None))
    try:
        response = pools.request("GET", issuer.jwks, headers=headers, redirect=False, preload_content=False)
        try:
            if response.status != 200:
                raise DownloadFailed(_explain_status(response.status))
            return unpack(_read(response), parse_encoding(response.headers.get("Content-Encoding")), MAX_KEY_SET_BYTES)
        finally:
            response.close()
    except (HTTPError, HTTPException, OSError, ValueError) as exc:
        raise DownloadFailed(_describe(exc)) from None  # messages of urllib3 contain URLs
    finally:
        pools.clear()


class _Reader(ResponseReader):
    """Reads until a time on the monotonic clock. Raises TimeoutError after it."""

    def __init__(self, sock: Any, deadline: float) -> None:
        super().__init__(sock)
        self._deadline = deadline

    def receive(self, buffer: Any) -> int:
        remaining_s = self._deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError
        self.sock.settimeout(remaining_s)
        return super().receive(buffer)


class _Connection(StrictConnection):
    """A connection for one download. Mixed into the connection classes of urllib3."""

    _deadline = 0.0

    def connect(self) -> None:
        self._deadline = time.monotonic() + MAX_DOWNLOAD_S
        super().connect()

    def make_reader(self, sock: Any) -> ResponseReader:
        return _Reader(sock, self._deadline)


class _PlainConnection(_Connection, HTTPConnection):  # type: ignore[misc]
    pass


class _TLSConnection(_Connection, HTTPSConnection):  # type: ignore[misc]
    pass


class _PlainPool(PlainPool):
    ConnectionCls = _PlainConnection


class _TLSPool(TLSPool):
    ConnectionCls = _TLSConnection


def _read(response: urllib3.BaseHTTPResponse) -> bytes:
    body = b""
    while piece := response.read(READ_BYTES, decode_content=False):
        body += piece
        if len(body) > MAX_KEY_SET_BYTES:
            raise DownloadFailed(f"the response is larger than {MAX_KEY_SET_BYTES} bytes")
    return body


def _read_token(path: str) -> str:
    """Return the token in a file, which is replaced from time to time. Raises DownloadFailed."""
    try:
        token = read_file(path, MAX_TOKEN_FILE_BYTES)[0].decode("ascii").strip()
    except UnicodeDecodeError:
        token = ""
    except ValueError as exc:
        raise DownloadFailed(f"the file {path} {exc}") from exc
    if not re.fullmatch(r"[!-~]+", token):
        raise DownloadFailed(f"the file {path} has no token: one line of printable ASCII")
    return token


def _explain_status(status: int) -> str:
    reason = f"the server responded with status {status}"
    if 300 <= status < 400:
        return f"{reason}: redirects are not followed, set jwks to the URL of the key set itself"
    if status in (401, 403):
        return f"{reason}: set token_file to a token that it accepts"
    return reason


def _describe(exc: Exception) -> str:
    match exc:
        case TooLong():
            return f"the response is larger than {MAX_KEY_SET_BYTES} bytes"
        case NameResolutionError():
            return f"cannot resolve {exc.conn.host}"
        case NewConnectionError():
            return _ERRNO.sub("", str(exc).rpartition(": ")[2])
        case ConnectTimeoutError():
            return f"no connection within {CONNECT_TIMEOUT_S:.0f} s"
        case SSLError():
            return f"no trusted TLS connection: {explain_failure(exc).reason}"
        case TimeoutError() | ReadTimeoutError():
            return f"no complete response within {MAX_DOWNLOAD_S:.0f} s"
        case OSError() if exc.strerror:
            return exc.strerror
        case _:
            return f"the response is not valid HTTP ({type(exc).__name__})"

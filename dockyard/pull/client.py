"""The HTTP client of `dockyard pull`: reads manifests into memory, reads and discards blobs, verifies every digest.

All failures are raised as PullError, after the retries that `retries.py` allows. A body that breaks off is resumed at
the byte reached; an attempt that read at least MIN_PROGRESS_BYTES resets the count of attempts.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol, TypeVar
from urllib.parse import quote

import attrs
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from dockyard import __version__
from dockyard.errors import RegistryError
from dockyard.http1.connections import use_strict_pools
from dockyard.http1.tls import explain_failure, make_tls_context
from dockyard.oci.manifest import ACCEPT, MAX_MANIFEST_BYTES, Manifest
from dockyard.oci.reference import Digest, Hasher, Reference, replace_unprintable
from dockyard.pull.images import Image
from dockyard.pull.login import NO_LOGIN, ServerLogin
from dockyard.pull.retries import PullError
from dockyard.pull.server import Probe, find_prefixes
from dockyard.upstream.urls import InvalidUrl, Url, parse_http_url, resolve

MIN_PROGRESS_BYTES: Final = 1024 * 1024
CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 60.0  # longer than the timeouts of Dockyard for its upstreams
CHUNK_BYTES: Final = 256 * 1024
MAX_ERROR_BYTES: Final = 16 * 1024
MAX_PROBE_BYTES: Final = 1024 * 1024
MAX_REDIRECTS: Final = 3

_ERRNO: Final = re.compile(r"^\[Errno -?[0-9]+\] ")
_HINTS: Final = {
    "MANIFEST_UNKNOWN": " (correct the name or the tag; the log of `dockyard server` there says more)",
    "NAME_UNKNOWN": " (correct the name, or add its registry to `upstreams` in the settings of that server)",
    "DENIED": " (ask the operator of that server: its rules, or `auth` of this upstream, do not allow it)",
}
_T = TypeVar("_T")


@attrs.frozen
class FetchedBlob:
    """A blob that was read completely and matches its digest.

    `cache_status` is `hit`, `joined`, `miss`, `asked` (fetched and not kept) or empty.
    """

    size: int
    cache_status: str
    attempts: int


class ProgressCallback(Protocol):
    """Called with the number of bytes read of a blob, and its size, which is None while it is unknown."""

    def __call__(self, received: int, total: int | None, /) -> None: ...


class DockyardClient:
    """Reads from one Dockyard, in up to `connections` threads.

    `url` is as `parse_server` returns it. `ca_file` has certificates that are trusted in addition to the system's.
    `login` is sent to the origin of the URL only.
    """

    def __init__(self, url: str, connections: int, ca_file: str | None = None, login: ServerLogin = NO_LOGIN) -> None:
        self._url = url
        self._origin = parse_http_url(url).origin
        self._login = login
        self._stopped = threading.Event()
        self._open_responses: set[urllib3.BaseHTTPResponse] = set()
        self._pools = urllib3.PoolManager(
            maxsize=connections,
            block=False,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            headers={"User-Agent": f"dockyard-pull/{__version__}", "Accept-Encoding": "identity"},
        )
        use_strict_pools(self._pools, make_tls_context=lambda: make_tls_context(ca_file))

    def check(self) -> frozenset[str] | None:
        """Return the prefixes of the Dockyard; None if its version does not tell. Raises PullError without one."""
        return find_prefixes(self._url, self._probe, self._login.cure)

    def _probe(self, path: str, accept: str = "*/*") -> Probe:
        """Send one GET to the server, whatever it is. Raises PullError if there is no response."""
        with _map_errors():
            response = self._follow(parse_http_url(f"{self._url}{path}"), {"Accept": accept}, self._request)
            try:
                return Probe(response.status, dict(response.headers), b"".join(_read_chunks(response, MAX_PROBE_BYTES)))
            finally:
                response.close()

    def read_manifest(self, image: Image, reference: Reference) -> Manifest:
        """Read and verify one manifest of an image. Raises PullError."""
        url = self._make_url(image, "manifests", reference)
        return self._retry(lambda: self._read_manifest(url, reference))

    def read_blob(self, image: Image, digest: Digest, on_progress: ProgressCallback) -> FetchedBlob:
        """Read and discard a blob. Raises PullError unless it is complete and matches its digest."""
        url = self._make_url(image, "blobs", digest)
        download = _BlobDownload(digest, on_progress)
        return self._retry(lambda: self._continue_blob(download, url), lambda: download.received)

    def stop(self) -> None:
        """Make all running and further reads fail soon. For other threads."""
        self._stopped.set()
        for response in list(self._open_responses):
            with suppress(HTTPError, OSError, ValueError, RuntimeError):
                response.shutdown()

    def close(self) -> None:
        self._pools.clear()

    def _retry(self, attempt: Callable[[], _T], received: Callable[[], int] = lambda: 0) -> _T:
        """Call `attempt` until it succeeds or its PullError allows no further attempt.

        `received` returns the bytes read so far; the count of attempts starts again when it has grown enough.
        """
        attempts, received_before = 0, 0
        while True:
            attempts += 1
            try:
                return attempt()
            except PullError as exc:
                if received() >= received_before + MIN_PROGRESS_BYTES:
                    attempts, received_before = 0, received()
                pause_s = exc.find_pause(max(attempts, 1))
                if pause_s is None or self._stopped.wait(pause_s):
                    raise

    def _read_manifest(self, url: Url, reference: Reference) -> Manifest:
        with self._open(url, {"Accept": ", ".join(ACCEPT)}) as response:
            body = b"".join(_read_chunks(response, MAX_MANIFEST_BYTES + 1))
            content_type = response.headers.get("Content-Type")
            digest_header = response.headers.get("Docker-Content-Digest")
        try:
            if isinstance(reference, Digest):
                expected: Digest | None = reference
            else:
                expected = Digest.parse(digest_header) if digest_header else None
            return Manifest.parse(body, content_type, expected)
        except RegistryError as exc:  # another attempt would get the same content
            raise PullError.final(exc.message) from exc

    def _continue_blob(self, download: "_BlobDownload", url: Url) -> FetchedBlob:
        """Request the part of a blob that is missing, and read it to the end."""
        download.attempts += 1
        headers = {"Range": f"bytes={download.received}-"} if download.received else {}
        with self._open(url, headers) as response:
            download.start(response)
            for chunk in _read_chunks(response):
                download.add(chunk)
        return download.finish()

    @contextmanager
    def _open(self, url: Url, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        """Send a request and follow redirects, as to a bucket. Raises PullError for any status but 200 and 206."""
        response = self._follow(url, headers, self._send)
        self._open_responses.add(response)
        try:
            yield response
        finally:
            self._open_responses.discard(response)
            response.close()  # its connection too, unless the body was read to the end

    def _follow(
        self, url: Url, headers: dict[str, str], send: Callable[[Url, dict[str, str]], urllib3.BaseHTTPResponse]
    ) -> urllib3.BaseHTTPResponse:
        """Send a request and follow redirects. Raises PullError."""
        for _ in range(MAX_REDIRECTS + 1):
            response = send(url, headers)
            location = response.get_redirect_location()
            if not location:
                return response
            response.close()
            try:
                url = resolve(url, location)
            except InvalidUrl as exc:
                raise PullError.final(f"invalid redirect: {exc}") from exc
        raise PullError.final(f"more than {MAX_REDIRECTS} redirects")

    def _send(self, url: Url, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        if self._stopped.is_set():
            raise PullError.final("stopped")
        with _map_errors():
            response = self._request(url, headers)
        if response.status in {200, 206} or response.get_redirect_location():
            return response
        try:
            raise _read_error(response, self._login.cure)
        finally:
            response.close()

    def _request(self, url: Url, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        login = {"Authorization": self._login.authorization} if self._sends_login(url) else {}
        return self._pools.urlopen(
            "GET",
            f"{url.origin}/",
            target=url.target,
            headers={**self._pools.headers, **headers, **login},
            redirect=False,
            preload_content=False,
        )

    def _sends_login(self, url: Url) -> bool:
        """Whether a request gets the login: it has one, and the URL is not one of another server."""
        return bool(self._login.authorization) and url.origin == self._origin

    def _make_url(self, image: Image, kind: str, reference: Reference) -> Url:
        ns = f"?ns={quote(image.ns, safe='')}" if image.ns else ""
        return parse_http_url(f"{self._url}/v2/{image.name}/{kind}/{reference}{ns}")


class _BlobDownload:
    """The state of reading one blob, over all attempts."""

    def __init__(self, digest: Digest, on_progress: ProgressCallback) -> None:
        self.digest = digest
        self.on_progress = on_progress
        self.received = 0
        self.attempts = 0
        self.cache_status = ""
        self.total: int | None = None
        self.hasher: Hasher = digest.hasher()

    def start(self, response: urllib3.BaseHTTPResponse) -> None:
        """Continue with the body of a response: at the byte requested, or at the first if the range was ignored."""
        if response.status == 200:
            self._restart()
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {self.received}-"):
            raise PullError.final("the response has a different range than the one requested")
        length = response.headers.get("Content-Length", "")
        self.total = self.received + int(length) if length.isdecimal() and len(length) < 19 else None
        self.cache_status = self.cache_status or _parse_cache_status(response.headers.get("Cache-Status", ""))
        self.on_progress(self.received, self.total)

    def add(self, chunk: bytes) -> None:
        self.hasher.update(chunk)
        self.received += len(chunk)
        self.on_progress(self.received, self.total)

    def finish(self) -> FetchedBlob:
        """Verify the digest. Raises PullError, after which the next attempt starts at the first byte."""
        if not self.digest.matches(self.hasher):
            self._restart()
            raise PullError.wrong_digest("the content does not match the digest")
        return FetchedBlob(self.received, self.cache_status, self.attempts)

    def _restart(self) -> None:
        self.received = 0
        self.hasher = self.digest.hasher()


def _read_chunks(response: urllib3.BaseHTTPResponse, max_bytes: int | None = None) -> Iterator[bytes]:
    """Yield the body, up to the chunk that reaches `max_bytes`."""
    received = 0
    with _map_errors():
        while max_bytes is None or received < max_bytes:
            chunk = response.read(CHUNK_BYTES, decode_content=False)
            if not chunk:
                return
            yield chunk
            received += len(chunk)


@contextmanager
def _map_errors() -> Iterator[None]:
    """Raise PullError instead of what urllib3 raises."""
    try:
        yield
    except (HTTPError, OSError) as exc:
        raise PullError.connection_failed(_describe(exc)) from exc


def _describe(exc: Exception) -> str:
    match exc:
        case NameResolutionError():
            return f"cannot resolve {exc.conn.host}: {_ERRNO.sub('', str(exc.__cause__ or exc))}"
        case NewConnectionError():
            return _ERRNO.sub("", str(exc).rpartition(": ")[2])
        case ConnectTimeoutError():
            return f"no connection within {CONNECT_TIMEOUT_S:.0f} s"
        case ReadTimeoutError():
            return f"no data received for {READ_TIMEOUT_S:.0f} s"
        case SSLError():
            return f"no trusted TLS connection: {explain_failure(exc).reason}"
        case _:
            return f"connection lost: {exc}"


def _read_error(response: urllib3.BaseHTTPResponse, login_cure: str) -> PullError:
    """The error of a response: its status, and code and message of its body (OCI distribution spec, "Error Codes").

    `login_cure`: what to do if a login is required.
    """
    code = message = ""
    with suppress(PullError, ValueError, RecursionError, LookupError, TypeError):
        error = json.loads(b"".join(_read_chunks(response, MAX_ERROR_BYTES)))["errors"][0]
        code, message = (replace_unprintable(str(error[key])) for key in ("code", "message"))
    after = response.headers.get("Retry-After", "")
    retry_after_s = float(after) if after.isdecimal() and len(after) < 10 else 0.0
    summary = f"{response.status} {code}".rstrip()
    hint = f" (retry after {after} s)" if retry_after_s else ""
    hint += f" ({login_cure})" if response.status == 401 and login_cure else _HINTS.get(code, "")
    return PullError.error_status(f"{summary}{f': {message}' if message else ''}{hint}", response.status, retry_after_s)


def _parse_cache_status(header: str) -> str:
    """Return `hit`, `joined`, `miss` or `asked` from the Cache-Status of Dockyard (RFC 9211); empty without one."""
    match [part.strip() for part in header.split(";")]:
        case ["Dockyard", "hit", *_]:
            return "hit"
        case ["Dockyard", *rest] if "collapsed" in rest:
            return "joined"
        case ["Dockyard", *rest]:
            return "miss" if "stored" in rest else "asked"
        case _:
            return ""

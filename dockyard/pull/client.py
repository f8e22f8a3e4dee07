"""The door to a running Dockyard: manifests into memory, blobs into nothing, every digest checked.

Whatever goes wrong leaves here as `Failed`, after the tries that `tries.py` gives it. A body that breaks off is resumed
at the byte reached; a try that brought a MiB begins a new count.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol, TypeVar
from urllib.parse import quote, urljoin

import attrs
import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError, ReadTimeoutError, SSLError

from dockyard import __version__
from dockyard.errors import RegistryError
from dockyard.oci.manifest import ACCEPT, MAX_MANIFEST_BYTES, Manifest
from dockyard.oci.reference import Digest, Hasher, Reference
from dockyard.pull.images import Image
from dockyard.pull.tries import Failed

MUCH_FURTHER_BYTES: Final = 1024 * 1024
CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 60.0  # longer than Dockyard waits for any upstream
READ_BYTES: Final = 256 * 1024
SAID_BYTES_AT_MOST: Final = 16 * 1024
REDIRECTS_AT_MOST: Final = 3

_ERRNO: Final = re.compile(r"^\[Errno -?[0-9]+\] ")
_T = TypeVar("_T")


@attrs.frozen
class Read:
    """A blob that was read whole, and is what its digest says. `how` is hit, joined or miss."""

    size: int
    how: str
    tries: int


class Watcher(Protocol):
    """Is told how far a blob is; `total` is None while nobody knows."""

    def __call__(self, reached: int, total: int | None, /) -> None: ...


class Client:
    """Reads from one Dockyard, from up to `connections` threads. `url` is as `parse_server` returns it."""

    def __init__(self, url: str, connections: int) -> None:
        self._url = url
        self._stopped = threading.Event()
        self._running: set[urllib3.BaseHTTPResponse] = set()
        self._pools = urllib3.PoolManager(
            maxsize=connections,
            block=False,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            headers={"User-Agent": f"dockyard-pull/{__version__}", "Accept-Encoding": "identity"},
        )

    def check(self) -> None:
        """Raise Failed unless a registry answers here."""
        try:
            self._ask(f"{self._url}/v2/", {}).close()
        except Failed as exc:
            hint = " (is it running? --server names another)" if not exc.is_answered else ""
            raise Failed.final(f"no Dockyard at {self._url}: {exc.message}{hint}") from exc

    def read_manifest(self, image: Image, reference: Reference) -> Manifest:
        """Read and check one manifest of an image; raise Failed."""
        return self._persist(lambda: self._read_manifest(self._place(image, "manifests", reference), reference))

    def read_blob(self, image: Image, digest: Digest, watcher: Watcher) -> Read:
        """Read a blob and drop its bytes; raise Failed unless it came whole and is what its digest says."""
        download = _Download(digest, watcher)
        place = self._place(image, "blobs", digest)
        tries, mark = 0, 0
        while True:
            tries += 1
            download.tries += 1
            try:
                return self._go_on(download, place)
            except Failed as exc:
                if download.reached >= mark + MUCH_FURTHER_BYTES:
                    tries, mark = 0, download.reached
                self._pause(exc, max(tries, 1))

    def stop(self) -> None:
        """End all that is being read, soon: it fails. For other threads."""
        self._stopped.set()
        for response in list(self._running):
            with suppress(HTTPError, OSError, ValueError, RuntimeError):
                response.shutdown()

    def close(self) -> None:
        self._pools.clear()

    def _persist(self, attempt: Callable[[], _T]) -> _T:
        tries = 0
        while True:
            tries += 1
            try:
                return attempt()
            except Failed as exc:
                self._pause(exc, tries)

    def _pause(self, failed: Failed, tries: int) -> None:
        """Wait until it is time for another try; raise the failure when there is none."""
        pause_s = failed.pause_after(tries)
        if pause_s is None or self._stopped.wait(pause_s):
            raise failed

    def _read_manifest(self, url: str, reference: Reference) -> Manifest:
        with self._opened(url, {"Accept": ", ".join(ACCEPT)}) as response:
            body = b"".join(_pieces(response, MAX_MANIFEST_BYTES + 1))
            content_type = response.headers.get("Content-Type")
            said = response.headers.get("Docker-Content-Digest")
        try:
            expected = reference if isinstance(reference, Digest) else Digest.parse(said) if said else None
            return Manifest.parse(body, content_type, expected)
        except RegistryError as exc:  # what came is wrong, and will be the next time
            raise Failed.final(exc.message) from exc

    def _go_on(self, download: "_Download", url: str) -> Read:
        """Read what is left of a blob."""
        headers = {"Range": f"bytes={download.reached}-"} if download.reached else {}
        with self._opened(url, headers) as response:
            download.start(response)
            for piece in _pieces(response):
                download.take(piece)
        return download.finish()

    @contextmanager
    def _opened(self, url: str, headers: dict[str, str]) -> Iterator[urllib3.BaseHTTPResponse]:
        """Ask, follow redirects (blobs may be in a bucket), and close. Raise Failed for all but 200 and 206."""
        for _ in range(REDIRECTS_AT_MOST + 1):
            response = self._ask(url, headers)
            location = response.get_redirect_location()
            if not location:
                break
            response.close()
            url = urljoin(url, location)
        else:
            raise Failed.final("redirected too often")
        self._running.add(response)
        try:
            yield response
        finally:
            self._running.discard(response)
            response.close()  # its connection too, unless the body was read to the end

    def _ask(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        if self._stopped.is_set():
            raise Failed.final("stopped")
        with _faults_named():
            response = self._pools.request(
                "GET", url, headers={**self._pools.headers, **headers}, redirect=False, preload_content=False
            )
        if response.status in {200, 206} or response.get_redirect_location():
            return response
        try:
            raise _refusal(response)
        finally:
            response.close()

    def _place(self, image: Image, kind: str, reference: Reference) -> str:
        ns = f"?ns={quote(image.ns, safe='')}" if image.ns else ""
        return f"{self._url}/v2/{image.name}/{kind}/{reference}{ns}"


class _Download:
    """How far a blob is, over all tries."""

    def __init__(self, digest: Digest, watcher: Watcher) -> None:
        self.digest = digest
        self.watcher = watcher
        self.reached = 0
        self.tries = 0
        self.how = ""
        self.total: int | None = None
        self.hasher: Hasher = digest.hasher()

    def start(self, response: urllib3.BaseHTTPResponse) -> None:
        """See where the body begins: at the byte asked for, or, when the range was ignored, at the first."""
        if response.status == 200:
            self._restart()
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {self.reached}-"):
            raise Failed.final("sent another range than was asked for")
        length = response.headers.get("Content-Length", "")
        self.total = self.reached + int(length) if length.isdecimal() and len(length) < 19 else None
        self.how = self.how or _how(response.headers.get("Cache-Status", ""))
        self.watcher(self.reached, self.total)

    def take(self, piece: bytes) -> None:
        self.hasher.update(piece)
        self.reached += len(piece)
        self.watcher(self.reached, self.total)

    def finish(self) -> Read:
        """Check the whole; raise Failed, and begin anew the next time."""
        if not self.digest.matches(self.hasher):
            self._restart()
            raise Failed.wrong("the bytes that came do not have this digest")
        return Read(self.reached, self.how, self.tries)

    def _restart(self) -> None:
        self.reached = 0
        self.hasher = self.digest.hasher()


def _pieces(response: urllib3.BaseHTTPResponse, at_most: int | None = None) -> Iterator[bytes]:
    left = at_most
    with _faults_named():
        while left is None or left > 0:
            piece = response.read(READ_BYTES, decode_content=False)
            if not piece:
                return
            yield piece
            left = None if left is None else left - len(piece)


@contextmanager
def _faults_named() -> Iterator[None]:
    """Map what urllib3 raises to Failed."""
    try:
        yield
    except (HTTPError, OSError) as exc:
        raise Failed.broken(_words(exc)) from exc


def _words(exc: Exception) -> str:
    match exc:
        case NewConnectionError():
            return _ERRNO.sub("", str(exc).rpartition(": ")[2])
        case ReadTimeoutError():
            return f"no byte for {READ_TIMEOUT_S:.0f} s"
        case SSLError():
            return f"no TLS connection: {exc}"
        case _:
            return f"the connection broke: {exc}"


def _refusal(response: urllib3.BaseHTTPResponse) -> Failed:
    """What an error says: its status, and code and message of the body that the OCI specification asks for."""
    code = message = ""
    with suppress(Failed, ValueError, RecursionError, LookupError, TypeError):
        error = json.loads(b"".join(_pieces(response, SAID_BYTES_AT_MOST)))["errors"][0]
        code, message = str(error["code"]), str(error["message"])
    after = response.headers.get("Retry-After", "")
    retry_after_s = float(after) if after.isdecimal() and len(after) < 10 else 0.0
    words = " ".join(word for word in (str(response.status), code) if word)
    later = f" (it says: again in {after} s)" if retry_after_s else ""
    message = f"{words}{f': {message}' if message else ''}{later}"
    return Failed.refused(message, response.status, retry_after_s)


def _how(cache_status: str) -> str:
    """Read how Dockyard answered (RFC 9211); empty when it does not say."""
    match [part.strip() for part in cache_status.split(";")]:
        case ["Dockyard", "hit", *_]:
            return "hit"
        case ["Dockyard", *rest] if "collapsed" in rest:
            return "joined"
        case ["Dockyard", *_]:
            return "miss"
        case _:
            return ""

"""Where the keys of an issuer come from: a file or a URL. Blocking, for many threads.

The keys of a URL are read when the first token arrives, then every hour, and for a token whose key is unknown, as
issuers change their keys. One thread downloads them, at most once a minute, and the others use what is there. While
downloads fail, the last keys stay in use.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol

import structlog

from dockyard.access.files import FileVersion, WatchedFile
from dockyard.access.key_download import MAX_DOWNLOAD_S, DownloadFailed, download_key_set
from dockyard.access.keys import KeySet, parse_key_set
from dockyard.config.files import read_file
from dockyard.config.settings import JwtIssuer

MAX_FILE_BYTES = 512 * 1024
REFRESH_S = 3600.0
MIN_REFRESH_S = 60.0
RETRY_S = 10.0  # while no keys were ever read

KEY_FILE_PROBLEM = "no token of an issuer is admitted: its key file cannot be used"

log = structlog.get_logger()


class KeysUnavailable(Exception):
    """No keys were read so far, or the file cannot be used now. `retry_after_s`: when it is tried again."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("the keys of an issuer are not available")
        self.retry_after_s = math.ceil(retry_after_s)


class KeySource(Protocol):
    """The keys of one issuer."""

    def read(self) -> KeySet:
        """Return the keys, and download them first if that is due. Raises KeysUnavailable."""

    def refresh(self) -> KeySet:
        """Return the keys for a token whose key is unknown: others, if there are. Raises KeysUnavailable."""

    def find(self) -> KeySet | None:
        """Return the keys in memory; None if `read` would do more than that. Does not block."""

    @property
    def may_refresh(self) -> bool:
        """Whether `refresh` may return other keys than `find`."""


def has_url(issuer: JwtIssuer) -> bool:
    """Whether `jwks` of an issuer is a URL, and not a file."""
    return "://" in issuer.jwks


def make_source(issuer: JwtIssuer) -> KeySource:
    """Return the source that `jwks` of an issuer names."""
    return UrlKeys(issuer) if has_url(issuer) else FileKeys(issuer)


def check_keys(issuer: JwtIssuer) -> int:
    """Read the keys of an issuer, and return how many are usable. Raises ValueError, which says why none are."""
    try:
        data = download_key_set(issuer) if has_url(issuer) else read_file(issuer.jwks, MAX_FILE_BYTES)[0]
    except DownloadFailed as exc:
        raise ValueError(str(exc)) from exc
    return len(parse_key_set(data).keys)


class FileKeys:
    """The keys in a file, which is read again when it has changed. There are none while it cannot be used."""

    def __init__(self, issuer: JwtIssuer) -> None:
        self._issuer = issuer
        self._file = WatchedFile(issuer.jwks, MAX_FILE_BYTES, parse_key_set, KeySet(), self._report)

    def read(self) -> KeySet:
        """Return the keys of the file as it is now. Raises KeysUnavailable."""
        version = self._file.read()
        if version.error:
            raise KeysUnavailable(RETRY_S)
        return version.content

    refresh = read

    def find(self) -> KeySet | None:
        """Return the keys in memory if the file has not changed."""
        version = self._file.find()
        return None if version is None or version.error else version.content

    @property
    def may_refresh(self) -> bool:
        """Whether the file has changed."""
        return self._file.find() is None

    def _report(self, version: FileVersion[KeySet]) -> None:
        if version.error:
            log.error(
                KEY_FILE_PROBLEM,
                issuer=self._issuer.name,
                path=self._issuer.jwks,
                reason=version.error,
            )


class UrlKeys:
    """The keys at a URL."""

    def __init__(
        self,
        issuer: JwtIssuer,
        download: Callable[[JwtIssuer], bytes] = download_key_set,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer = issuer
        self._download = download
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._body = b""
        self._tried_at = -math.inf
        self._read_at = -math.inf
        self._error = ""

    def read(self) -> KeySet:
        """Return the keys; download them first every hour. Raises KeysUnavailable if there were none so far."""
        has_keys = self._keys is not None
        if self._is_due() or not has_keys:
            self._try_download(self._is_due, waits=not has_keys)
        return self._get()

    def refresh(self) -> KeySet:
        """Download the keys, at most once in MIN_REFRESH_S. Raises KeysUnavailable if there were none so far."""
        self._try_download(self._is_refresh_allowed, waits=True)
        return self._get()

    def find(self) -> KeySet | None:
        """Return the keys of the last download, unless the next one is due."""
        return None if self._is_due() else self._keys

    @property
    def may_refresh(self) -> bool:
        """Whether a download is allowed or in progress."""
        return self._is_refresh_allowed() or self._lock.locked()

    def _get(self) -> KeySet:
        if self._keys is None:
            raise KeysUnavailable(max(1.0, self._tried_at + RETRY_S - self._clock()))
        return self._keys

    def _is_due(self) -> bool:
        now = self._clock()
        if self._keys is None:
            return now - self._tried_at >= RETRY_S
        return now - self._read_at >= REFRESH_S and now - self._tried_at >= MIN_REFRESH_S

    def _is_refresh_allowed(self) -> bool:
        return self._is_due() or (self._keys is not None and self._clock() - self._tried_at >= MIN_REFRESH_S)

    def _try_download(self, is_due: Callable[[], bool], *, waits: bool) -> None:
        """Download the keys if that is still due when no other thread does it. Others wait for it if they must."""
        if not self._lock.acquire(timeout=2 * MAX_DOWNLOAD_S if waits else 0):
            return
        try:
            if not is_due():
                return
            self._tried_at = self._clock()
            self._keep(self._download(self._issuer))
        except (DownloadFailed, ValueError) as exc:
            self._report(str(exc))
        finally:
            self._lock.release()

    def _keep(self, body: bytes) -> None:
        if body != self._body or self._keys is None:
            try:
                self._keys = parse_key_set(body)
            except ValueError as exc:
                raise ValueError(f"the response {exc}") from exc
            self._body = body
        self._read_at = self._tried_at
        if self._error:
            self._error = ""
            log.info("the keys of an issuer can be read again", issuer=self._issuer.name)

    def _report(self, error: str) -> None:
        """Log a failure, once for each reason."""
        if error == self._error:
            return
        self._error = error
        fields = {"issuer": self._issuer.name, "url": self._issuer.jwks, "reason": error}
        if self._keys is None:
            log.error("cannot read the keys of an issuer: its tokens are rejected", **fields)
        else:
            log.warning("cannot read the keys of an issuer again: the last ones stay in use", **fields)

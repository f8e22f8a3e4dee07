"""What one download has learned about its blob at an upstream: where it is, and how it was described there.

Most registries redirect requests for a blob to a storage service, with a URL that is signed and expires. All ranges of
the blob are requested there, until the URL is refused: a range then costs one request instead of two. Such a URL gives
access to the blob, so it lives as long as the download, in memory only.

If the description changes between two ranges, they may belong to different bytes: the size, and, of the same URL
without its query, the entity tag, or the modification time where there is none. (Different servers may describe the
same blob differently.) These are compared here instead of sending `If-Range`: with that header, a server responds to
every range with the whole blob if its entity tag is weak or the same bytes were stored anew, and some proxies ignore
the range. The digest decides in the end.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from dockyard.oci.origin import Origin
from dockyard.upstream.errors import RangesUnsupported
from dockyard.upstream.network_zones import NetworkZone
from dockyard.upstream.session import RegistryResponse
from dockyard.upstream.transport import UpstreamResponse
from dockyard.upstream.urls import Url

MAX_WASTED_REDIRECTS = 2
MAX_DESCRIPTIONS = 16
MAX_LOOKUP_WAIT_S = 1.0


@attrs.define(eq=False)
class BlobRedirect:
    """A URL that the registry redirected to. `registry_zone` limits which addresses it may have.

    `was_reused`: it was accepted for a second request.
    """

    url: Url
    registry_zone: NetworkZone | None
    was_reused: bool = False


@attrs.frozen
class _Description:
    etag: str
    last_modified: str

    @classmethod
    def of(cls, http: UpstreamResponse) -> "_Description":
        return cls(http.header("ETag") or "", http.header("Last-Modified") or "")

    def contradicts(self, other: "_Description") -> bool:
        """Whether it describes other bytes."""
        if self.etag and other.etag:
            return self.etag != other.etag
        has_both = self.last_modified and other.last_modified
        return bool(has_both) and self.last_modified != other.last_modified


class BlobLocation:
    """Where a blob is, for one download of it. For many threads.

    `redirect` is where it is requested instead of at the registry, if that is known. `is_known`: the upstream has sent
    some of it. `has_ranges`: with the status 206.
    """

    def __init__(self) -> None:
        self.redirect: BlobRedirect | None = None
        self.is_known = False
        self.has_ranges = False
        self._lock = threading.Lock()
        self._lookup = threading.Lock()
        self._is_direct = False
        self._wasted_redirects = 0
        self._size: int | None = None
        self._descriptions: dict[tuple[Origin, str], _Description] = {}

    @contextmanager
    def lookup(self) -> Iterator[None]:
        """Surround a request to the registry, which one thread at a time sends, so that the others use its result.

        Others wait for at most MAX_LOOKUP_WAIT_S, because a response may hang, and not at all if the registry must be
        asked for each range.
        """
        is_locked = not self._is_settled and self._lookup.acquire(timeout=MAX_LOOKUP_WAIT_S)
        if is_locked and self._is_settled:
            self._lookup.release()
            is_locked = False
        try:
            yield
        finally:
            if is_locked:
                self._lookup.release()

    @property
    def _is_settled(self) -> bool:
        """Whether a lookup would tell nothing new."""
        return self.redirect is not None or self._is_direct or self._wasted_redirects >= MAX_WASTED_REDIRECTS

    def record_whole(self, response: RegistryResponse, size: int | None) -> None:
        """Remember a response with the whole blob, or with all of it from a byte on."""
        with self._lock:
            self._record(response, size)

    def record_range(self, response: RegistryResponse, size: int | None) -> int | None:
        """Check a response with a range, and remember it. Return the size of the blob, if it is known.

        Raises RangesUnsupported if the response contradicts a former one.
        """
        server = response.http.server
        with self._lock:
            if None not in (size, self._size) and size != self._size:
                raise RangesUnsupported(f"{server} announces two different sizes for one blob")
            first = self._descriptions.get(_place(response.http.url))
            if first is not None and first.contradicts(_Description.of(response.http)):
                raise RangesUnsupported(f"{server} describes one blob in two ways (ETag or Last-Modified)")
            self._record(response, size)
            return self._size

    def forget(self, redirect: BlobRedirect) -> None:
        """The URL was refused, or its host failed: the registry is asked for another one.

        After MAX_WASTED_REDIRECTS URLs that were refused at once, each is taken as valid for one request only.
        """
        with self._lock:
            if self.redirect is redirect:
                self.redirect = None
                self._wasted_redirects = 0 if redirect.was_reused else self._wasted_redirects + 1

    def _record(self, response: RegistryResponse, size: int | None) -> None:
        url = response.http.url
        self.is_known = True
        self.has_ranges |= response.http.status == 206
        self._size = size if self._size is None else self._size
        if len(self._descriptions) < MAX_DESCRIPTIONS:
            self._descriptions.setdefault(_place(url), _Description.of(response.http))
        if not response.is_redirected:
            self._is_direct = True
        elif self.redirect is not None and self.redirect.url == url:
            self.redirect.was_reused = True
        elif self._wasted_redirects < MAX_WASTED_REDIRECTS:
            self.redirect = BlobRedirect(url, response.registry_zone)


def _place(url: Url) -> tuple[Origin, str]:
    """A URL without its query, which has a new signature each time."""
    return url.origin, url.target.partition("?")[0]

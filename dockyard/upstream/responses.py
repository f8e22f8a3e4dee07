"""What the responses of a registry contain: descriptors, sizes, bodies. What is malformed raises UpstreamError."""

import threading

from dockyard import metrics
from dockyard.errors import Unavailable
from dockyard.oci.manifest import ACCEPT, MAX_MANIFEST_BYTES, Descriptor
from dockyard.oci.reference import Digest, Reference
from dockyard.upstream import errors
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.headers import (
    find_digest,
    find_limit,
    find_media_type,
    find_unsatisfied_size,
    parse_content_range,
    parse_length,
)
from dockyard.upstream.transport import UpstreamResponse


class UpstreamBlob:
    """A blob that is being received.

    `size` is the size of the whole blob, None when the upstream does not announce it. `start` is the offset of the
    first byte that `read` returns: 0 when the upstream ignored the requested range.
    """

    def __init__(self, http: UpstreamResponse, size: int | None, start: int) -> None:
        self.size = size
        self.start = start
        self._http = http
        self._remaining = None if size is None else size - start
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_aborted = False

    def read(self, amount: int) -> bytes:
        """The bytes that have arrived, at least one and at most `amount`; empty only at a complete end.

        Raises Unavailable when the body breaks off or is too short, UpstreamTimeout when it stalls. The bytes before
        that are returned first, so that a resumed download loses none. A short blob of unknown size is not noticed.
        """
        try:
            data = self._http.read_some(amount)
        except UpstreamError as error:
            raise error.error from error
        if self._is_aborted:
            raise Unavailable("the download was aborted")
        if self._remaining is not None:
            self._remaining -= len(data)
            if not data and self._remaining:
                raise errors.connection_lost(self._http.server).error
        return data

    def close(self) -> None:
        """Keep the connection for the next request if the body was read to its end; else close it."""
        with self._lock:
            self._is_closed = True
        self._http.close()

    def abort(self) -> None:
        """Make a `read` that waits in another thread fail."""
        with self._lock:
            self._is_aborted = True
            if not self._is_closed:
                self._http.abort()


def open_blob_body(http: UpstreamResponse, start: int) -> UpstreamBlob:
    """The body of a 200 or 206 response, if its headers match the requested range. Raises UpstreamError."""
    check_content(http)
    length = content_length(http)
    size, offset = length, 0
    if http.status == 206:
        try:
            content_range = parse_content_range(http.header("Content-Range"))
        except ValueError as exc:
            raise errors.bad_response(http.server, f"sent {exc}") from exc
        is_requested = start > 0 and content_range.first == start and content_range.last == content_range.total - 1
        if not is_requested or length not in (None, content_range.length):
            raise errors.bad_response(http.server, "sent another range than the requested one")
        size, offset = content_range.total, start
    http.lift_deadline()
    return UpstreamBlob(http, size, offset)


def find_descriptor(http: UpstreamResponse, reference: Reference) -> Descriptor | None:
    """The descriptor in the headers of a HEAD response; None when they are incomplete or do not match."""
    digest = find_digest(http.header("Docker-Content-Digest"))
    media_type = find_media_type(http.header("Content-Type"))
    try:
        length = parse_length(http.header_values("Content-Length"))
    except ValueError:
        return None
    if digest is None or media_type not in ACCEPT or not length or length > MAX_MANIFEST_BYTES:
        return None
    if http.header("Transfer-Encoding") or http.header("Content-Encoding"):
        return None
    if isinstance(reference, Digest) and digest != reference:
        return None
    return Descriptor(media_type, digest, length)


def content_length(http: UpstreamResponse) -> int | None:
    """The Content-Length, None when there is none, or a Transfer-Encoding replaces it. Raises UpstreamError.

    RFC 9112 section 6.3.
    """
    if http.header("Transfer-Encoding") is not None:
        return None
    try:
        return parse_length(http.header_values("Content-Length"))
    except ValueError as exc:
        raise errors.bad_response(http.server, f"sent {exc}") from exc


def check_encoding(http: UpstreamResponse) -> None:
    """Reject an encoded body: nothing is decoded, and the digest is that of the content. Raises UpstreamError."""
    if (http.header("Content-Encoding") or "identity").strip().lower() != "identity":
        raise errors.bad_response(http.server, "sent an encoded body, although only identity was accepted")
    if (http.header("Transfer-Encoding") or "chunked").strip().lower() != "chunked":
        raise errors.bad_response(http.server, "sent an unknown Transfer-Encoding")


def check_content(http: UpstreamResponse) -> None:
    """As check_encoding; reject HTML too: captive portals and login forms respond with 200. Raises UpstreamError."""
    check_encoding(http)
    if find_media_type(http.header("Content-Type")) == "text/html":
        raise errors.bad_response(http.server, "sent a web page instead of a blob")


def find_size(http: UpstreamResponse) -> int | None:
    """The size of a blob, from the response to a request for its first byte; None for other statuses.

    Raises UpstreamError.
    """
    try:
        match http.status:
            case 206:
                check_content(http)
                return parse_content_range(http.header("Content-Range")).total
            case 200:
                check_content(http)
                if (length := content_length(http)) is None:
                    raise errors.bad_response(http.server, "does not announce the size of a blob")
                return length
            case 416:
                return find_unsatisfied_size(http.header("Content-Range"))
    except ValueError as exc:
        raise errors.bad_response(http.server, f"sent {exc}") from exc
    return None


def record_rate_limit(prefix: str, http: UpstreamResponse) -> None:
    """Export the rate limit that the registry announces; Docker Hub counts manifests."""
    for header, gauge in (
        ("ratelimit-limit", metrics.ratelimit_limit),
        ("ratelimit-remaining", metrics.ratelimit_remaining),
    ):
        if (count := find_limit(http.header(header))) is not None:
            gauge.labels(prefix).set(count)

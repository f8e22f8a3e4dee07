"""What the responses of a registry contain: descriptors, sizes, bodies. What is malformed raises UpstreamError."""

import threading

import attrs

from dockyard import metrics
from dockyard.errors import FailureDetails, Unavailable
from dockyard.oci.manifest import ACCEPT, MAX_MANIFEST_BYTES, Descriptor
from dockyard.oci.reference import Digest, Reference
from dockyard.upstream import errors
from dockyard.upstream.errors import RangesUnsupported, UpstreamError
from dockyard.upstream.headers import (
    find_age,
    find_digest,
    find_limit,
    find_media_type,
    find_unsatisfied_size,
    has_oci_errors,
    is_stale,
    parse_content_range,
    parse_length,
)
from dockyard.upstream.transport import UpstreamResponse


class UpstreamBlob:
    """A blob that is being received.

    `size` is the size of the whole blob, None when the upstream does not announce it. `start` is the offset of the
    first byte that `read` returns: 0 when the upstream ignored the requested range. `encoding` is the Content-Encoding
    that the upstream declares. It is ignored: some registries label layers that are gzip files, and the digest decides.

    For what is labelled as a web page, `size` is None too, so that nothing of it is passed on before its digest was
    verified: it may be a login form, or a blob with a wrong Content-Type.

    With `stop`, the offset after the last byte, not more than that is read, whatever the upstream sends.
    """

    def __init__(self, http: UpstreamResponse, size: int | None, start: int, stop: int | None = None) -> None:
        self.is_web_page = is_web_page(http)
        self.size = None if self.is_web_page else size
        self.start = start
        self.encoding = http.encoding
        self._http = http
        self._has_end = stop is not None
        end = size if stop is None else stop
        self._remaining = None if end is None else end - start
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_aborted = False

    @property
    def details(self) -> FailureDetails:
        """What the log says if its bytes are wrong."""
        return self._http.details

    def read(self, amount: int) -> bytes:
        """The bytes that have arrived, at least one and at most `amount`; empty only at a complete end.

        Raises Unavailable when the body breaks off or is too short, UpstreamTimeout when it stalls. The bytes before
        that are returned first, so that a resumed download loses none. A short blob of unknown size is not noticed.
        """
        if self._has_end and self._remaining is not None:
            amount = min(amount, self._remaining)
        data = self._read_some(amount) if amount else b""
        if self._is_aborted:
            raise Unavailable("the download was aborted")
        if self._remaining is not None:
            self._remaining -= len(data)
            if not data and self._remaining:
                details = self._http.details
                raise errors.connection_lost(
                    self._http.server, attrs.evolve(details, error=f"the body ended early ({details.error})")
                ).error
        return data

    def _read_some(self, amount: int) -> bytes:
        try:
            return self._http.read_some(amount)
        except UpstreamError as error:
            raise error.error from error

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
    check_transfer_encoding(http)
    length = content_length(http)
    size, offset = length, 0
    if http.status == 206:
        try:
            content_range = parse_content_range(http.header("Content-Range"))
        except ValueError as exc:
            raise errors.bad_response(http.server, f"sent {exc}", http.details) from exc
        is_to_end = content_range.total is None or content_range.last == content_range.total - 1
        is_requested = start > 0 and content_range.first == start and is_to_end
        if not is_requested or length not in (None, content_range.length):
            raise errors.bad_response(http.server, "sent another range than the requested one", http.details)
        size, offset = content_range.total, start
    http.lift_deadline()
    return UpstreamBlob(http, size, offset)


def open_range_body(http: UpstreamResponse, start: int, stop: int) -> UpstreamBlob:
    """The body of a response to the range from `start` to before `stop`. Raises RangesUnsupported.

    A server may send less than was requested, if that begins with the first byte.
    """
    if http.status != 206:
        reason = f"{http.server} responded with status {http.status} to the request for a range"
        raise RangesUnsupported(reason, concerns_all_blobs=True)
    if find_media_type(http.header("Content-Type")) == "multipart/byteranges":
        raise RangesUnsupported(f"{http.server} sent one range as several parts", concerns_all_blobs=True)
    try:
        check_transfer_encoding(http)
        length = content_length(http)
        content_range = parse_content_range(", ".join(http.header_values("Content-Range")))
    except (ValueError, UpstreamError) as exc:
        reason = f"{http.server} sent a malformed response to the request for a range"
        raise RangesUnsupported(reason, concerns_all_blobs=True) from exc
    is_right = content_range.first == start and content_range.last < stop and length in (None, content_range.length)
    if not is_right:
        raise RangesUnsupported(f"{http.server} sent another range than the requested one", concerns_all_blobs=True)
    if is_web_page(http):
        raise RangesUnsupported(f"{http.server} sent a range that is labelled as a web page")
    size = content_range.total
    return UpstreamBlob(http, size, start, stop if size is None else min(stop, size))


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
    age_s, is_old = find_age(http.header("Age")), is_stale(http.header_values("Cache-Status"))
    return Descriptor(media_type, digest, length, age_s=age_s, is_stale=is_old)


def content_length(http: UpstreamResponse) -> int | None:
    """The Content-Length, None when there is none, or a Transfer-Encoding replaces it. Raises UpstreamError.

    RFC 9112 section 6.3.
    """
    if http.header("Transfer-Encoding") is not None:
        return None
    try:
        return parse_length(http.header_values("Content-Length"))
    except ValueError as exc:
        raise errors.bad_response(http.server, f"sent {exc}", http.details) from exc


def check_transfer_encoding(http: UpstreamResponse) -> None:
    """Reject an unknown Transfer-Encoding: the end of such a body is not known. Raises UpstreamError."""
    if (http.header("Transfer-Encoding") or "chunked").strip().lower() != "chunked":
        raise errors.bad_response(http.server, "sent an unknown Transfer-Encoding", http.details)


def is_web_page(http: UpstreamResponse) -> bool:
    """Whether the response is labelled as a web page."""
    return find_media_type(http.header("Content-Type")) in ("text/html", "application/xhtml+xml")


def is_json(http: UpstreamResponse) -> bool:
    """Whether the response is labelled as JSON, as the errors of registries are."""
    media_type = find_media_type(http.header("Content-Type")) or ""
    return media_type == "application/json" or media_type.endswith("+json")


def is_error_page(http: UpstreamResponse) -> bool:
    """Whether an error response comes from a firewall or a proxy, not from a registry: a web page, no OCI error.

    To be called after `finish`. A challenge, an empty body and plain text are taken as the registry's.
    """
    body = http.drained
    if body == b"" or http.header("WWW-Authenticate") is not None or (body and has_oci_errors(body)):
        return False
    return is_web_page(http) or (body or b"").lstrip()[:15].lower().startswith((b"<!doctype html", b"<html"))


def find_announced_size(http: UpstreamResponse, digest: Digest) -> int | None:
    """The size of a blob in a 200 response; None when it is missing or cannot be right. Raises UpstreamError.

    Some front ends announce 0 bytes for every HEAD. A web page may be a login form instead of the blob. The length of
    an encoded body is no size.
    """
    check_transfer_encoding(http)
    length = content_length(http)
    if length is None or is_web_page(http) or http.encoding:
        return None
    return length if length or is_empty(digest) else None


def find_size(http: UpstreamResponse, digest: Digest) -> int | None:
    """The size of a blob, from the response to a request for its first byte; None for other statuses.

    The size of a range is believed also when the response is labelled as encoded: what encodes bodies while it sends
    them does not respond with ranges. Raises UpstreamError.
    """
    size: int | None
    try:
        match http.status:
            case 206:
                check_transfer_encoding(http)
                size = parse_content_range(http.header("Content-Range")).total
            case 200:
                size = find_announced_size(http, digest)
            case 416:
                size = find_unsatisfied_size(http.header("Content-Range"))
                if not size and not is_empty(digest):
                    size = None
            case _:
                return None
    except ValueError as exc:
        raise errors.bad_response(http.server, f"sent {exc}", http.details) from exc
    if size is None:
        raise errors.bad_response(http.server, "does not announce the size of a blob", http.details)
    return size


def is_empty(digest: Digest) -> bool:
    """Whether this is the digest of 0 bytes."""
    return digest == Digest.of(b"", digest.algorithm)


def record_rate_limit(prefix: str, http: UpstreamResponse) -> None:
    """Export the rate limit that the registry announces; Docker Hub counts manifests."""
    for header, gauge in (
        ("ratelimit-limit", metrics.ratelimit_limit),
        ("ratelimit-remaining", metrics.ratelimit_remaining),
    ):
        if (count := find_limit(http.header(header))) is not None:
            gauge.labels(prefix).set(count)

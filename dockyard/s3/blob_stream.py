"""The body of a blob that is being read from the bucket. Blocking."""

import re
import threading

from dockyard.errors import FailureDetails, Unavailable, UpstreamTimeout
from dockyard.s3.errors import S3Error
from dockyard.s3.responses import S3Response, S3StreamingResponse

RETRY_AFTER_S = 3


class S3BlobStream:
    """The body of a blob, from byte `start` on. A download reads it as it reads the body of an upstream's response.

    With `stop` it ends before that byte. `size` is the size of the whole blob. `last_modified` is in seconds since the
    epoch, and `age_s` is by the clock of the S3 service.
    """

    size: int | None
    is_web_page = False
    encoding = ""  # what the bucket says about it does not matter: its bytes are those that were stored
    details = None  # bytes of the bucket that are wrong are not served: the upstream is asked

    def __init__(self, response: S3StreamingResponse, size: int, start: int, stop: int | None = None) -> None:
        metadata = S3Response(response.headers, b"")
        self.size = size
        self.start = start
        self.etag = response.headers.get("ETag", "")
        self.last_modified = metadata.last_modified
        self.age_s = metadata.age_s
        self._response = response
        self._remaining = (size if stop is None else min(stop, size)) - start
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_aborted = False

    def read(self, amount: int) -> bytes:
        """Read up to `amount` bytes; empty only when the whole body was read.

        Raises UpstreamTimeout when the S3 service stalls, Unavailable when the connection breaks, the body has another
        size than announced, or the read was aborted.
        """
        try:
            data = self._response.read(amount)
        except S3Error as exc:
            details = FailureDetails(error=str(exc), stage="bucket")
            if exc.code == "timeout" and not self._is_aborted:
                message = "the storage did not respond in time"
                raise UpstreamTimeout(message, retry_after_s=RETRY_AFTER_S, details=details) from exc
            message = "the storage closed the connection"
            raise Unavailable(message, retry_after_s=RETRY_AFTER_S, details=details) from exc
        self._remaining -= len(data)
        if self._is_aborted:
            raise Unavailable("the download was stopped")
        if (not data and self._remaining) or self._remaining < 0:
            raise Unavailable("the storage sent a body of another size than announced", retry_after_s=RETRY_AFTER_S)
        return data

    def close(self) -> None:
        """Release the connection: for reuse if the whole body was read, else it is closed."""
        with self._lock:
            self._is_closed = True
        self._response.close()

    def abort(self) -> None:
        """Make a `read` that is blocked in another thread fail. Does not block."""
        with self._lock:
            self._is_aborted = True
            if not self._is_closed:
                self._response.abort()


def parse_extent(response: S3StreamingResponse, start: int, stop: int | None = None) -> tuple[int, int]:
    """Return the offset of the body's first byte, and the size of the whole object. Raises ValueError.

    A `Content-Range` (RFC 9110 section 14.4) must begin at `start` and end before `stop`, or with the last byte of the
    object.
    """
    length = int(response.headers["Content-Length"]) if "Content-Length" in response.headers else -1
    if response.status == 200:
        if length < 0:
            raise ValueError("no Content-Length")
        return 0, length
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", response.headers.get("Content-Range", ""))
    if not found:
        raise ValueError("another Content-Range than requested")
    first, last, size = (int(number) for number in found.groups())
    end = size if stop is None else min(stop, size)
    if first != start or last != end - 1:
        raise ValueError("another Content-Range than requested")
    if length not in {-1, end - start}:
        raise ValueError("Content-Length does not match Content-Range")
    return start, size

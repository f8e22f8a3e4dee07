"""A blob that is coming from the store."""

import re
import threading

from dockyard.errors import Unavailable, UpstreamTimeout
from dockyard.s3.errors import S3Error
from dockyard.s3.responses import S3Response, S3StreamingResponse

RETRY_AFTER_S = 3


class S3BlobStream:
    """A blob that is coming from the store: what a fill reads from.

    `size` is the whole blob's; `start` is the offset of the first byte that `read` gives. `last_modified` is in seconds
    since the epoch, `age_s` by the store's own clock.
    """

    size: int | None

    def __init__(self, opened: S3StreamingResponse, size: int, start: int) -> None:
        answer = S3Response(opened.headers, b"")
        self.size = size
        self.start = start
        self.etag = opened.headers.get("ETag", "")
        self.last_modified = answer.last_modified
        self.age_s = answer.age_s
        self._opened = opened
        self._left = size - start
        self._lock = threading.Lock()
        self._is_over = False
        self._is_aborted = False

    def read(self, amount: int) -> bytes:
        """Up to `amount` bytes; empty at the right end only.

        Raises UpstreamTimeout when the store stalls, Unavailable when it breaks off or the body is short.
        """
        try:
            data = self._opened.read(amount)
        except S3Error as fault:
            if fault.code == "timeout" and not self._is_aborted:
                raise UpstreamTimeout("the storage stalled", retry_after_s=RETRY_AFTER_S) from fault
            raise Unavailable("the storage broke the connection off", retry_after_s=RETRY_AFTER_S) from fault
        self._left -= len(data)
        if self._is_aborted:
            raise Unavailable("the download was given up")
        if (not data and self._left) or self._left < 0:
            raise Unavailable("the storage sent another number of bytes than announced", retry_after_s=RETRY_AFTER_S)
        return data

    def close(self) -> None:
        """Keep the connection for the next request if the body was read to its end; else close it."""
        with self._lock:
            self._is_over = True
        self._opened.close()

    def abort(self) -> None:
        """Make a `read` that waits in another thread fail."""
        with self._lock:
            self._is_aborted = True
            if not self._is_over:
                self._opened.abort()


def find_extent(opened: S3StreamingResponse, start: int) -> tuple[int, int]:
    """Where the body begins, and the size of the whole. Raises ValueError."""
    length = int(opened.headers["Content-Length"]) if "Content-Length" in opened.headers else -1
    if opened.status == 200:
        if length < 0:
            raise ValueError("no length")
        return 0, length
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", opened.headers.get("Content-Range", ""))
    if not found or int(found[1]) != start or int(found[2]) != int(found[3]) - 1:
        raise ValueError("no such range")
    if length not in {-1, int(found[3]) - start}:
        raise ValueError("another length")
    return start, int(found[3])

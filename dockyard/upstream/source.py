"""The body of a blob while it comes from an upstream."""

import threading

from dockyard.errors import Unavailable
from dockyard.upstream import errors
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.transport import UpstreamResponse


class UpstreamBlob:
    """A blob that is being received.

    `size` is the size of the whole blob, None when the upstream does not tell. `start` is the offset of the first byte
    that `read` gives: 0 when the upstream ignored the range.
    """

    def __init__(self, answer: UpstreamResponse, size: int | None, start: int) -> None:
        self.size = size
        self.start = start
        self._answer = answer
        self._left = None if size is None else size - start
        self._lock = threading.Lock()
        self._is_over = False
        self._is_aborted = False

    def read(self, amount: int) -> bytes:
        """What has come, at least a byte and at most `amount`; empty at a correct end only.

        Raises Unavailable when the body breaks off or is short, UpstreamTimeout when it stalls. What came before is
        given first, so that whoever resumes loses nothing. A blob of unknown size can be short unseen.
        """
        try:
            data = self._answer.read_some(amount)
        except UpstreamError as fault:
            raise fault.error from fault
        if self._is_aborted:
            raise Unavailable("the download was given up")
        if self._left is not None:
            self._left -= len(data)
            if not data and self._left:
                raise errors.connection_lost(self._answer.who).error
        return data

    def close(self) -> None:
        """Keep the connection for the next request if the body was read to its end; else close it."""
        with self._lock:
            self._is_over = True
        self._answer.close()

    def abort(self) -> None:
        """Make a `read` that waits in another thread fail."""
        with self._lock:
            self._is_aborted = True
            if not self._is_over:
                self._answer.abort()

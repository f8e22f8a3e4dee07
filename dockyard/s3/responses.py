"""What the store answers: a body that is still coming, or all of it; and the little of its XML that we read."""

import html
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

import attrs
import urllib3
from urllib3 import exceptions as failures

from dockyard.s3.errors import S3Error, explain

READ_BYTES = 64 * 1024
RESPONSE_TIMEOUT_S = 30.0


@attrs.frozen
class S3Response:
    """A whole answer that was a success. `date` is the store's clock, `last_modified` 0 when it did not tell."""

    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)

    @property
    def date(self) -> float:
        return parse_date(self.headers.get("Date")) or time.time()

    @property
    def last_modified(self) -> float:
        return parse_date(self.headers.get("Last-Modified")) or 0.0

    @property
    def age_s(self) -> float:
        return max(self.date - self.last_modified, 0.0) if self.last_modified else 0.0

    def find(self, tag: str) -> str:
        """The text of the first such element of an XML answer; empty when there is none."""
        return find_text(self.body, tag)


class S3StreamingResponse:
    """A success whose body is still coming. Whoever has it closes it."""

    def __init__(self, response: urllib3.BaseHTTPResponse, connection: Any) -> None:
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._connection = connection
        self._turn = connection.turn
        self._wire = connection.wire

    def read(self, amount: int) -> bytes:
        """What has come, at most `amount` bytes; empty at the end. Raises S3Error: `broken`, `timeout`."""
        try:
            return self._response.read1(amount, decode_content=False)
        except (failures.HTTPError, HTTPException, OSError, ValueError, AttributeError) as exc:
            self.close()
            raise explain(exc, "the store") from exc

    def read_all(self, max_bytes: int, limit_s: float = RESPONSE_TIMEOUT_S) -> bytes:
        """The whole body, within `limit_s`. Raises S3Error, `oversize` when it is longer than `max_bytes`."""
        deadline = time.monotonic() + limit_s
        pieces, left = [], max_bytes
        while piece := self.read(min(left + 1, READ_BYTES)):
            left -= len(piece)
            if left < 0:
                self.close()
                raise S3Error(f"the store sent more than {max_bytes} bytes", "oversize")
            if time.monotonic() > deadline:
                self.close()
                raise S3Error(f"the store took more than {limit_s:.0f} s to send an answer", "timeout")
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the connection, unless the body was read to its end: then it is in the pool already."""
        self._response.close()
        self._response.release_conn()

    def abort(self) -> None:
        """Make a read that waits in another thread fail."""
        if self._connection.turn == self._turn:
            with suppress(OSError):
                # SSLSocket.shutdown() would go on in plain text.
                socket.socket.shutdown(self._wire, socket.SHUT_RDWR)


def parse_date(text: str | None) -> float | None:
    """An HTTP date in seconds since the epoch; None when it is none."""
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def find_text(xml: bytes, tag: str) -> str:
    """The text of the first such element; empty when there is none. What the store sends is not parsed further."""
    found = re.search(rb"<%s(?:\s[^<>]*)?>([^<>]{0,2048})</%s>" % (tag.encode(), tag.encode()), xml)
    # Entities without a name too: etags come with &#34; around them.
    return html.unescape(found[1].decode("utf-8", "replace")).strip() if found else ""


def find_hidden_error(body: bytes) -> str:
    """Copies and completed uploads begin with 200, before the store knows how they end."""
    return (find_text(body, "Code") or "garbage") if re.match(rb"\s*(<\?xml[^>]*>\s*)?<Error\b", body) else ""

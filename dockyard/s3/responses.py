"""Responses of an S3 service: read whole or as a stream, and the few XML elements that are needed of them."""

import html
import re
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

import attrs
import urllib3
from urllib3 import exceptions as urllib3_errors

from dockyard.oci.reference import replace_unprintable
from dockyard.s3.errors import S3Error, to_s3_error

READ_BYTES = 64 * 1024
# How long a whole response may take that is read to its end.
RESPONSE_TIMEOUT_S = 30.0
MAX_MESSAGE_CHARS = 300


@attrs.frozen
class S3Response:
    """A successful response that was read to its end."""

    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)

    @property
    def date(self) -> float:
        """The clock of the service in seconds since the epoch."""
        return parse_http_date(self.headers.get("Date")) or time.time()

    @property
    def last_modified(self) -> float:
        """When the object was written, in seconds since the epoch; 0 when there is no Last-Modified."""
        return parse_http_date(self.headers.get("Last-Modified")) or 0.0

    @property
    def age_s(self) -> float:
        """The age of the object by the clock of the service; 0 when unknown."""
        return max(self.date - self.last_modified, 0.0) if self.last_modified else 0.0

    def xml_text(self, tag: str) -> str:
        """Return the text of the first XML element of that name; empty when there is none."""
        return xml_text(self.body, tag)


class S3StreamingResponse:
    """A successful response whose body was not read yet. The caller closes it."""

    def __init__(self, response: urllib3.BaseHTTPResponse, connection: Any) -> None:
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._connection = connection
        self._request_number = connection.request_number
        self._socket = connection.open_socket

    def read(self, amount: int) -> bytes:
        """Read up to `amount` bytes; empty at the end. Raises S3Error with the code `broken` or `timeout`."""
        try:
            return self._response.read1(amount, decode_content=False)
        except (urllib3_errors.HTTPError, HTTPException, OSError, ValueError, AttributeError) as exc:
            self.close()
            raise to_s3_error(exc, "the S3 service") from exc

    def read_all(self, max_bytes: int, timeout_s: float = RESPONSE_TIMEOUT_S) -> bytes:
        """Read the whole body within `timeout_s`. Raises S3Error, `oversize` when it is longer than `max_bytes`."""
        deadline = time.monotonic() + timeout_s
        pieces, remaining = [], max_bytes
        while piece := self.read(min(remaining + 1, READ_BYTES)):
            remaining -= len(piece)
            if remaining < 0:
                self.close()
                raise S3Error(f"the response of the S3 service is longer than {max_bytes} bytes", "oversize")
            if time.monotonic() > deadline:
                self.close()
                raise S3Error(f"the response of the S3 service took more than {timeout_s:.0f} s", "timeout")
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        """Close the connection, unless the body was read to its end: then it is in the pool already."""
        self._response.close()
        self._response.release_conn()

    def abort(self) -> None:
        """Make a read that is blocked in another thread fail, unless the connection serves another request already."""
        if self._connection.request_number == self._request_number:
            with suppress(OSError):
                # Not SSLSocket.shutdown(): it would remove the TLS layer, and the reader would get encrypted bytes.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def parse_http_date(text: str | None) -> float | None:
    """Parse an HTTP date into seconds since the epoch; None when it is invalid."""
    try:
        return parsedate_to_datetime(text or "").timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None


def parse_time(text: str) -> float:
    """Parse a time as S3 writes it in XML into seconds since the epoch; 0 when it is invalid."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return parse_http_date(text) or 0.0


def xml_text(xml: bytes, tag: str) -> str:
    """Return the text of the first XML element of that name; empty when there is none.

    A regular expression, not a parser: the response may be hostile, and no more than single elements is needed.
    """
    found = re.search(rb"<%s(?:\s[^<>]*)?>([^<>]{0,2048})</%s>" % (tag.encode(), tag.encode()), xml)
    # ETags have character references without a name around them: &#34;
    return html.unescape(found[1].decode("utf-8", "replace")).strip() if found else ""


def error_message(body: bytes, secrets: Iterable[str | None]) -> str:
    """Return the `<Message>` of an error response for the log: one line, cut, without secrets; empty if there is none.

    A service may repeat what it was sent. `secrets` and signatures are replaced by `***`.
    """
    found = re.search(rb"<Message(?:\s[^<>]*)?>([^<>]{0,4096})", body)
    text = html.unescape(found[1].decode("utf-8", "replace")) if found else ""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
    text = re.sub(r"(?i)((?:signature|security-token)=)[^&\s]+", r"\1***", text)
    text = " ".join(replace_unprintable(text).split())
    return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[:MAX_MESSAGE_CHARS]}..."


def embedded_error_code(body: bytes) -> str:
    """Return the error code of a response with the status 200; empty when it is no error.

    Copies and completed multipart uploads begin with 200 before their outcome is known.
    """
    return (xml_text(body, "Code") or "garbage") if re.match(rb"\s*(<\?xml[^>]*>\s*)?<Error\b", body) else ""

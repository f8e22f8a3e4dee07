"""Bodies that a server encoded although only `identity` was accepted (RFC 9110 section 8.4.1): gzip and deflate.

Only for small bodies that are read whole. Layers are never unpacked: they are bytes with a digest.
"""

import re
import zlib

_NAME = re.compile(r"[a-z0-9-]{1,20}")
_GZIP_OR_ZLIB, _RAW_DEFLATE = 47, -15  # `wbits` of zlib
_WINDOWS = {"gzip": (_GZIP_OR_ZLIB,), "x-gzip": (_GZIP_OR_ZLIB,), "deflate": (_GZIP_OR_ZLIB, _RAW_DEFLATE)}


class TooLong(ValueError):
    """The body is longer than allowed when it is unpacked."""


def parse_encoding(header: str | None) -> str:
    """A Content-Encoding in lower case; empty for none and for `identity`."""
    encoding = (header or "").strip().lower()
    return "" if encoding == "identity" else encoding


def unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Unpack a body. One that is not encoded as the header says is returned as it is. Raises TooLong."""
    for window_bits in _WINDOWS.get(encoding, ()):
        decoder = zlib.decompressobj(window_bits)
        try:
            unpacked = decoder.decompress(body, max_bytes + 1)
        except zlib.error:
            continue
        if len(unpacked) > max_bytes:
            raise TooLong(f"more than {max_bytes} bytes")
        if decoder.eof and not decoder.unused_data:
            return unpacked
    return body


def describe(encoding: str) -> str:
    """The end of an error message about wrong bytes; empty when they were not declared to be encoded."""
    if not encoding:
        return ""
    name = encoding if _NAME.fullmatch(encoding) else "an unknown encoding"
    return f"; they are declared to be encoded ({name}), although only identity is accepted"

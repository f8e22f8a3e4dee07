"""The 42 requests of the smuggling corpus: their bytes, and the responses of Dockyard.

`INNER` is a request that a lenient server finds inside another one. Answering it would send a request for `smuggled`
upstream, which the tests look for.
"""

import attrs

INNER = b"GET /v2/up.test/smuggled/manifests/x HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET /version HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
_HOST = b"Host: h\r\n"
_PING = b"GET /v2/ HTTP/1.1\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_END = b"0\r\n\r\n"


@attrs.frozen
class RawInput:
    """One raw input, and all response statuses on its connection, which the server then closes."""

    name: str
    data: bytes = attrs.field(repr=False)
    statuses: tuple[int, ...]


def _ping(*lines: bytes, body: bytes = b"", start: bytes = _PING) -> bytes:
    return start + _HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


def _post(body: bytes) -> bytes:
    return b"POST /v2/up.test/app/blobs/uploads/ HTTP/1.1\r\n" + _HOST + _CHUNKED + b"\r\n" + body


def _get(target: bytes) -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + _HOST + b"\r\n"


_LENGTH = b"Content-Length: %d" % len(INNER)

CORPUS = [
    # Two contradictory lengths of the body.
    RawInput("length, then chunked", _ping(b"Content-Length: 4", _CHUNKED[:-2], body=_END + INNER), (400,)),
    RawInput("chunked, then length", _ping(_CHUNKED[:-2], b"Content-Length: 4", body=_END + INNER), (400,)),
    RawInput("two lengths", _ping(b"Content-Length: 0", _LENGTH, body=INNER), (400,)),
    RawInput("a list of lengths", _ping(b"Content-Length: 5, 5", body=b"hello" + INNER), (400,)),
    RawInput("length +5", _ping(b"Content-Length: +5", body=b"hello" + INNER), (400,)),
    RawInput("length -1", _ping(b"Content-Length: -1", body=INNER), (400,)),
    RawInput("length 0x5", _ping(b"Content-Length: 0x5", body=b"hello" + INNER), (400,)),
    RawInput("a length of 23 digits", _ping(b"Content-Length: 10000000000000000000005", body=b"hello" + INNER), (400,)),
    RawInput("two equal lengths", _ping(b"Content-Length: 5", b"Content-Length: 5", body=b"hello" + LAST), (200, 200)),
    RawInput("xchunked", _ping(b"Transfer-Encoding: xchunked", body=_END + INNER), (400,)),
    RawInput("chunked, identity", _ping(b"Transfer-Encoding: chunked, identity", body=_END + INNER), (400,)),
    RawInput("a space before the colon", _ping(b"Transfer-Encoding : chunked", body=_END + INNER), (400,)),
    RawInput("a vertical tab before chunked", _ping(b"Transfer-Encoding: \x0bchunked", body=_END + INNER), (400,)),
    RawInput(
        "two codings", _ping(b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked", body=_END + INNER), (400,)
    ),
    RawInput("chunked in HTTP/1.0", _ping(_CHUNKED[:-2], body=_END + INNER, start=b"GET /v2/ HTTP/1.0\r\n"), (400,)),
    # Line endings where none may be.
    RawInput("a bare CR in a header", _ping(b"X: a\rContent-Length: 5", body=INNER), (400,)),
    RawInput("NUL in a header", _ping(b"X: a\0b", body=INNER), (400,)),
    RawInput("a folded header", _ping(b"X: a", b" Content-Length: 5", body=INNER), (400,)),
    RawInput("bare LF line ends", b"GET /v2/ HTTP/1.1\nHost: h\n\n" + LAST, (200, 200)),
    # Hosts.
    RawInput("two hosts", _ping(b"Host: other", body=INNER), (400,)),
    RawInput("no host", _PING + b"\r\n" + INNER, (400,)),
    # Malformed chunks; the body is never read.
    RawInput("a chunk that ends in LF", _post(b"5\nhello\r\n" + _END + INNER), (405,)),
    RawInput("a chunk extension without an end", _post(b"5;x=\nhello\r\n" + _END + INNER), (405,)),
    RawInput("a chunk size that overflows", _post(b"ffffffffffffffff1\r\nhello\r\n" + _END + INNER), (405,)),
    RawInput("junk behind a chunk", _post(b"5\r\nhelloJUNK\r\n" + _END + INNER), (405,)),
    RawInput("a GET with a request in its body", _ping(_LENGTH, body=INNER + LAST), (200, 200)),
    # Targets and methods for proxies.
    RawInput("a target of another host", _get(b"http://evil.test/v2/") + LAST, (200, 200)),
    RawInput("CONNECT", b"CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n" + INNER, (400,)),
    RawInput("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + INNER, ()),
    RawInput(
        "an upgrade to h2c", _ping(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", body=LAST), (200, 200)
    ),
    RawInput("HTTP/0.9", b"GET /v2/\r\n" + INNER, (400,)),
    # Sizes.
    RawInput("a header of 64 KiB", _ping(b"X: " + b"a" * 65536), (431,)),
    RawInput("a header of 1 MiB", _ping(b"X: " + b"a" * 2**20), (431,)),
    RawInput("101 headers", _ping(*[b"X: a"] * 101), (431,)),
    RawInput("a target of 70 KiB", _get(b"/v2/" + b"a" * 70_000), (414,)),
    # Paths.
    RawInput("escaped dots", _get(b"/v2/%2e%2e/%2e%2e/etc/passwd"), (400,)),
    RawInput("dots", _get(b"/v2/../../etc/passwd"), (400,)),
    RawInput("an escaped slash and NUL", _get(b"/v2/up.test/a%2fb%00c/manifests/x"), (400,)),
    RawInput("an escape that is escaped", _get(b"/v2/up.test/%252e%252e/manifests/x"), (400,)),
    RawInput("raw UTF-8", _get("/v2/up.test/é/manifests/x".encode()), (400,)),
    RawInput("a byte that is no UTF-8", _get(b"/v2/up.test/a%ff/manifests/x"), (400,)),
    RawInput("a fragment", _get(b"/v2/#/../up.test/smuggled/manifests/x") + LAST, (200, 200)),
]

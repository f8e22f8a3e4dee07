"""Bodies: ranges in order, chunks of bounded size, readers closed."""

import email.parser

import pytest

from dockyard.oci.ranges import ByteRange
from dockyard.web.bodies import ActiveBodies, MultipartBody, ResponseBody

BLOB = bytes(range(256)) * 10_000


class Memory:
    """A reader that gives a little less than is asked for, as files and downloads do."""

    def __init__(self) -> None:
        self.size = len(BLOB)
        self.is_closed = False

    async def read_into(self, buffer: bytearray, position: int, amount: int) -> int:
        chunk = BLOB[position : position + max(amount - 7, 1)]
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self.is_closed = True


async def send(parts: list[bytes | ByteRange], active_bodies: ActiveBodies) -> tuple[list[bytes], Memory]:
    """All chunks of a body, and its reader after the end."""
    reader = Memory()
    body = ResponseBody(reader, parts, active_bodies)
    chunks = [bytes(chunk) async for chunk in body]
    await body.close()
    return chunks, reader


@pytest.mark.parametrize(
    "parts",
    [[ByteRange(0, len(BLOB))], [ByteRange(5, 6)], [ByteRange(0, 0)], [b"head", ByteRange(9, 2_000_000), b"tail"]],
)
async def test_a_body_is_its_parts(parts: list[bytes | ByteRange]) -> None:
    """Literal bytes and ranges come out whole and in order, and the reader is closed."""
    chunks, reader = await send(parts, ActiveBodies())
    expected = b"".join(part if isinstance(part, bytes) else BLOB[part.start : part.stop] for part in parts)
    assert b"".join(chunks) == expected
    assert reader.is_closed


@pytest.mark.parametrize(("bodies", "limit"), [(1, 1_048_576), (10, 262_144), (100, 65_536)])
async def test_chunks_get_smaller_when_there_are_many_bodies(bodies: int, limit: int) -> None:
    """What a stalled client can hold in memory is bounded by the number of clients."""
    active_bodies = ActiveBodies()
    active_bodies.count = bodies
    chunks, _ = await send([ByteRange(0, len(BLOB))], active_bodies)
    assert max(map(len, chunks)) <= limit
    assert active_bodies.count == bodies


async def test_a_multipart_body_is_what_its_headers_say() -> None:
    """Each range is a part of its own with its Content-Range, and the length is exact."""
    ranges = [ByteRange(0, 10), ByteRange(100, 110), ByteRange(5, 20)]
    multipart = MultipartBody(ranges, len(BLOB), "application/octet-stream", "boundary")
    chunks, _ = await send(multipart.parts, ActiveBodies())
    body = b"".join(chunks)
    assert len(body) == multipart.length
    head = f"Content-Type: {multipart.content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser().parsebytes(head + body)
    parts = message.get_payload()
    assert isinstance(parts, list)
    assert [part["Content-Range"] for part in parts] == [part.content_range(len(BLOB)) for part in ranges]
    assert body.count(BLOB[100:110]) == 1

"""Bodies that are streamed: the bytes of a blob, whole or in ranges, in chunks of a size that keeps memory bounded.

A body closes the reader that it was given. One that cannot go on raises, and the connection ends short of its
Content-Length, which every client notices.
"""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence

from dockyard.cache.readers import Reader
from dockyard.oci.ranges import ByteRange

FEW_READERS, MANY_READERS = 4, 32
LARGE_CHUNK, CHUNK, SMALL_CHUNK = 1024 * 1024, 256 * 1024, 64 * 1024


class Load:
    """How many bodies this worker is sending. A stalled client holds about six chunks in the server."""

    def __init__(self) -> None:
        self.bodies = 0

    @property
    def chunk_size(self) -> int:
        """Bytes per chunk: large for a few readers, small for many."""
        if self.bodies <= FEW_READERS:
            return LARGE_CHUNK
        return CHUNK if self.bodies <= MANY_READERS else SMALL_CHUNK


class BlobBody(AsyncIterator[bytes]):
    """The parts of a body in order: literal bytes, and ranges of the blob.

    A chunk is good until the next is asked for: whole ones lie in one buffer. (Granian copies what it is given.)
    """

    def __init__(self, reader: Reader, parts: Iterable[bytes | ByteRange], load: Load) -> None:
        self.reader = reader
        self._parts = deque(parts)
        self._load = load
        self._buffer = bytearray()
        load.bodies += 1

    @property
    def only_range(self) -> ByteRange | None:
        """What the body is of the blob, if it is one range and nothing else."""
        match list(self._parts):
            case [ByteRange() as part]:
                return part
        return None

    def skip(self) -> None:
        """Nothing is left to iterate over: the body was sent in another way."""
        self._parts.clear()

    async def __anext__(self) -> bytes:
        """The next chunk. Raises RegistryError when there will be none although there should."""
        while self._parts:
            part = self._parts.popleft()
            if isinstance(part, bytes):
                return part
            if not part.length:
                continue
            amount = min(self._load.chunk_size, part.length)
            if len(self._buffer) != amount:
                self._buffer = bytearray(amount)
            count = await self.reader.read_into(self._buffer, part.start, amount)
            self._parts.appendleft(ByteRange(part.start + count, part.stop))
            if count < amount:
                return bytes(memoryview(self._buffer)[:count])
            return self._buffer  # type: ignore[return-value]  # a bytearray is sent as it is; bytes() would copy it
        raise StopAsyncIteration

    async def close(self) -> None:
        """Called by Falcon when the body has ended, however it has ended."""
        self._load.bodies -= 1
        self.reader.close()


class Multipart:
    """A `multipart/byteranges` body: one part per range, in order (RFC 9110 section 14.6)."""

    def __init__(self, ranges: Sequence[ByteRange], size: int, content_type: str, boundary: str) -> None:
        self.content_type = f"multipart/byteranges; boundary={boundary}"
        self.parts: list[bytes | ByteRange] = []
        self.length = 0
        for part in ranges:
            head = (
                f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {part.content_range(size)}\r\n\r\n"
            )
            self.parts += [head.encode(), part]
            self.length += len(head) + part.length
        end = f"\r\n--{boundary}--\r\n".encode()
        self.parts.append(end)
        self.length += len(end)

"""Response bodies that are streamed through Granian: a blob or ranges of it, in chunks.

A body closes its reader. If the blob ends early the body raises, and the connection is closed before Content-Length
bytes were sent, which clients detect.
"""

from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence

from dockyard.cache.readers import Reader
from dockyard.oci.ranges import ByteRange

MAX_BODIES_OF_LARGE_CHUNKS, MAX_BODIES_OF_MEDIUM_CHUNKS = 4, 32
LARGE_CHUNK_BYTES, MEDIUM_CHUNK_BYTES, SMALL_CHUNK_BYTES = 1024 * 1024, 256 * 1024, 64 * 1024


class ActiveBodies:
    """The number of bodies that this worker is sending, which decides the size of their chunks.

    Granian buffers about six chunks for a client that does not read, so many bodies with large chunks would take much
    memory.
    """

    def __init__(self) -> None:
        self.count = 0

    @property
    def chunk_bytes(self) -> int:
        """Size of a chunk."""
        if self.count <= MAX_BODIES_OF_LARGE_CHUNKS:
            return LARGE_CHUNK_BYTES
        return MEDIUM_CHUNK_BYTES if self.count <= MAX_BODIES_OF_MEDIUM_CHUNKS else SMALL_CHUNK_BYTES


class ResponseBody(AsyncIterator[bytes]):
    """Iterates over the chunks of a body. `parts` are literal bytes and ranges of the blob, in order.

    `are_chunks_small`: whatever the number of bodies, because what is buffered is lost when the client closes early.

    A chunk is valid until the next one is requested: full chunks share one buffer. (Granian copies each chunk.)
    """

    def __init__(
        self,
        reader: Reader,
        parts: Iterable[bytes | ByteRange],
        active_bodies: ActiveBodies,
        *,
        are_chunks_small: bool = False,
    ) -> None:
        self._reader = reader
        self._parts = deque(parts)
        self._active_bodies = active_bodies
        self._are_chunks_small = are_chunks_small
        self._buffer = bytearray()
        active_bodies.count += 1

    async def __anext__(self) -> bytes:
        """Return the next chunk. Raises RegistryError when the blob ends early."""
        while self._parts:
            part = self._parts.popleft()
            if isinstance(part, bytes):
                return part
            if not part.length:
                continue
            chunk_bytes = SMALL_CHUNK_BYTES if self._are_chunks_small else self._active_bodies.chunk_bytes
            amount = min(chunk_bytes, part.length)
            if len(self._buffer) != amount:
                self._buffer = bytearray(amount)
            count = await self._reader.read_into(self._buffer, part.start, amount)
            self._parts.appendleft(ByteRange(part.start + count, part.stop))
            if count < amount:
                return bytes(memoryview(self._buffer)[:count])
            return self._buffer  # type: ignore[return-value]  # Granian accepts a bytearray; bytes() would copy it
        raise StopAsyncIteration

    async def close(self) -> None:
        """Close the reader. Falcon calls it when the body has ended, also after an error."""
        self._active_bodies.count -= 1
        self._reader.close()


class MultipartBody:
    """A `multipart/byteranges` body: one part for each range, in order (RFC 9110 section 14.6)."""

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

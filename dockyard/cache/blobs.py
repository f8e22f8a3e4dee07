"""The blob path, top to bottom: the local tier, a running flight, a new one."""

from collections.abc import Mapping
from typing import Protocol

import attrs

from dockyard.cache.bridge import Threads
from dockyard.cache.flights import Flights
from dockyard.cache.readers import FileReader, FlightReader, Reader
from dockyard.oci.reference import Digest
from dockyard.routing import Target
from dockyard.storage.local import LocalTier


class Heads(Protocol):
    """What a HEAD of a blob needs of a registry."""

    def head_blob(self, repository: str, digest: Digest) -> int:
        """The size of a blob in bytes. Raises RegistryError."""


@attrs.frozen
class OpenedBlob:
    """A blob ready to be read, and how the request was answered: hit, miss or joined. It cannot change."""

    reader: Reader
    how: str
    checked_at: None = None
    error: None = None


@attrs.frozen
class FoundSize:
    """The size of a blob in bytes, and how it was found: hit, joined, or asked (of the upstream)."""

    size: int
    how: str
    checked_at: None = None
    error: None = None


class Blobs:
    """Blobs by digest."""

    def __init__(self, tier: LocalTier, flights: Flights, registries: Mapping[str, Heads], threads: Threads) -> None:
        self._tier = tier
        self._flights = flights
        self._registries = registries
        self._threads = threads

    async def open(self, target: Target, digest: Digest) -> OpenedBlob:
        """Open a blob for reading, fetched if need be. Whoever gets it closes the reader. Raises RegistryError."""
        if stored := await self._threads.disk(self._tier.open_blob, digest):
            return OpenedBlob(FileReader(stored, self._threads), "hit")
        flight, was_running = self._flights.join(target, digest)
        reader = FlightReader(flight, self._threads)
        try:
            await reader.open()
        except BaseException:
            reader.close()
            raise
        return OpenedBlob(reader, "joined" if was_running else "miss")

    async def find_size(self, target: Target, digest: Digest) -> FoundSize:
        """Find the size of a blob without fetching it. Raises RegistryError."""
        if stored := await self._threads.disk(self._tier.open_blob, digest):
            FileReader(stored, self._threads).close()
            return FoundSize(stored.size, "hit")
        flight = self._flights.find(digest)
        if flight and flight.size is not None and not flight.error:
            return FoundSize(flight.size, "joined")
        registry = self._registries[target.upstream.prefix]
        size = await self._threads.upstream(registry.head_blob, target.repository, digest)
        return FoundSize(size, "asked")

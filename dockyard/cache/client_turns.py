"""How many requests of one client may wait for pieces ahead at the same time. Its other requests wait for a turn.

So a client that requests thousands of ranges delays itself, and not the others that read the same blobs.
"""

import asyncio
from types import TracebackType
from typing import Final

MAX_WAITING_PER_CLIENT: Final = 16


class ClientTurns:
    """The turns of all clients of this worker, by address."""

    def __init__(self, limit: int = MAX_WAITING_PER_CLIENT) -> None:
        self._limit = limit
        self._clients: dict[str, Turns] = {}

    def of(self, client: str) -> "Turns":
        """The turns of one client."""
        return self._clients.get(client) or Turns(client, self._limit, self._clients)


class Turns:
    """The turns of one client: an asynchronous context manager."""

    def __init__(self, client: str, limit: int, clients: dict[str, "Turns"]) -> None:
        self._client = client
        self._clients = clients
        self._users = 0
        self._semaphore = asyncio.Semaphore(limit)

    async def __aenter__(self) -> None:
        """Wait for a turn."""
        self._clients[self._client] = self
        self._users += 1
        try:
            await self._semaphore.acquire()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the turn to the next request of the client."""
        self._semaphore.release()
        self._leave()

    def _leave(self) -> None:
        self._users -= 1
        if not self._users:
            self._clients.pop(self._client, None)

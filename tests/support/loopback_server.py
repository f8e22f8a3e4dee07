"""What the servers of the tests have in common: a port on loopback that stays the same over restarts."""

import contextlib
import http.client
import ssl
from abc import abstractmethod
from collections.abc import Iterator

REQUEST_TIMEOUT_S = 5.0


class LoopbackServer:
    """A server process that answers `GET /v2/` on a loopback port."""

    port: int
    has_tls = False

    @property
    def host(self) -> str:
        """Address and port."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{'https' if self.has_tls else 'http'}://{self.host}"

    @abstractmethod
    def start(self) -> None:
        """Start it and wait until it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it."""

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop it for the duration of the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def is_answering(self) -> bool:
        """Whether `/v2/` answers now: 200, or 401 or 403 where access is restricted."""
        if self.has_tls:
            context = ssl._create_unverified_context()  # noqa: S323  it is this server, or none
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_TIMEOUT_S)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/v2/")
                return connection.getresponse().status in {200, 401, 403}
            except (OSError, http.client.HTTPException):
                return False

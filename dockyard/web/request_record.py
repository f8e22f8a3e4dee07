"""The record of one request: the fields of its log line, and its metrics."""

import time
from collections.abc import Callable, Sequence

from dockyard import metrics
from dockyard.errors import RegistryError
from dockyard.web.asgi import Scope

MAX_LOGGED_BODY_BYTES = 2048
MAX_LOGGED_RANGE_LENGTH = 100
SCOPE_KEY = "dockyard.request_record"
CLIENT_LEFT = "client left"
OPEN_RANGE_CLOSED = "open range closed"
CLIENT_STALLED = "client stalled"
INTERNAL_ERROR = "internal error, see the log"


def find_peer(scope: Scope) -> str:
    """Return the address at the other end of the connection of a request."""
    address: str = scope["client"][0]
    return address.removeprefix("::ffff:")


class RequestRecord:
    """What is logged and counted of one request.

    Handlers set `kind`, `name`, `reference`, `how`, `range` (the header) and `has_open_range`: the response is one
    range without an end, and the client may close the connection when it has what it wants. The gate sets `user`,
    the name of a verified login, and `is_hidden` if the client must not learn that the repository exists;
    `replaced` are then the names that are looked up, each with what was requested. `challenge_error` is what would
    be wrong with the access token in the request if the response is 401 (RFC 6750 section 3.1). `passed` are the
    servers that the request has passed, by its CDN-Loop. Sending sets `status`, `sent_bytes` and, for a response
    that was not sent completely, `end`. `error` is why the response is an error, stale or cut. `request_body` and
    `response_body` are empty unless they are to be logged. `find_client` returns the address of the client.
    """

    kind = "other"
    name = ""
    reference = ""
    how = ""
    range = ""
    has_open_range = False
    status = 0
    sent_bytes = 0
    end = ""
    error: RegistryError | None = None
    request_body = b""
    response_body = b""
    user = ""
    is_hidden = False
    challenge_error = ""
    passed: tuple[str, ...] = ()
    replaced: Sequence[tuple[str, str]] = ()

    def __init__(self, scope: Scope, find_client: Callable[[Scope], str] = find_peer) -> None:
        self._find_client = find_client
        self._scope = scope
        self._started = time.perf_counter()

    @property
    def client(self) -> str:
        """The address of the client."""
        return self._find_client(self._scope)

    def cut(self, error: RegistryError) -> None:
        """This server could not complete the response, whose status was sent already."""
        self.error = error
        self.end = f"cut: {error.message}"

    def set_client_left(self) -> None:
        """The client has closed the connection before the end of the response."""
        self.end = OPEN_RANGE_CLOSED if self.has_open_range else CLIENT_LEFT

    def count(self) -> None:
        """Update the metrics. Called once, when the request has ended."""
        metrics.count_request(self.kind, self.status, self.how, time.perf_counter() - self._started, self.sent_bytes)
        if self.end:
            metrics.cut_responses.labels(self.end.partition(":")[0]).inc()

    def log_fields(self) -> dict[str, object]:
        """The fields of the log line, without those that are empty."""
        fields: dict[str, object] = {
            "method": self._scope["method"],
            "path": "" if self.name else self._scope["path"],
            "name": self.name,
            "reference": self.reference,
            "range": self.range[:MAX_LOGGED_RANGE_LENGTH],
            "status": self.status,
            "how": self.how,
            "bytes": self.sent_bytes,
            "seconds": round(time.perf_counter() - self._started, 4),
            "user": self.user,
            "client": self.client,
            "end": self.end,
        }
        if self.request_body:
            fields["request_body"] = self.request_body[:MAX_LOGGED_BODY_BYTES].decode("utf-8", "replace")
        if self.response_body:
            fields["response_body"] = self.response_body[:MAX_LOGGED_BODY_BYTES].decode("utf-8", "replace")
        if self.error is not None:
            fields |= self.error.log_fields()
        return {key: value for key, value in fields.items() if value != ""}

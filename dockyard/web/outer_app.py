"""The ASGI application that Granian calls, around the Falcon application.

Before Falcon, it rejects invalid requests and sets the path that is routed. Afterwards, it counts and logs the request.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence

from dockyard.config.types import Level
from dockyard.errors import RegistryError
from dockyard.log import write_request
from dockyard.web.asgi import App, Receive, Scope, Send, has_request_body
from dockyard.web.connections import Connections
from dockyard.web.errors import error_response
from dockyard.web.request_filter import check_request, find_passed, path_to_route
from dockyard.web.request_record import MAX_LOGGED_BODY_BYTES, SCOPE_KEY, RequestRecord, find_peer
from dockyard.web.response_sender import ResponseSender

MAX_BODY_WAIT_S = 1.0


class OuterApp:
    """The outer ASGI application of one worker. `paths` are those that have an endpoint.

    `level` is the log level of request lines; None: no lines. Requests for paths in `ignore_paths` are not logged.
    `log_requests` and `log_responses` add the beginning of bodies to the lines, but for `form_path`, which accepts
    POST and whose bodies are secret. `find_client` returns the address of the client in them. A request that has passed
    `server_name` is refused.
    """

    def __init__(
        self,
        app: App,
        paths: Sequence[str],
        connections: Connections,
        level: Level | None,
        ignore_paths: Collection[str],
        *,
        log_requests: bool,
        log_responses: bool,
        find_client: Callable[[Scope], str] = find_peer,
        form_path: str | None = None,
        server_name: str = "",
    ) -> None:
        self.paths = paths
        self._app = app
        self._connections = connections
        self._level = level
        self._ignore_paths = frozenset(ignore_paths)
        self._log_requests = log_requests
        self._log_responses = log_responses
        self._find_client = find_client
        self._form_path = form_path
        self._server_name = server_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or the lifespan events."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["http_version"] == "1":
            scope["http_version"] = "1.0"  # Granian writes "1", Falcon accepts "1.0" only
        scope[SCOPE_KEY] = record = RequestRecord(scope, self._find_client)
        is_secret = scope["path"] == self._form_path
        sender = ResponseSender(
            scope, receive, send, record, self._connections, keeps_body=self._log_responses and not is_secret
        )
        if has_request_body(scope):
            self._connections.remember_body(scope)
            if self._log_requests and not is_secret:
                record.request_body = await _read_beginning_of_body(receive)
        try:
            check_request(scope, self._form_path)
            record.passed = find_passed(scope, self._server_name)
            scope["path"] = path_to_route(scope)
        except RegistryError as exc:
            record.error = exc
            await _reject(sender, exc)
        else:
            await sender.run(self._app)
        record.count()
        if self._level and scope["path"] not in self._ignore_paths:
            write_request(self._level, record.log_fields())
        # Objects of Granian refer to the scope, and the traceback of an error to them. The garbage collector does not
        # see through those objects: without this, each error would stay in memory.
        del scope[SCOPE_KEY]


async def _read_beginning_of_body(receive: Receive) -> bytes:
    """Return the first bytes of a request's body, for the log; none if they take longer than MAX_BODY_WAIT_S."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MAX_BODY_WAIT_S):
            event = await receive()
            return bytes(event.get("body", b"")[:MAX_LOGGED_BODY_BYTES])
    return b""


async def _reject(sender: ResponseSender, error: RegistryError) -> None:
    status, headers, body = error_response(error)
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    raw.append((b"connection", b"close"))
    await sender.send({"type": "http.response.start", "status": status, "headers": raw})
    await sender.send({"type": "http.response.body", "body": body})

"""The Falcon application: its endpoints and error handlers, and the outer ASGI application around it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import attrs
import falcon
import falcon.asgi
import structlog
from falcon.routing import CompiledRouter

from dockyard.cache.blobs import Blobs
from dockyard.cache.lists import Lists
from dockyard.cache.manifests import Manifests
from dockyard.cache.tags import Tags
from dockyard.cache.threads import Threads
from dockyard.config.settings import TOKEN_PATH, Settings
from dockyard.errors import LoginRequired, RegistryError, Unsupported
from dockyard.web.bodies import ActiveBodies
from dockyard.web.challenges import make_find_token_url
from dockyard.web.clients import make_find_address, make_find_client
from dockyard.web.connections import Connections
from dockyard.web.errors import error_body, error_response, with_names, without_cause
from dockyard.web.gate import Gate
from dockyard.web.gauges import Gauges
from dockyard.web.handlers import ApiVersionEndpoint, BlobEndpoint, ManifestEndpoint, VersionEndpoint
from dockyard.web.headers import failure_headers
from dockyard.web.health import LivenessEndpoint, MetricsEndpoint, ReadinessEndpoint
from dockyard.web.lists import ReferrersEndpoint, TagsEndpoint
from dockyard.web.outer_app import OuterApp
from dockyard.web.page import PageEndpoint
from dockyard.web.paths import PathRouter
from dockyard.web.request_record import INTERNAL_ERROR, SCOPE_KEY, RequestRecord
from dockyard.web.zero_copy import ZeroCopy

if TYPE_CHECKING:
    from dockyard.web.access_gate import AccessControl

log = structlog.get_logger()


@attrs.frozen
class Services:
    """What the endpoints of one worker use. `start` and `stop` are called when the worker starts and stops.

    `access` is None if no access is restricted, no login is verified and no decision is logged.
    """

    manifests: Manifests
    tags: Tags
    blobs: Blobs
    lists: Lists
    threads: Threads
    gauges: Gauges
    access: "AccessControl | None"
    is_ready: Callable[[], bool]
    start: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]


class LifespanMiddleware:
    """Falcon middleware that starts and stops the worker (ASGI lifespan protocol)."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Start the worker. After an exception, Granian stops the server."""
        await self._services.start()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Stop the worker."""
        await self._services.stop()


def create_app(settings: Settings, services: Services, server_name: str = "") -> OuterApp:
    """Build the ASGI application of one worker of the server with this name."""
    connections = Connections()
    active_bodies = ActiveBodies()
    zero_copy = ZeroCopy(connections, services.threads, is_enabled=settings.server.zero_copy)
    find_address = make_find_address(settings.server)
    gate, form_path, tokens = Gate(settings), None, {}
    if services.access:
        from dockyard.web.access_gate import AccessGate  # noqa: PLC0415  with PyJWT and cryptography
        from dockyard.web.tokens import AccessTokenEndpoint  # noqa: PLC0415

        find_token_url = make_find_token_url(settings.server, settings.access)
        gate = access_gate = AccessGate(settings, services.access, find_address, find_token_url)
        if services.access.tokens:
            form_path, tokens = TOKEN_PATH, {TOKEN_PATH: AccessTokenEndpoint(access_gate, services.access.tokens)}
    paths = PathRouter(
        ApiVersionEndpoint(gate),
        {
            "manifests": ManifestEndpoint(gate, services.tags, services.manifests, active_bodies),
            "blobs": BlobEndpoint(gate, services.blobs, active_bodies, zero_copy),
            "tags": TagsEndpoint(gate, services.lists),
            "referrers": ReferrersEndpoint(gate, services.lists),
        },
        {
            "/": PageEndpoint(gate),
            "/version": VersionEndpoint(gate),
            "/metrics": MetricsEndpoint(gate, services.gauges, services.threads),
            "/healthz": LivenessEndpoint(gate),
            "/readyz": ReadinessEndpoint(gate, services.is_ready),
            **tokens,
        },
    )
    app = falcon.asgi.App(router=cast(CompiledRouter, paths))
    app.add_middleware(LifespanMiddleware(services))
    app.resp_options.default_media_type = "application/json"
    errors = ErrorHandlers(gate)
    app.add_error_handler(RegistryError, errors.handle_registry_error)
    app.add_error_handler(Exception, errors.handle_internal_error)
    app.set_error_serializer(errors.serialize_falcon_error)
    request_log = settings.server.log
    return OuterApp(
        app,
        paths.templates,
        connections,
        request_log.level if request_log.enabled else None,
        request_log.ignore_paths,
        log_requests=request_log.request_body,
        log_responses=request_log.response_body,
        find_client=make_find_client(settings.server, find_address),
        form_path=form_path,
        server_name=server_name,
    )


class ErrorHandlers:
    """Make the responses of errors. Where access is restricted, clients do not learn whether something exists."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def handle_registry_error(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, error: RegistryError, _params: dict[str, Any]
    ) -> None:
        """Render an error that is ours. The log gets all of it."""
        record: RequestRecord = req.scope[SCOPE_KEY]
        record.error = error
        shown = with_names(without_cause(error), record.replaced) if self._gate.restricts else error
        challenge = self._gate.find_challenge(req, record) if isinstance(shown, LoginRequired) else ""
        status, headers, resp.data = error_response(shown, challenge)
        resp.status = falcon.code_to_http_status(status)
        headers.pop("content-length")
        for of_content in ("docker-content-digest", "etag", "accept-ranges", "cache-status"):  # set before the error
            resp.delete_header(of_content)
        resp.set_headers(headers | failure_headers(error))

    async def handle_internal_error(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any]
    ) -> None:
        """Log an error that should not happen. Clients get no details."""
        if isinstance(error, falcon.HTTPError):
            raise error
        log.error("internal error while handling a request", path=req.path, exc_info=error)
        await self.handle_registry_error(req, resp, RegistryError(INTERNAL_ERROR), params)

    def serialize_falcon_error(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, _error: falcon.HTTPError
    ) -> None:
        """Render an error that Falcon raises itself: the path has no endpoint."""
        record: RequestRecord = req.scope[SCOPE_KEY]
        record.error = Unsupported("there is no such endpoint in a read-only registry cache")
        resp.data = error_body(Unsupported.code, record.error.message)
        resp.content_type = "application/json"
        resp.set_header("cache-control", "no-store")

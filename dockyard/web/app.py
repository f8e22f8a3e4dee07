"""The ASGI application: the endpoints, and how errors are rendered."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

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
from dockyard.config.settings import Settings
from dockyard.errors import RegistryError
from dockyard.routing import Router
from dockyard.web.bodies import Load
from dockyard.web.errors import error_body, error_response
from dockyard.web.handlers import Base, BlobEndpoint, ManifestEndpoint, Version
from dockyard.web.health import Health, Metrics, Readiness, State
from dockyard.web.lists import ReferrersEndpoint, TagsEndpoint
from dockyard.web.paths import PathRouter
from dockyard.web.request_filter import Edge

log = structlog.get_logger()


@attrs.frozen
class Services:
    """What the endpoints of one worker serve with. `start` and `stop` are called when the worker begins and ends."""

    manifests: Manifests
    tags: Tags
    blobs: Blobs
    lists: Lists
    threads: Threads
    gauges: State
    is_ready: Callable[[], bool]
    start: Callable[[], Awaitable[None]]
    stop: Callable[[], Awaitable[None]]


class Lifespan:
    """Falcon's hooks for the start and the end of the worker."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Start the worker; an exception keeps the server from starting."""
        await self._services.start()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Stop the worker."""
        await self._services.stop()


def create_app(settings: Settings, services: Services) -> Edge:
    """The ASGI application of one worker."""
    load = Load()
    routes = Router(settings.upstreams)
    paths = PathRouter(
        Base(),
        {
            "manifests": ManifestEndpoint(routes, services.tags, services.manifests, load),
            "blobs": BlobEndpoint(routes, services.blobs, load),
            "tags": TagsEndpoint(routes, services.lists),
            "referrers": ReferrersEndpoint(routes, services.lists),
        },
        {
            "/version": Version(),
            "/metrics": Metrics(services.gauges, services.threads),
            "/healthz": Health(),
            "/readyz": Readiness(services.is_ready),
        },
    )
    app = falcon.asgi.App(router=cast(CompiledRouter, paths))
    app.add_middleware(Lifespan(services))
    app.resp_options.default_media_type = "application/json"
    app.add_error_handler(RegistryError, _answer_error)
    app.add_error_handler(Exception, _answer_fault)
    app.set_error_serializer(_serialize)
    logs = settings.server.log
    return Edge(
        app,
        services.threads,
        logs.level if logs.enabled else None,
        logs.ignore_paths,
        log_requests=logs.request_body,
        log_responses=logs.response_body,
    )


async def _answer_error(
    _req: falcon.asgi.Request, resp: falcon.asgi.Response, error: RegistryError, _params: dict[str, Any]
) -> None:
    status, headers, resp.data = error_response(error)
    resp.status = falcon.code_to_http_status(status)
    headers.pop("content-length")
    for stale in ("docker-content-digest", "etag", "accept-ranges", "cache-status"):
        resp.delete_header(stale)
    resp.set_headers(headers)


async def _answer_fault(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any]
) -> None:
    if isinstance(error, falcon.HTTPError):
        raise error
    log.error("a request ended in a fault of our own", path=req.path, exc_info=error)
    await _answer_error(req, resp, RegistryError("internal error, see the log"), params)


def _serialize(_req: falcon.asgi.Request, resp: falcon.asgi.Response, exception: falcon.HTTPError) -> None:
    """What Falcon itself refuses: a path that is no endpoint."""
    resp.data = error_body("UNSUPPORTED", "there is no such endpoint in a read-only registry cache")
    resp.content_type = "application/json"
    resp.set_header("cache-control", "no-store")

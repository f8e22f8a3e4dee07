"""create_app(settings): the endpoints over a worker, and its life span."""

from collections.abc import Mapping
from typing import Any, cast

import falcon
import falcon.asgi
import structlog
from falcon.routing import CompiledRouter

from dockyard.config import Settings
from dockyard.errors import RegistryError
from dockyard.routing import Router
from dockyard.web.asgi import Edge
from dockyard.web.body import Load
from dockyard.web.errors import error_body, error_response
from dockyard.web.handlers import Base, BlobEndpoint, ManifestEndpoint, Version
from dockyard.web.listings import ReferrersEndpoint, TagsEndpoint
from dockyard.web.operations import Health, Metrics, Readiness
from dockyard.web.paths import PathRouter
from dockyard.web.worker import Worker

log = structlog.get_logger()


class LifeSpan:
    """Falcon's hooks for the worker's start and end."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Start the worker; an exception keeps the server from starting."""
        await self._worker.start()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Stop the worker."""
        await self._worker.stop()


def create_app(settings: Settings, shards: int, suspect_before: float, environ: Mapping[str, str]) -> Edge:
    """The ASGI application of one worker.

    `shards` is the number of workers. Blobs on disk that are older than `suspect_before` (seconds since the epoch) are
    verified before their first use. Raises OSError when the storage directory cannot be used.
    """
    worker = Worker(settings, shards, suspect_before, environ)
    load = Load()
    routes = Router(settings.upstreams)
    paths = PathRouter(
        Base(),
        {
            "manifests": ManifestEndpoint(routes, worker.tags, worker.manifests, load),
            "blobs": BlobEndpoint(routes, worker.blobs, load),
            "tags": TagsEndpoint(routes, worker.listings),
            "referrers": ReferrersEndpoint(routes, worker.listings),
        },
        {
            "/version": Version(),
            "/metrics": Metrics(worker.state, worker.threads),
            "/healthz": Health(),
            "/readyz": Readiness(worker.is_ready),
        },
    )
    app = falcon.asgi.App(router=cast(CompiledRouter, paths))
    app.add_middleware(LifeSpan(worker))
    app.resp_options.default_media_type = "application/json"
    app.add_error_handler(RegistryError, _answer_error)
    app.add_error_handler(Exception, _answer_fault)
    app.set_error_serializer(_serialize)
    logs = settings.server.log
    return Edge(
        app,
        worker.threads,
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

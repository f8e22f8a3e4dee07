"""create_app(settings): every object of a worker, built by hand and handed to whoever needs it; its life span.

Built in the worker, never in the supervisor: workers are forked, and no thread, socket or client survives that.
"""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import falcon
import falcon.asgi
import structlog
from falcon.routing import CompiledRouter

from dockyard.cache.blobs import Blobs
from dockyard.cache.bridge import Threads
from dockyard.cache.flights import Flights
from dockyard.cache.manifests import Manifests
from dockyard.config import Settings
from dockyard.errors import RegistryError
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.routing import Router, Target
from dockyard.storage.local import RUN, LocalTier
from dockyard.upstream.breaker import Breaker
from dockyard.upstream.keychain import Keychain
from dockyard.upstream.registry import Registry
from dockyard.web.asgi import Edge
from dockyard.web.body import Load
from dockyard.web.errors import error_body, error_response
from dockyard.web.handlers import Base, BlobEndpoint, ManifestEndpoint, Version
from dockyard.web.paths import PathRouter
from dockyard.workers.peers import Peers, Question, Reply
from dockyard.workers.slots import Lock, claim_shard

CLAIM_EVERY_S = 0.2
PARENT_CHECK_EVERY_S = 1.0

log = structlog.get_logger()


class Worker:
    """One worker process: its shard, its peers, and what it serves with them."""

    def __init__(self, settings: Settings, shards: int, suspect_before: float, environ: Mapping[str, str]) -> None:
        storage, limits = settings.storage, settings.upstream
        self.settings = settings
        self.shards = shards
        self.run = Path(storage.directory) / RUN
        self.tier = LocalTier(Path(storage.directory), storage.prefix, storage.max_size, suspect_before)
        self.tier.prepare()
        self.threads = Threads()
        self.peers = Peers(self.run)
        keychain = Keychain(environ)
        self.registries = {
            upstream.prefix: Registry(upstream, limits, keychain, Breaker(self.run, upstream.prefix))
            for upstream in settings.upstreams
        }
        self.flights = Flights(self.tier, self.peers, shards, self.registries, self.threads)
        self.blobs = Blobs(self.tier, self.flights, self.registries, self.threads)
        self.manifests = Manifests(self.tier, self.peers, shards, self.registries, self.threads, limits.check_interval)
        self._upstreams = {upstream.prefix: upstream for upstream in settings.upstreams}
        self._parent = os.getppid()
        self._lock: Lock | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Claim a shard and answer for it. Waits in the background when all are taken."""
        if not await self._claim():
            self._tasks.append(asyncio.create_task(self._claim_later()))
        self._tasks.append(asyncio.create_task(self._watch_parent()))
        await self.threads.disk(self.tier.sweep)

    async def stop(self) -> None:
        """Let go of everything. The clients have left already."""
        for task in self._tasks:
            task.cancel()
        self.flights.stop()
        self.peers.close()
        for registry in self.registries.values():
            registry.close()
        self.threads.close()

    async def _claim(self) -> bool:
        claimed = await self.threads.disk(claim_shard, self.run, self.shards)
        if claimed is None:
            return False
        shard, self._lock = claimed
        await self.peers.listen(shard, self._answer)
        self.flights.shard = self.manifests.shard = shard
        return True

    async def _claim_later(self) -> None:
        while not await self._claim():  # noqa: ASYNC110  no event tells of a freed lock
            await asyncio.sleep(CLAIM_EVERY_S)

    async def _watch_parent(self) -> None:
        """A worker without its supervisor would never be stopped: drain and end."""
        while os.getppid() == self._parent:  # noqa: ASYNC110  no event tells of a dead parent
            await asyncio.sleep(PARENT_CHECK_EVERY_S)
        log.error("the supervisor is gone, this worker ends")
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(self.settings.server.drain_timeout)
        os._exit(1)

    async def _answer(self, question: Question, reply: Reply) -> None:
        """A peer's question. Raises ValueError when it makes no sense."""
        upstream = self._upstreams.get(question.upstream)
        if upstream is None:
            raise ValueError("no such upstream")
        try:
            target = Target(upstream, question.repository, Name.parse(question.name))
            match question.kind:
                case "blob":
                    await self.flights.answer(target, Digest.parse(question.reference), question, reply)
                case "tag":
                    await self.manifests.answer_tag(target, Tag.parse(question.reference), reply)
                case "manifest":
                    await self.manifests.answer_manifest(target, Digest.parse(question.reference), reply)
        except RegistryError as exc:
            raise ValueError(exc.message) from exc


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
        base=Base(),
        version=Version(),
        manifests=ManifestEndpoint(routes, worker.manifests, load),
        blobs=BlobEndpoint(routes, worker.blobs, load),
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

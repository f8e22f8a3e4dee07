"""One worker process: builds its objects and connects them, then claims a shard and serves.

Built in the worker, never in the supervisor: threads, sockets and clients do not survive a fork.
"""

import asyncio
import contextlib
import importlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from dockyard.access.audit import AuditLog
from dockyard.access.rules import Rules
from dockyard.cache.admissions import Admissions
from dockyard.cache.blobs import REDIRECT_VALID_S, RESTRICTED_REDIRECT_VALID_S, Blobs
from dockyard.cache.downloads import Downloads
from dockyard.cache.links import Links
from dockyard.cache.lists import Lists
from dockyard.cache.manifests import Manifests
from dockyard.cache.stores import Stores
from dockyard.cache.tags import Tags
from dockyard.cache.threads import Threads
from dockyard.config.settings import Settings, StorageSettings, Upstream
from dockyard.errors import Unavailable
from dockyard.oci.login import Login
from dockyard.routing import Target
from dockyard.s3.bucket import Bucket
from dockyard.s3.errors import S3Error
from dockyard.s3.outbox import Outbox
from dockyard.s3.publisher import Publisher
from dockyard.storage.disk_errors import describe_disk_error
from dockyard.storage.items import Item
from dockyard.storage.local import LocalStore
from dockyard.storage.maintenance import Maintenance
from dockyard.storage.scrub import Scrub
from dockyard.storage.verified_files import VerifiedFiles
from dockyard.upstream.circuit_breaker import CircuitBreaker
from dockyard.upstream.client import RegistryClient
from dockyard.upstream.keychain import Keychain
from dockyard.web import app as web_app
from dockyard.web.concealment import Concealment
from dockyard.web.gauges import Gauges
from dockyard.web.outer_app import OuterApp
from dockyard.workers.messages import (
    AdmissionRequest,
    BlobRequest,
    MalformedMessage,
    ManifestRequest,
    PeerRequest,
    PiecesRequest,
    ReferrersRequest,
    SizeRequest,
    TagListRequest,
    TagRequest,
)
from dockyard.workers.peers import PeerConnection, Peers
from dockyard.workers.shard_lock import Lock, claim_shard, lock_path
from dockyard.workers.watchdog import WatchedProcess

if TYPE_CHECKING:
    from dockyard.access.access_tokens import AccessTokens
    from dockyard.access.shared import SharedAccess
    from dockyard.s3.store import S3Store
    from dockyard.web.access_gate import AccessControl

CLAIM_INTERVAL_S = 0.2
DIRECTORY_CHECK_INTERVAL_S = 1.0
PARENT_CHECK_INTERVAL_S = 1.0
STALE_UPLOAD_AGE_S = 3600.0
UNPUBLISHED = "unpublished"
DRAINING = "draining"
UNBLOCK_SIGNALS_AFTER_S = 0.3
STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

log = structlog.get_logger()


def import_optional_modules(settings: Settings) -> None:
    """Import the modules that only some settings need: before the fork, so that workers share their memory."""
    if settings.storage.bucket:
        importlib.import_module("dockyard.s3.store")
    if settings.uses_access:
        importlib.import_module("dockyard.access.authenticator")
        importlib.import_module("dockyard.web.access_gate")
        importlib.import_module("dockyard.web.tokens")


def create_app(
    settings: Settings,
    shards: int,
    run: Path,
    verified_files: VerifiedFiles,
    access: "SharedAccess | None",
    tokens: "AccessTokens | None",
    concealment: Concealment,
    server_name: str,
    watched: WatchedProcess,
    environ: Mapping[str, str],
) -> OuterApp:
    """Build the ASGI application of one worker process.

    `shards` is the number of workers, which share the directory `run`, `verified_files`, `concealment`, `access` if an
    upstream decides about access, `tokens` if clients get access tokens, and `server_name`, by which this server knows
    a request that it has sent itself. `watched` connects the worker with the watchdog in the supervisor. Raises OSError
    when the run directory cannot be used.
    """
    worker = Worker(settings, shards, run, verified_files, access, tokens, concealment, server_name, watched, environ)
    services = web_app.Services(
        manifests=worker.manifests,
        tags=worker.tags,
        blobs=worker.blobs,
        lists=worker.lists,
        threads=worker.threads,
        gauges=worker.gauges,
        access=worker.access,
        is_ready=worker.is_ready,
        start=worker.start,
        stop=worker.stop,
    )
    return web_app.create_app(settings, services, server_name)


class NoAdmissions:
    """Admits nobody: no upstream decides about access."""

    async def require(self, target: Target, *_: object) -> None:
        """Raises Unavailable."""
        raise Unavailable(f"{target.upstream.prefix} cannot be asked whom it admits")

    async def check_login(self, upstream: Upstream, *_: object) -> bool:
        """Raises Unavailable."""
        raise Unavailable(f"{upstream.prefix} cannot be asked whom it admits")

    def is_known(self, upstream: Upstream, login: Login) -> bool:
        """No login is known."""
        return False


class Worker:
    """The objects of one worker process, and its start and stop."""

    def __init__(
        self,
        settings: Settings,
        shards: int,
        run: Path,
        verified_files: VerifiedFiles,
        access: "SharedAccess | None",
        tokens: "AccessTokens | None",
        concealment: Concealment,
        server_name: str,
        watched: WatchedProcess,
        environ: Mapping[str, str],
    ) -> None:
        storage, limits = settings.storage, settings.upstream
        directory = Path(storage.directory)
        self.settings = settings
        self.shards = shards
        self.run = run
        self.threads = Threads()
        self._access = access
        self.peers = Peers(self.run, shards, access.seal.seal if access else None)

        # Stores
        outbox = Outbox(directory / UNPUBLISHED)
        self.local_store = LocalStore(
            directory, storage.prefix, storage.max_size, storage.verify, verified_files, outbox
        )
        self._directory_error = ""
        self._create_directories()
        self.maintenance = Maintenance(self.local_store)
        self.s3 = _make_store(storage, environ) if storage.bucket else None
        self.bucket = Bucket(self.s3)
        self.publisher = Publisher(
            *(self.local_store, self.s3, outbox, storage.touch_threshold, self._owns),
            writes_links=settings.restricts_access,
        )
        stores = Stores(self.local_store, self.bucket, self.publisher)

        scrub_rate = storage.scrub_rate if storage.verify != "never" else 0
        self.scrub = Scrub(self.local_store.blobs, scrub_rate, lambda: self.peers.shard == 0)

        # Upstreams
        keychain = Keychain(environ)
        self.registries = {
            upstream.prefix: RegistryClient(
                upstream, limits, keychain, CircuitBreaker(self.run, upstream.prefix), server_name
            )
            for upstream in settings.upstreams
        }

        # Caches
        with_upstreams = (self.peers, self.registries, self.threads)
        self.downloads = Downloads(stores, *with_upstreams, connections=limits.connections)
        self.blobs = Blobs(
            stores,
            self.downloads,
            *with_upstreams,
            redirects=storage.redirect,
            redirect_valid_s=RESTRICTED_REDIRECT_VALID_S if settings.restricts_access else REDIRECT_VALID_S,
        )
        self.links = Links(stores, self.blobs, self.threads, access.confirmed if access else None)
        self.manifests = Manifests(stores, *with_upstreams, self.links if settings.restricts_access else None)
        self.tags = Tags(
            self.manifests,
            stores,
            *with_upstreams,
            check_interval_s=limits.check_interval,
            check_timeout_s=limits.check_timeout,
            uncached_timeout_s=limits.response_timeout_s,
        )
        self.lists = Lists(self.local_store, *with_upstreams, limits.check_interval, limits.check_timeout)

        # Access
        self.admissions = (
            Admissions(*with_upstreams, access.verdicts, limits.check_timeout, limits.response_timeout_s)
            if access
            else None
        )
        self.audit = AuditLog(settings.access) if settings.access.audit else None
        self.access = self._make_access(settings, tokens, concealment) if settings.uses_access else None

        self.gauges = Gauges(
            self.local_store.size_cap.measure, directory / UNPUBLISHED, self._open_breakers, storage.max_size
        )
        self._upstreams = {upstream.prefix: upstream for upstream in settings.upstreams}
        self._watched = watched
        self._parent = os.getppid()
        self._lock: Lock | None = None
        self._shard_error = ""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Claim a shard and listen for peers (later, if all shards are locked). Start the background tasks."""
        await self._claim_if_needed()
        self._tasks.append(asyncio.create_task(self._keep_shard()))
        self._tasks.append(asyncio.create_task(self._watch_parent()))
        self.maintenance.start()
        self.publisher.start()
        self.scrub.start()
        if self.s3 and self.peers.shard == 0:
            self._tasks.append(asyncio.create_task(self._check_bucket(self.s3)))
        # Granian ignores signals until it serves, shortly after this; they stay blocked until then.
        asyncio.get_running_loop().call_later(UNBLOCK_SIGNALS_AFTER_S, self._report_start)

    async def stop(self) -> None:
        """Stop all tasks and threads, and close all connections. No request is running any more."""
        for task in self._tasks:
            task.cancel()
        self.downloads.stop()
        self.maintenance.stop()
        self.local_store.links.close()
        self.publisher.stop()
        self.scrub.stop()
        self.bucket.close()
        self.peers.close()
        for registry in self.registries.values():
            registry.close()
        self.threads.close()
        if self.audit:
            self.audit.close()

    def is_ready(self) -> bool:
        """Whether this worker should get requests: not while the file `draining` is in the run directory."""
        return not (self.run / DRAINING).exists()

    def _make_access(
        self, settings: Settings, tokens: "AccessTokens | None", concealment: Concealment
    ) -> "AccessControl":
        from dockyard.access.authenticator import Authenticator  # noqa: PLC0415  with PyJWT and cryptography
        from dockyard.web.access_gate import AccessControl  # noqa: PLC0415

        return AccessControl(
            authenticator=Authenticator(settings.access),
            rules=Rules(settings.access, settings.upstreams),
            links=self.links,
            admissions=self.admissions or NoAdmissions(),
            threads=self.threads,
            concealment=concealment,
            audit=self.audit,
            tokens=tokens,
        )

    def _report_start(self) -> None:
        """Accept stop signals, and reply to the watchdog."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        asyncio.get_running_loop().add_reader(self._watched.fileno(), self._reply_to_watchdog)
        self._watched.report_start()

    def _reply_to_watchdog(self) -> None:
        if not self._watched.reply():
            asyncio.get_running_loop().remove_reader(self._watched.fileno())

    def _open_breakers(self) -> dict[str, bool]:
        return {prefix: registry.is_breaker_open for prefix, registry in self.registries.items()}

    async def _keep_shard(self) -> None:
        """Claim a shard as soon as one is free, and again when somebody has deleted the files of this one."""
        while True:
            await asyncio.sleep(CLAIM_INTERVAL_S if self._lock is None else DIRECTORY_CHECK_INTERVAL_S)
            await self._claim_if_needed()

    async def _claim_if_needed(self) -> None:
        """Claim a shard if this worker has none, or if its lock or socket was deleted. Raises no OSError."""
        try:
            if await self.threads.disk(self._has_shard):
                return
            if self.peers.shard is not None:
                log.warning("files in the run directory were deleted, creating them again", directory=str(self.run))
            claimed = await self.threads.disk(self._claim)
            if claimed:
                shard, self._lock = claimed
                await self.peers.listen(shard, self._handle)
            else:
                self.peers.stop_listening()
                self._lock = None
            self._shard_error = ""
        except OSError as exc:
            if self._shard_error != str(exc):
                log.warning("cannot claim a shard: blobs may be fetched once for each worker", error=str(exc))
            self._shard_error = str(exc)

    def _create_directories(self) -> None:
        """Create the directories of the local store that are missing. If that fails, what is cached is served."""
        error = ""
        try:
            self.local_store.create_directories()
        except OSError as exc:
            error = describe_disk_error(exc, self.local_store.directories.root)
            if error != self._directory_error:
                log.warning("cannot create the storage directories: new content is not kept", error=error)
        self._directory_error = error

    def _has_shard(self) -> bool:
        """Whether the lock and the socket of this worker are in place. Creates directories that were deleted."""
        self._create_directories()
        shard = self.peers.shard
        has_lock = shard is not None and self._lock is not None and self._lock.is_at(lock_path(self.run, shard))
        return has_lock and self.peers.is_reachable

    def _claim(self) -> tuple[int, Lock] | None:
        """Claim the former shard of this worker, or another. Raises OSError."""
        if self._lock:
            self._lock.release()
            self._lock = None
        claimed = claim_shard(self.run, self.shards, self.peers.shard)
        self.peers.open_directory()
        return claimed

    def _owns(self, item: Item) -> bool:
        return self.peers.shard is not None and self.peers.is_owner(str(item))

    async def _check_bucket(self, s3: "S3Store") -> None:
        """Log what is wrong with the bucket, and abort uploads that a former process left."""
        problems = await self.threads.bucket(s3.check)
        for problem in problems:
            log.error("bucket check failed: serving continues, fix the bucket or its settings", reason=problem)
        if not problems and (reason := await self.threads.bucket(s3.find_old_versions)):
            log.warning("the bucket keeps old versions of objects: touches make it grow", reason=reason)
        with contextlib.suppress(S3Error):
            await self.threads.bucket(s3.abort_stale_uploads, STALE_UPLOAD_AGE_S)

    async def _watch_parent(self) -> None:
        """Stop this worker when the supervisor has died, since no other process would."""
        while os.getppid() == self._parent:  # noqa: ASYNC110  a dead parent sends no event
            await asyncio.sleep(PARENT_CHECK_INTERVAL_S)
        log.error("the supervisor has exited: stopping this worker")
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(self.settings.server.drain_timeout)
        os._exit(1)

    async def _handle(self, request: PeerRequest, connection: PeerConnection) -> None:
        """Handle the request of another worker.

        Raises MalformedMessage for an upstream that is not configured, or a login that was sealed elsewhere.
        """
        repository = request.repository
        upstream = self._upstreams.get(repository.upstream)
        if upstream is None:
            raise MalformedMessage(f"upstream {repository.upstream} is not configured")
        login = self._unseal(repository.login)
        target = Target(upstream, repository.path, repository.name, login, repository.passed)
        match request:
            case BlobRequest():
                await self.downloads.handle(target, request, connection)
            case TagRequest():
                await self.tags.handle(target, request, connection)
            case PiecesRequest():
                await self.downloads.handle_pieces(request, connection)
            case SizeRequest():
                await self.blobs.handle(target, request, connection)
            case ManifestRequest():
                await self.manifests.handle(target, request, connection)
            case TagListRequest() | ReferrersRequest():
                await self.lists.handle(target, request, connection)
            case AdmissionRequest():
                if self.admissions is None:
                    raise MalformedMessage("no upstream decides about access")
                await self.admissions.handle(target, request, connection)

    def _unseal(self, sealed: str) -> Login | None:
        """The login in a message. Raises MalformedMessage."""
        if not sealed:
            return None
        try:
            return self._access.seal.unseal(sealed) if self._access else None
        except ValueError as exc:
            raise MalformedMessage("a login that this server has not sealed") from exc


def _make_store(storage: StorageSettings, environ: Mapping[str, str]) -> "S3Store":
    from dockyard.s3.store import S3Store  # noqa: PLC0415  with minio-py

    return S3Store(storage, environ)

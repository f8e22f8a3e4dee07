"""The supervisor: starts Granian with its workers, restarts dead workers and kills frozen ones.

A subclass of Granian's multi-process server that changes one thing: a worker that dies twice in a row is restarted,
where Granian would stop the server. It uses private names of Granian, whose version is therefore pinned.
"""

import contextlib
import errno
import functools
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
from granian.constants import HTTPModes, Interfaces, Loops, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.mp import MPServer

from dockyard import __version__, log, metrics
from dockyard.config.settings import Settings
from dockyard.s3 import make_base_url
from dockyard.storage.verified_files import VerifiedFiles
from dockyard.worker import (  # before the fork: workers start at once, and share the code's memory
    DRAINING,
    STOP_SIGNALS,
    create_app,
)
from dockyard.workers.shard_lock import AlreadyRunning, Lock
from dockyard.workers.watchdog import CHECK_INTERVAL_S, Watchdog

MAX_EARLY_DEATHS_PER_WORKER = 5
MIN_LIFETIME_S = 2.0
MAX_CONNECTIONS = 4096  # per worker; more wait in the backlog of the socket
WANTED_DESCRIPTORS = 65536
RESERVED_DESCRIPTORS = 264  # for logs, metrics, peers, open blobs, and idle connections to upstreams
DESCRIPTORS_PER_CONNECTION = 4  # a client of a download: its socket, the partial file twice, the upstream's socket
RUN = "run"
GRANIAN_LOGS = {"loggers": {"_granian": {"handlers": [], "propagate": True}}, "handlers": {}, "formatters": {}}

logger = structlog.get_logger()


class CannotStart(Exception):
    """The server cannot start. The message says why and is meant for the operator."""


def run(settings: Settings) -> int:
    """Run the server until it is stopped. Returns the exit status."""
    log.set_up(settings.logger)
    try:
        return _serve(settings)
    except CannotStart as exc:
        logger.error("cannot start", reason=str(exc))  # noqa: TRY400  the reason is for the operator, not a traceback
        return 1


def _serve(settings: Settings) -> int:
    if settings.storage.bucket:
        try:
            make_base_url(settings.storage)
        except ValueError as exc:
            raise CannotStart(str(exc)) from exc
    run_directory = _create_run_directory(Path(settings.storage.directory))
    host = settings.server.host or ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")  # noqa: S104  as documented
    workers = settings.server.workers or len(os.sched_getaffinity(0))
    try:
        lock = Lock(run_directory / "server.lock")
    except AlreadyRunning as exc:
        raise CannotStart(
            f"another Dockyard (process {exc.pid}) uses {settings.storage.directory}: stop it, or set storage.directory"
        ) from exc
    try:
        (run_directory / DRAINING).unlink(missing_ok=True)
        _check_port(host, settings.server.port)
        _log_warnings(settings)
        server = Supervisor(settings, host, workers, run_directory)
        log.set_up(settings.logger)  # building Granian's server replaced it
        logger.info(
            "Dockyard is starting",
            version=__version__,
            listen=f"[{host}]:{settings.server.port}" if ":" in host else f"{host}:{settings.server.port}",
            workers=workers,
            storage=str(settings.storage.directory),
            upstreams=[upstream.prefix for upstream in settings.upstreams],
        )
        load_app = functools.partial(_load_app, settings, workers, VerifiedFiles())
        try:
            server.serve(target_loader=load_app, wrap_loader=False)
        except SystemExit as exc:
            return int(exc.code or 0)
        logger.info("Dockyard has stopped")
        return 0
    finally:
        lock.release()


def _load_app(settings: Settings, workers: int, verified_files: VerifiedFiles) -> Any:
    """Build the application. Runs in the worker process."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log.set_up(settings.logger)
    return create_app(settings, workers, verified_files, os.environ)


class Supervisor(MPServer):
    """Granian's multi-process server with Dockyard's settings and a watchdog for its workers."""

    def __init__(self, settings: Settings, host: str, workers: int, run_directory: Path) -> None:
        tls = settings.server.tls
        super().__init__(
            "dockyard.worker:create_app",
            address=host,
            port=settings.server.port,
            interface=Interfaces.ASGI,
            workers=workers,
            loop=Loops.uvloop,
            http=HTTPModes.http1,
            websockets=False,
            backlog=2048,
            backpressure=_raise_connection_limit(),
            runtime_blocking_threads=16,
            http1_settings=HTTP1Settings(header_read_timeout=10_000),
            log_dictconfig=GRANIAN_LOGS,
            respawn_failed_workers=True,
            workers_kill_timeout=max(round(settings.server.drain_timeout), 1),
            process_name="dockyard",
            ssl_cert=Path(settings.server.certfile) if tls else None,
            ssl_key=Path(settings.server.keyfile) if tls else None,
            ssl_protocol_min=SSLProtocols.tls12,
        )
        self._run_directory = run_directory
        self._early_deaths = 0

    def startup(self, spawn_target: Any, target_loader: Any) -> None:
        """Start the workers, then the watchdog."""
        with _stop_signals_blocked():
            super().startup(spawn_target, target_loader)  # type: ignore[no-untyped-call]
        threading.Thread(target=self._run_watchdog, name="watchdog", daemon=True).start()

    def _serve_loop(self, spawn_target: Any, target_loader: Any) -> None:
        while True:
            self.main_loop_interrupt.wait()
            self.main_loop_interrupt.clear()
            if self.interrupt_signal:
                (self._run_directory / DRAINING).touch()
                return
            if self.reload_signal:
                with _stop_signals_blocked():
                    self._reload(spawn_target, target_loader)  # type: ignore[no-untyped-call]
            dead = list(dict.fromkeys(self.interrupt_children))
            if not dead:
                continue
            if self._is_crash_loop(dead):
                logger.error("workers exit right after they start: stopping the server")
                return
            self.interrupt_children.clear()
            metrics.worker_restarts.inc(len(dead))
            for index in dead:
                metrics.forget_worker(self.wrks[index].inner.pid)
            with _stop_signals_blocked():
                self._respawn_workers(dead, spawn_target, target_loader)

    def _is_crash_loop(self, dead: list[int]) -> bool:
        """Whether workers die right after their start, so that restarting them does not help."""
        now = time.monotonic()
        if any(now - self.wrks[index].birth > MIN_LIFETIME_S for index in dead):
            self._early_deaths = 0
            return False
        self._early_deaths += len(dead)
        return self._early_deaths > MAX_EARLY_DEATHS_PER_WORKER * self.workers

    def _run_watchdog(self) -> None:
        watchdog = Watchdog(self._run_directory, self.workers, self._is_worker)
        while not self.interrupt_signal:
            time.sleep(CHECK_INTERVAL_S)
            watchdog.check()
        watchdog.close()

    def _is_worker(self, pid: int) -> bool:
        return any(worker.inner.pid == pid and worker.inner.is_alive() for worker in list(self.wrks))


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals in workers that are started here; `Worker.start` unblocks them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _create_run_directory(directory: Path) -> Path:
    run_directory = directory / RUN
    try:
        run_directory.mkdir(parents=True, exist_ok=True)
        (run_directory / "writable").touch()
    except OSError as exc:
        raise CannotStart(f"storage.directory: cannot write {directory}: {exc.strerror}") from exc
    return run_directory


def _check_port(host: str, port: int) -> None:
    """Raise CannotStart if the port is in use: with SO_REUSEPORT, two servers would silently share its connections."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            what = (
                "is in use by another program" if exc.errno == errno.EADDRINUSE else f"cannot be used: {exc.strerror}"
            )
            raise CannotStart(f"server.host, server.port: {host}:{port} {what}") from exc


def _raise_connection_limit() -> int:
    """Raise the limit of open files, and return how many connections a worker may have under it.

    A worker without free descriptors could not respond to the watchdog and would be killed.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < WANTED_DESCRIPTORS:
        soft = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))  # workers inherit it
    return max(1, min(MAX_CONNECTIONS, (soft - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION))


def _log_warnings(settings: Settings) -> None:
    """Log settings that are risky or probably not intended."""
    for warning in settings.warnings:
        logger.warning(warning)
    private = [upstream.prefix for upstream in settings.upstreams if not upstream.is_anonymous]
    if private:
        logger.warning(
            "clients are not authenticated: everyone who reaches this server can pull from upstreams with credentials",
            upstreams=private,
        )
    for upstream in settings.upstreams:
        if upstream.insecure_skip_verify:
            logger.warning("the TLS certificate of an upstream is not verified", upstream=upstream.prefix)

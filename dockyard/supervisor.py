"""The supervisor: starts Granian and its workers, starts dead ones again, ends frozen ones.

Built on Granian's multi-process server, of which it changes one thing: a worker that dies twice in a row is started
again rather than taken for a reason to stop the server. That takes private names of Granian: its version is pinned.
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
from dockyard.worker import (  # before the fork: workers start at once, and share the code's memory
    DRAINING,
    STOP_SIGNALS,
    create_app,
)
from dockyard.workers.shard_lock import AlreadyRunning, Lock
from dockyard.workers.watchdog import CHECK_INTERVAL_S, Watchdog

BARREN_STARTS = 5
YOUNG_S = 2.0
CONNECTIONS_AT_MOST = 4096  # of one worker; the others wait in the backlog
DESCRIPTORS_WANTED = 65536
DESCRIPTORS_KEPT = 200  # for logs, counters, peers, and idle connections to upstreams
DESCRIPTORS_EACH = 4  # a client on a cold layer: its socket, the partial file twice, the upstream's socket
RUN = "run"
GRANIAN_LOGS = {"loggers": {"_granian": {"handlers": [], "propagate": True}}, "handlers": {}, "formatters": {}}

logger = structlog.get_logger()


class CannotStart(Exception):
    """A reason, for the operator, why the server does not start."""


def run(settings: Settings) -> int:
    """Serve until told to stop; the exit status."""
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
    run_directory = _prepare(Path(settings.storage.directory))
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
        _refuse_taken_port(host, settings.server.port)
        unverified_before = _find_suspect_time(run_directory)
        _warn(settings)
        server = Supervisor(settings, host, workers, run_directory)
        log.set_up(settings.logger)  # Granian has put its own in place
        logger.info(
            "Dockyard is starting",
            version=__version__,
            listen=f"[{host}]:{settings.server.port}" if ":" in host else f"{host}:{settings.server.port}",
            workers=workers,
            storage=str(settings.storage.directory),
            upstreams=[upstream.prefix for upstream in settings.upstreams],
        )
        try:
            server.serve(
                target_loader=functools.partial(_load, settings, workers, unverified_before), wrap_loader=False
            )
        except SystemExit as exc:
            return int(exc.code or 0)
        (run_directory / "clean").touch()
        logger.info("Dockyard has stopped")
        return 0
    finally:
        lock.release()


def _load(settings: Settings, workers: int, unverified_before: float) -> Any:
    """Build the application; runs in the worker."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log.set_up(settings.logger)
    return create_app(settings, workers, unverified_before, os.environ)


class Supervisor(MPServer):
    """Granian's server with our settings, and a watch on its workers."""

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
            backpressure=_find_room(),
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
        self._young_deaths = 0

    def startup(self, spawn_target: Any, target_loader: Any) -> None:
        """Start the workers, then the watch on them."""
        with _stop_signals_held():
            super().startup(spawn_target, target_loader)  # type: ignore[no-untyped-call]
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _serve_loop(self, spawn_target: Any, target_loader: Any) -> None:
        while True:
            self.main_loop_interrupt.wait()
            self.main_loop_interrupt.clear()
            if self.interrupt_signal:
                (self._run_directory / DRAINING).touch()
                return
            if self.reload_signal:
                with _stop_signals_held():
                    self._reload(spawn_target, target_loader)  # type: ignore[no-untyped-call]
            dead = list(dict.fromkeys(self.interrupt_children))
            if not dead:
                continue
            if self._has_given_up(dead):
                logger.error("workers exit right after they start: stopping the server")
                return
            self.interrupt_children.clear()
            metrics.worker_restarts.inc(len(dead))
            for index in dead:
                metrics.forget_worker(self.wrks[index].inner.pid)
            with _stop_signals_held():
                self._respawn_workers(dead, spawn_target, target_loader)

    def _has_given_up(self, dead: list[int]) -> bool:
        """Whether no worker lives long enough to serve: a fault of the settings or the machine, not of a request."""
        now = time.monotonic()
        if any(now - self.wrks[index].birth > YOUNG_S for index in dead):
            self._young_deaths = 0
            return False
        self._young_deaths += len(dead)
        return self._young_deaths > BARREN_STARTS * self.workers

    def _watch(self) -> None:
        watchdog = Watchdog(self._run_directory, self.workers, self._is_ours)
        while not self.interrupt_signal:
            time.sleep(CHECK_INTERVAL_S)
            watchdog.check()
        watchdog.close()

    def _is_ours(self, pid: int) -> bool:
        return any(worker.inner.pid == pid and worker.inner.is_alive() for worker in list(self.wrks))


@contextlib.contextmanager
def _stop_signals_held() -> Iterator[None]:
    """Have the signals that end a worker wait until it serves (`Worker.start`): it inherits that."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _prepare(directory: Path) -> Path:
    run_directory = directory / RUN
    try:
        run_directory.mkdir(parents=True, exist_ok=True)
        (run_directory / "writable").touch()
    except OSError as exc:
        raise CannotStart(f"storage.directory: cannot write {directory}: {exc.strerror}") from exc
    return run_directory


def _refuse_taken_port(host: str, port: int) -> None:
    """Granian shares its port with whoever asks (SO_REUSEPORT): a second server would take half of the connections."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            what = (
                "is in use by another program" if exc.errno == errno.EADDRINUSE else f"cannot be used: {exc.strerror}"
            )
            raise CannotStart(f"server.host, server.port: {host}:{port} {what}") from exc


def _find_room() -> int:
    """How many connections a worker may have open: without a free descriptor it could not even answer the watch."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < DESCRIPTORS_WANTED:
        soft = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))  # workers inherit it
    return max(1, min(CONNECTIONS_AT_MOST, (soft - DESCRIPTORS_KEPT) // DESCRIPTORS_EACH))


def _find_suspect_time(run_directory: Path) -> float:
    """Blobs unchanged since this time are verified before use: the last start after an unclean stop, else never."""
    suspect = run_directory / "suspect"
    clean = run_directory / "clean"
    started = run_directory / "started"
    if started.exists() and not clean.exists():
        logger.warning("Dockyard was not stopped cleanly: cached blobs are verified before their first use")
        suspect.touch()
    clean.unlink(missing_ok=True)
    started.touch()
    return suspect.stat().st_mtime if suspect.exists() else 0.0


def _warn(settings: Settings) -> None:
    """Say what an operator may not have meant."""
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

"""The supervisor: starts the workers, replaces them on SIGHUP and when they die, kills frozen ones, stops all of them.

A subclass of Granian's multi-process server with a main loop, a reload and a stop of its own. It uses private names of
Granian, whose version is therefore pinned.
"""

import contextlib
import functools
import gc
import math
import multiprocessing
import multiprocessing.util
import os
import secrets
import select
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import structlog
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, Loops, SSLProtocols
from granian.http import HTTP1Settings
from granian.server.mp import MPServer, WorkerProcess

from dockyard import __version__, log, metrics
from dockyard.access.audit import check_audit_output
from dockyard.config.access import explain
from dockyard.config.certificates import KeyPair, KeyPairError
from dockyard.config.loader import SettingsError
from dockyard.config.settings import Settings, StorageSettings
from dockyard.config.token_key import read_token_key
from dockyard.config.units import format_duration
from dockyard.first_pull import describe_address, example_pull, server_url
from dockyard.oci.cdn_loop import make_server_name
from dockyard.preconditions import (
    CannotStart,
    ServerLock,
    check_bucket_settings,
    describe_listen_error,
    find_listen_address,
    find_start_warnings,
    open_run_directory,
    raise_connection_limit,
)
from dockyard.signals import signals_blocked
from dockyard.storage.verified_files import VerifiedFiles
from dockyard.web.concealment import Concealment
from dockyard.worker import (  # before the fork: workers start at once, and share the code's memory
    DRAINING,
    STOP_SIGNALS,
    create_app,
    import_optional_modules,
)
from dockyard.workers.certificates import Certificates
from dockyard.workers.listener import BACKLOG, ListenAddress, open_listener
from dockyard.workers.processors import count_workers
from dockyard.workers.watchdog import Watchdog, WatchedProcess

if TYPE_CHECKING:
    from dockyard.access.access_tokens import AccessTokens
    from dockyard.access.shared import SharedAccess

CHECK_INTERVAL_S = 0.5
RELOAD_INTERVAL_S = 0.05
STOP_ACCEPTING_S = 1.0  # before a worker is stopped that has been replaced: TLS handshakes are finished
START_TIMEOUT_S = 60.0  # of a new worker in a reload
MAX_RETIRING = 2  # for each worker: reloads while the workers before still finish their responses
MAX_EARLY_DEATHS_PER_WORKER = 5
MIN_LIFETIME_S = 2.0
START_INTERVAL_S = 1.0  # when workers exit right after their start
MIN_SIGNAL_INTERVAL_S = 1.0  # a second Ctrl-C: `timeout` and some shells send one signal twice
HANDLED_SIGNALS = STOP_SIGNALS | {signal.SIGHUP}
GRANIAN_LOGS = {"loggers": {"_granian": {"handlers": [], "propagate": True}}, "handlers": {}, "formatters": {}}

logger = structlog.get_logger()


def run(settings: Settings) -> int:
    """Run the server until it is stopped. Returns the exit status. Raises SettingsError if a log cannot be opened."""
    try:
        log.check_output(settings.logger)
    except OSError as exc:
        reason = explain(exc, Path(settings.logger.output), is_writing=True)
        raise SettingsError([f'logger.output = "{settings.logger.output}": cannot be opened: {reason}']) from exc
    try:
        check_audit_output(settings.access)
    except OSError as exc:
        reason = explain(exc, Path(settings.access.audit), is_writing=True)
        raise SettingsError([f'access.audit = "{settings.access.audit}": cannot be opened: {reason}']) from exc
    _set_up_log(settings)
    try:
        return _serve(settings)
    except CannotStart as exc:
        logger.error("cannot start", reason=str(exc))  # noqa: TRY400  the reason is for the operator, not a traceback
        return 1


def _set_up_log(settings: Settings) -> None:
    log.set_up(settings.logger, metrics.log_lines_dropped.inc)


def _serve(settings: Settings) -> int:
    import_optional_modules(settings)
    check_bucket_settings(settings.storage)
    workers = settings.server.workers or count_workers()
    run_directory, lock = open_run_directory(settings.storage)
    try:
        address = find_listen_address(settings.server.host, settings.server.port)
        try:
            listeners = [open_listener(address) for _ in range(workers)]
        except OSError as exc:
            raise CannotStart(describe_listen_error(exc, settings.server.host, settings.server.port)) from exc
        try:
            server = Supervisor(settings, address, listeners, run_directory, lock)
        except KeyPairError as exc:
            raise CannotStart(f"{exc.key}: {exc.path} {exc}") from exc
        _set_up_log(settings)  # building Granian's server replaced it
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)  # until the workers are started
        with contextlib.suppress(OSError):
            (run_directory / DRAINING).unlink()
        for warning in find_start_warnings(settings, os.environ):
            logger.warning(warning.event, **warning.fields)
        logger.info(
            "Dockyard is starting",
            version=__version__,
            workers=workers,
            storage=str(settings.storage.directory),
            bucket=_describe_bucket(settings.storage),
            upstreams=[upstream.prefix for upstream in settings.upstreams],
        )
        access, concealment = _share_access(settings), Concealment(secrets.token_bytes(32))
        load_app = functools.partial(
            _load_app,
            settings,
            workers,
            run_directory,
            VerifiedFiles(),
            access,
            _make_access_tokens(settings),
            concealment,
            make_server_name(secrets.token_bytes(8)),
        )
        try:
            server.serve(target_loader=load_app, wrap_loader=False)
        except SystemExit as exc:
            return int(exc.code or 0)
        logger.info("Dockyard has stopped")
        return 0
    finally:
        if lock:
            lock.release()


def _describe_bucket(storage: StorageSettings) -> str:
    return f"{storage.bucket} at {storage.service}" if storage.bucket else "none"


def _share_access(settings: Settings) -> "SharedAccess | None":
    """What the workers share if an upstream decides about access. Without one, its library is not loaded."""
    if all(upstream.access != "upstream" for upstream in settings.upstreams):
        return None
    from dockyard.access.shared import SharedAccess  # noqa: PLC0415

    return SharedAccess()


def _make_access_tokens(settings: Settings) -> "AccessTokens | None":
    """The access tokens of all workers, also of those that are started later. Raises CannotStart."""
    if not settings.issues_tokens:
        return None
    from dockyard.access.access_tokens import AccessTokens  # noqa: PLC0415

    path = settings.access.token_key_file
    try:
        return AccessTokens(read_token_key(path) if path else b"")
    except ValueError as exc:  # it has changed since the settings were read
        raise CannotStart(f"access.token_key_file: {path}: {exc}") from exc


def _load_app(
    settings: Settings,
    workers: int,
    run_directory: Path,
    verified_files: VerifiedFiles,
    access: "SharedAccess | None",
    tokens: "AccessTokens | None",
    concealment: Concealment,
    server_name: str,
    connection: socket.socket,
    listener: socket.socket,
    inherited: Sequence[socket.socket],
) -> Any:
    """Build the application. Runs in the worker process, which closes the sockets of other processes (`inherited`)."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for other in inherited:
        other.close()
    watched = WatchedProcess(connection, listener.detach())  # Granian closes the listener
    _set_up_log(settings)
    multiprocessing.util.Finalize(None, log.flush, exitpriority=0)  # a worker does not run atexit functions
    try:
        return create_app(
            settings,
            workers,
            run_directory,
            verified_files,
            access,
            tokens,
            concealment,
            server_name,
            watched,
            os.environ,
        )
    except (OSError, ValueError) as exc:
        logger.error("a worker cannot start", error=str(exc))  # noqa: TRY400  such as a file that was deleted
    except Exception:
        logger.exception("internal error: a worker cannot start")
    raise SystemExit(1)


@attrs.define(eq=False)
class _Worker:
    """A worker process, and the supervisor's view of it. `pair` is the certificate that it was started with."""

    process: WorkerProcess
    watchdog: Watchdog
    connection: socket.socket
    pair: KeyPair | None
    started_at: float
    stopped_at: float = math.inf
    killed_at: float = math.inf
    was_killed: bool = False

    @property
    def pid(self) -> int:
        return int(self.process.inner.pid)

    @property
    def is_alive(self) -> bool:
        return bool(self.process.inner.is_alive())

    def stop(self, drain_timeout_s: float) -> None:
        """Send SIGTERM. The worker is to be killed after the drain timeout, which begins with the first call."""
        self.stopped_at = math.inf
        self.killed_at = min(self.killed_at, time.monotonic() + drain_timeout_s)
        self.process.terminate()  # type: ignore[no-untyped-call]

    def kill(self) -> None:
        """Send SIGKILL."""
        self.was_killed = True
        self.process.kill()  # type: ignore[no-untyped-call]

    def kill_late(self) -> None:
        """Send SIGKILL to a worker that still runs at the end of the drain timeout."""
        if not self.was_killed:
            logger.warning("worker did not stop within server.drain_timeout: killed", pid=self.pid)
            self.kill()

    def describe_end(self) -> str:
        """How the process has ended: by its exit status, or by a signal."""
        status = self.process.inner.exitcode or 0
        if status >= 0:
            return f"exit status {status}"
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        if name != "SIGKILL" or self.watchdog.has_killed:
            return name
        return "SIGKILL, probably by the kernel, out of memory: see dmesg, and the memory limit of the container"

    def forget(self) -> None:
        """Release what belongs to a worker that has ended."""
        self.watchdog.close()
        metrics.forget_worker(self.pid)


class Supervisor(MPServer):
    """Granian's multi-process server with Dockyard's settings, reload, certificates, and watchdogs for its workers.

    Everything runs in the main thread, and nothing there waits but the loop itself. A reload starts the successors of
    the workers one after the other; as soon as one has started, its predecessor gets SIGTERM and `drain_timeout` to
    finish its responses.
    """

    def __init__(
        self,
        settings: Settings,
        address: ListenAddress,
        listeners: list[socket.socket],
        run_directory: Path,
        lock: ServerLock,
    ) -> None:
        server = settings.server
        multiprocessing.set_start_method("fork", force=True)  # certificates and sockets are inherited
        super().__init__(
            "dockyard.worker:create_app",
            address=address.socket_address[0],
            port=address.socket_address[1],
            interface=Interfaces.ASGI,
            workers=len(listeners),
            loop=Loops.uvloop,
            http=HTTPModes.http1,
            websockets=False,
            backpressure=raise_connection_limit(),
            runtime_blocking_threads=16,
            http1_settings=HTTP1Settings(header_read_timeout=10_000),
            log_dictconfig=GRANIAN_LOGS,
            process_name="dockyard",
        )
        self.main_loop_interrupt = _WakeUp()  # type: ignore[assignment]
        self.ssl_ctx: Any = (server.tls, None, None, None, str(SSLProtocols.tls12), None, [], False)
        self._settings = settings
        self._run_directory = run_directory
        self._lock = lock
        self._drain_timeout_s = server.drain_timeout
        self._certificates = Certificates(server.certfile, server.keyfile, server.client_ca) if server.tls else None
        self._listeners = listeners
        self._running: list[_Worker] = []
        self._to_replace: list[int] = []
        self._successor: _Worker | None = None
        self._retiring: list[_Worker] = []
        self._early_deaths = 0
        self._next_start_at = 0.0
        self._has_failed = False
        self._has_announced = False
        self._stop_signal: signal.Signals | None = None
        self._stopped_at = 0.0
        self._stops_at_once = False

    def startup(self, spawn_target: Any, target_loader: Any) -> None:
        """Start the workers."""
        self._spawn_target, self._target_loader = spawn_target, target_loader
        signal.signal(signal.SIGCHLD, lambda *_: self.main_loop_interrupt.set())
        gc.freeze()  # else the collector of each worker writes to all objects, and the worker gets a copy of them
        super().startup(spawn_target, target_loader)  # type: ignore[no-untyped-call]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)

    def shutdown(self, exit_code: int = 0) -> None:
        """Stop the workers. Raises SystemExit if the server has failed."""
        self.interrupt_children.clear()  # workers that have been replaced
        super().shutdown(exit_code or int(self._has_failed))  # type: ignore[no-untyped-call]

    def signal_handler_interrupt(self, number: int, _frame: object) -> None:
        """Handle a stop signal. The second Ctrl-C stops the server without waiting for running responses."""
        now = time.monotonic()
        if self._stop_signal is None:
            self._stop_signal, self._stopped_at = signal.Signals(number), now
        elif number == signal.SIGINT and now - self._stopped_at >= MIN_SIGNAL_INTERVAL_S:
            self._stops_at_once = True
        super().signal_handler_interrupt()  # type: ignore[no-untyped-call]

    def _init_shared_socket(self) -> None:
        self._ssp = self._sso = None  # each worker has a socket of its own

    def _spawn_workers(self, _spawn_target: Any, _target_loader: Any) -> None:
        for index in range(self.workers):
            try:
                self._running.append(self._start_worker(index))
            except OSError as exc:
                self._stop_workers()
                raise CannotStart(_describe_fork_error(exc)) from exc

    def _serve_loop(self, _spawn_target: Any, _target_loader: Any) -> None:
        while True:
            is_waiting = self._to_replace or not self._has_announced
            self.main_loop_interrupt.wait(RELOAD_INTERVAL_S if is_waiting else CHECK_INTERVAL_S)
            self.main_loop_interrupt.clear()
            if self.interrupt_signal:
                break
            if self.reload_signal and not self._to_replace and len(self._retiring) <= MAX_RETIRING * self.workers:
                self.reload_signal = False
                self._start_reload()
            self._lock.restore()
            self._continue_reload()
            self._end_retired()
            for worker in self._running:
                worker.watchdog.check(worker.pid)
                if worker.watchdog.has_started() and self._certificates and worker.pair:
                    self._certificates.accept(worker.pair)
            self._announce_start()
            if not self._replace_dead():
                logger.error("workers exit right after they start: stopping the server")
                self._has_failed = True
                break
        self._announce_stop()

    def _announce_start(self) -> None:
        """Log once that all workers accept connections, with a URL and a pull to try."""
        if self._has_announced or not all(worker.watchdog.has_started() for worker in self._running):
            return
        self._has_announced = True
        server, host_name = self._settings.server, socket.gethostname()
        logger.info(
            "Dockyard is listening",
            url=server_url(server, host_name),
            address=describe_address(server),
            **{"try": example_pull(server, self._settings.upstreams, host_name)},
        )

    def _announce_stop(self) -> None:
        reason = self._stop_signal.name if self._stop_signal else "error"
        hint = {"hint": "press Ctrl-C again to stop at once"} if self._stop_signal is signal.SIGINT else {}
        logger.info(
            "Dockyard is stopping: running responses have until the drain timeout",
            reason=reason,
            drain_timeout=format_duration(self._drain_timeout_s),
            **hint,
        )
        try:
            (self._run_directory / DRAINING).touch()
        except OSError as exc:  # only for load balancers: the listeners are closed next
            logger.info("cannot announce the stop on /readyz", error=exc.strerror)

    def _start_reload(self) -> None:
        if self._certificates and not self._certificates.can_reload():
            return
        logger.info("reload: starting new workers", workers=self.workers)
        self._to_replace = list(range(self.workers))

    def _continue_reload(self) -> None:
        if not self._to_replace:
            return
        index, successor = self._to_replace[0], self._successor
        if successor is None:
            try:
                self._successor = self._start_worker(index)
            except OSError as exc:
                logger.error(  # noqa: TRY400  the reason is for the operator, not a traceback
                    "reload failed: a new worker does not start; the current workers continue",
                    reason=_describe_fork_error(exc),
                )
                self._to_replace = []
        elif successor.watchdog.has_started():
            predecessor, self._running[index] = self._running[index], successor
            predecessor.watchdog.stop_accepting()
            predecessor.stopped_at = time.monotonic() + STOP_ACCEPTING_S
            self._retiring.append(predecessor)
            self._successor = None
            self._to_replace.pop(0)
            if not self._to_replace:
                logger.info("reload: all workers have been replaced")
        elif not successor.is_alive or time.monotonic() - successor.started_at > START_TIMEOUT_S:
            self._cancel_reload(successor)

    def _cancel_reload(self, successor: _Worker) -> None:
        """Give up a reload whose new worker does not start. The current workers continue."""
        reason = "it takes too long" if successor.is_alive else "it exits"
        if self._certificates and successor.pair and self._certificates.reject(successor.pair):
            reason += " with the new certificate or key of server.certfile and server.keyfile"
        logger.error("reload failed: a new worker does not start; the current workers continue", reason=reason)
        successor.kill()
        self._retiring.append(successor)
        self._successor = None
        self._to_replace = []

    def _end_retired(self) -> None:
        now = time.monotonic()
        for worker in list(self._retiring):
            if not worker.is_alive:
                worker.forget()
                self._retiring.remove(worker)
            elif now > worker.killed_at:
                worker.kill_late()
            elif now > worker.stopped_at:
                worker.stop(self._drain_timeout_s)

    def _replace_dead(self) -> bool:
        """Replace the workers that have ended. False if all exit right after their start."""
        now = time.monotonic()
        dead = [index for index, worker in enumerate(self._running) if not worker.is_alive]
        if not dead or now < self._next_start_at:
            return True
        for index in dead:
            worker = self._running[index]
            if worker.watchdog.has_started() and now - worker.started_at > MIN_LIFETIME_S:
                self._early_deaths = 0
            else:
                self._early_deaths += 1
                if self._certificates and worker.pair:
                    self._certificates.reject(worker.pair)
        if self._early_deaths > MAX_EARLY_DEATHS_PER_WORKER * self.workers:
            if len(dead) == len(self._running):
                return False
            self._next_start_at = now + START_INTERVAL_S
        for index in dead:
            ended = self._running[index]
            try:
                self._running[index] = self._start_worker(index)
            except OSError as exc:
                logger.error("cannot replace a worker, trying again", error=_describe_fork_error(exc))  # noqa: TRY400
                self._next_start_at = now + START_INTERVAL_S
                break
            metrics.worker_restarts.inc()
            logger.warning("a worker has ended: it is replaced", pid=ended.pid, reason=ended.describe_end())
            ended.forget()
        return True

    def _start_worker(self, index: int) -> _Worker:
        """Start a process that accepts connections at the listener of `index`."""
        connection, workers_end = socket.socketpair()
        listener = self._listeners[index]
        pair = self._certificates.choose() if self._certificates else None
        inherited = [other for other in self._listeners if other is not listener]
        inherited += [connection, *(worker.connection for worker in self._workers())]
        loader = functools.partial(self._target_loader, workers_end, listener, inherited)
        self._shd: Any = SocketHolder(listener.fileno(), False, BACKLOG)  # type: ignore[call-arg]
        with (
            workers_end,
            contextlib.ExitStack() as unless_started,
            pair.as_files() if pair else contextlib.nullcontext() as files,
            pair.authorities_as_file() if pair else contextlib.nullcontext() as client_ca,
            signals_blocked(STOP_SIGNALS),  # `Worker.start` unblocks them
        ):
            unless_started.enter_context(connection)
            if files:
                self.ssl_ctx = (True, *files, *self.ssl_ctx[3:5], client_ca, [], client_ca is not None)
            process = self._spawn_worker(index, self._spawn_target, loader)
            # Not Granian's start(), whose thread waits for the process too: whichever is second sees no end of it.
            process.inner.start()
            unless_started.pop_all()
        return _Worker(process, Watchdog(connection), connection, pair, time.monotonic())

    def _workers(self) -> list[_Worker]:
        return [*self._running, *([self._successor] if self._successor else []), *self._retiring]

    def _stop_workers(self) -> None:
        """Send SIGTERM to all workers, and kill those that still run at the end of the drain timeout."""
        for listener in self._listeners:
            listener.close()
        workers = self._workers()
        for worker in workers:
            worker.stop(self._drain_timeout_s)
        while alive := [worker for worker in workers if worker.is_alive]:
            now = time.monotonic()
            for worker in alive:
                if self._stops_at_once:
                    worker.kill()
                elif now > worker.killed_at:
                    worker.kill_late()
            left_s = max(min(worker.killed_at for worker in alive) - now, RELOAD_INTERVAL_S)
            self.main_loop_interrupt.wait(min(left_s, CHECK_INTERVAL_S))
            self.main_loop_interrupt.clear()
        for worker in workers:
            worker.forget()
        if self._stops_at_once:
            logger.info("Ctrl-C was pressed twice: running responses were aborted")


class _WakeUp:
    """Wakes the main loop. Unlike `threading.Event`, it may be set by a signal handler at any moment."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def set(self) -> None:
        """End the current or the next `wait`."""
        os.eventfd_write(self._fd, 1)

    def wait(self, timeout_s: float) -> None:
        """Wait until `set` is called, or for `timeout_s`."""
        self._poll.poll(timeout_s * 1000)

    def clear(self) -> None:
        """Let the next `wait` wait."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)


def _describe_fork_error(exc: OSError) -> str:
    reason = f"cannot start a worker process: {exc.strerror}"
    return f"{reason}: raise the limit of processes or memory (ulimit -u, TasksMax, pids.max), or lower server.workers"

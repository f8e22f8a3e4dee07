"""What the server needs before it starts: the storage directory and its lock, an address, open files.

`dockyard server` takes it, and logs what is risky or probably not intended. `dockyard check` only looks, with the
functions that are called `check_...` and `find_...`: these leave nothing behind.
"""

import errno
import os
import resource
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

import attrs
import structlog

from dockyard import metrics
from dockyard.access.principals import Principal
from dockyard.access.review import find_access_mistakes
from dockyard.access.rules import Rules
from dockyard.config.access import explain
from dockyard.config.hosts import is_loopback
from dockyard.config.proxies import find_ignored_variables
from dockyard.config.settings import AccessSettings, JwtIssuer, ServerSettings, Settings, StorageSettings, Upstream
from dockyard.first_pull import ALL_ADDRESSES, describe_address
from dockyard.storage.directories import RUN, check_writable
from dockyard.storage.disk_errors import describe_disk_error
from dockyard.storage.keys import blob_root
from dockyard.upstream.keychain import Keychain
from dockyard.workers.listener import ListenAddress, find_address
from dockyard.workers.port_users import describe_port_user
from dockyard.workers.shard_lock import AlreadyRunning, Lock, find_holder

MAX_CONNECTIONS = 4096  # per worker; more wait in the backlog of the socket
WANTED_DESCRIPTORS = 65536
RESERVED_DESCRIPTORS = 264  # for logs, metrics, peers, open blobs, and idle connections to upstreams
DESCRIPTORS_PER_CONNECTION = 4  # a client of a download: its socket, the partial file twice, the upstream's socket
SERVER_LOCK = "server.lock"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}

logger = structlog.get_logger()


class CannotStart(Exception):
    """The server cannot start. The message says why and is meant for the operator."""


@attrs.frozen
class StartWarning:
    """Something that is risky or probably not intended, as an event with its fields for the log."""

    event: str
    fields: Mapping[str, object] = attrs.field(factory=dict)


_NOT_KEPT = StartWarning(
    "cannot write storage.directory: cached content is served, new content is not kept until it can be written"
)


def find_start_warnings(settings: Settings, environ: Mapping[str, str]) -> Iterator[StartWarning]:
    """Yield what is risky or probably not intended in the settings and the environment."""
    yield from map(StartWarning, settings.warnings)
    if ignored := find_ignored_variables(settings, environ):
        yield StartWarning(
            "proxy variables of the environment are ignored: set `proxy` of the upstreams that are behind a proxy "
            "(S3 is always reached directly)",
            {"variables": ignored},
        )
    keychain = Keychain(environ)
    rules = Rules(settings.access, settings.upstreams)
    private = [
        upstream.prefix
        for upstream in settings.upstreams
        if _is_open(upstream, settings.access, rules) and _may_have_login(upstream, keychain)
    ]
    if private:
        yield StartWarning(
            "clients are not authenticated: everyone who reaches this server can pull from upstreams with credentials",
            {"upstreams": private},
        )
    for upstream in settings.upstreams:
        if reason := _find_login_problem(upstream, keychain, settings.expected_logins):
            yield StartWarning(
                "an upstream has no login: log in with `docker login` as the user of this server, or correct auth",
                {"upstream": upstream.prefix, "registry": upstream.origin.authority, "reason": reason},
            )
        if _leads_back(upstream, settings.server):
            yield StartWarning(
                "an upstream is this server itself: its requests will be refused (508), correct its registry",
                {"upstream": upstream.prefix, "registry": upstream.origin.authority},
            )
        if upstream.insecure_skip_verify:
            yield StartWarning("the TLS certificate of an upstream is not verified", {"upstream": upstream.prefix})
    for found in find_access_mistakes(settings):
        yield StartWarning(found.event, found.fields)
    if settings.access.jwt:
        yield from _find_key_problems(settings.access.jwt)


def _leads_back(upstream: Upstream, server: ServerSettings) -> bool:
    """Whether an upstream has the address that this server listens on, as far as that is known without DNS."""
    host = upstream.origin.host
    if upstream.origin.port != server.port or upstream.proxy:
        return False
    if server.host not in ALL_ADDRESSES:
        return host == server.host.lower() or (is_loopback(host) and is_loopback(server.host))
    return is_loopback(host) or host == socket.gethostname().lower() or _is_of_this_machine(host)


def _is_of_this_machine(host: str) -> bool:
    """Whether a text is an address of this machine. Only those can be bound."""
    try:
        address = ip_address(host)
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET) as probe:
            probe.bind((host, 0))
    except (ValueError, OSError):
        return False
    return True


def _find_key_problems(issuers: Sequence[JwtIssuer]) -> Iterator[StartWarning]:
    """Yield the files of keys that cannot be used."""
    from dockyard.access.jwks import KEY_FILE_PROBLEM, check_keys, has_url  # noqa: PLC0415  with PyJWT and cryptography

    for issuer in issuers:
        if not has_url(issuer):
            try:
                check_keys(issuer)
            except ValueError as exc:
                yield StartWarning(KEY_FILE_PROBLEM, {"issuer": issuer.name, "path": issuer.jwks, "reason": str(exc)})


def _is_open(upstream: Upstream, access: AccessSettings, rules: Rules) -> bool:
    """Whether everybody may pull something from an upstream."""
    return upstream.access == "rules" and (access.dry_run or rules.may_pull_below(Principal(), upstream.prefix))


def _may_have_login(upstream: Upstream, keychain: Keychain) -> bool:
    """Whether there are credentials for an upstream. A credential helper may have some: it is not run."""
    if upstream.auth.type == "keychain":
        return keychain.find_problem(upstream.origin.authority, upstream.path) is None
    return not upstream.is_anonymous


def _find_login_problem(upstream: Upstream, keychain: Keychain, expected_logins: Collection[str]) -> str:
    """Why an upstream has no login, if one is expected of the Docker keychain; empty if it has one, or needs none.

    Unless `auth.type` is written as `keychain`, only what certainly fails counts: many registries need no login.
    """
    if upstream.auth.type != "keychain":
        return ""
    problem = keychain.find_problem(upstream.origin.authority, upstream.path)
    return problem.reason if problem and (problem.is_certain or upstream.prefix in expected_logins) else ""


def check_bucket_settings(storage: StorageSettings) -> None:
    """Raise CannotStart if there can be no URL for the bucket."""
    if storage.bucket:
        from dockyard.s3.client import make_base_url  # noqa: PLC0415  with minio-py

        try:
            make_base_url(storage)
        except ValueError as exc:
            raise CannotStart(str(exc)) from exc


class ServerLock:
    """The lock on a storage directory, which has one server at a time: on a file in it, and on the directory itself.

    The file cannot be created on a full disk, and may be deleted; not every file system can lock a directory. Raises
    CannotStart if another server has one of the two, or if neither can be locked.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / RUN / SERVER_LOCK
        self._locks: dict[Path, Lock] = {}
        self._is_taken = False
        problem: OSError | None = None
        for path in (self._path, directory):
            try:
                self._locks[path] = Lock(path)
            except AlreadyRunning as exc:
                self.release()
                process = f" (process {exc.pid})" if exc.pid else ""
                what = f"another Dockyard{process} uses {directory}: stop it, or set storage.directory"
                raise CannotStart(what) from exc
            except OSError as exc:
                problem = exc
        if problem and not self._locks:
            raise _cannot_lock(directory, problem)

    def restore(self) -> None:
        """Lock the file if it is missing, or was deleted."""
        held = self._locks.get(self._path)
        if self._is_taken or (held and held.is_at(self._path)):
            return
        try:
            self._locks[self._path] = Lock(self._path)
        except AlreadyRunning as exc:
            self._is_taken = True
            logger.error(  # noqa: TRY400  for the operator, not a traceback
                "another server has taken the storage directory, since the lock file was deleted: stop one of the two",
                pid=exc.pid,
            )
        except OSError:  # the directory is missing, or the disk is full: tried again
            pass
        else:
            if held:
                held.release()

    def release(self) -> None:
        """Release the lock."""
        for lock in self._locks.values():
            lock.release()


def find_server(directory: Path) -> int | None:
    """Return the process of the server that has the lock on a storage directory, 0 if unknown; None without a server.

    Raises CannotStart if the directory exists and cannot be locked.
    """
    problem: OSError | None = None
    is_free = not directory.exists()
    for path in (directory / RUN / SERVER_LOCK, directory):
        try:
            holder = find_holder(path)
        except FileNotFoundError:
            continue
        except OSError as exc:
            problem = exc
        else:
            if holder is not None:
                return holder
            is_free = True
    if problem and not is_free:
        raise _cannot_lock(directory, problem)
    return None


def _cannot_lock(directory: Path, problem: OSError) -> CannotStart:
    return CannotStart(
        f"storage.directory: cannot lock {directory}: {explain(problem, directory)}; "
        "set it to a directory on a local disk, or mount the file system with support for locks"
    )


def check_storage_directory(storage: StorageSettings) -> str:
    """Return why new content is not kept, an empty text if it is. Raises CannotStart, as `open_run_directory` does."""
    directory = Path(storage.directory)
    try:
        check_writable(directory / RUN)
    except OSError as exc:
        if not _is_readable(directory) or not _can_serve(exc, storage):
            raise _cannot_write(directory, exc, directory / RUN) from exc
        return f"{_NOT_KEPT.event} (directory={directory} error={describe_disk_error(exc, directory)})"
    return ""


def _can_serve(problem: OSError, storage: StorageSettings) -> bool:
    """Whether a server that cannot write its directory starts, to serve what is cached."""
    return problem.errno in _DISK_FULL or (Path(storage.directory) / blob_root(storage.prefix)).is_dir()


def _is_readable(directory: Path) -> bool:
    return directory.is_dir() and os.access(directory, os.R_OK | os.X_OK, effective_ids=True)


def _cannot_write(directory: Path, problem: OSError, refusing: Path) -> CannotStart:
    return CannotStart(f"storage.directory: cannot write {directory}: {describe_disk_error(problem, refusing)}")


def open_run_directory(storage: StorageSettings) -> tuple[Path, ServerLock]:
    """The run directory of this server, and the lock on the storage directory, which has one server at a time.

    If the storage directory is full or read-only, the run directory is in memory: what is cached can be served.
    """
    directory = Path(storage.directory)
    run_directory = directory / RUN
    problem: OSError | None = None
    try:
        run_directory.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        problem = exc
        if not _is_readable(directory):
            raise _cannot_write(directory, exc, directory) from exc
    lock = ServerLock(directory)
    if problem is None:
        try:
            (run_directory / "writable").write_bytes(b"1")
        except OSError as exc:
            problem = exc
    if problem is None:
        return run_directory, lock
    if not _can_serve(problem, storage):
        lock.release()
        raise _cannot_write(directory, problem, run_directory)
    run_directory = Path(os.environ[metrics.DIRECTORY_VARIABLE]) / RUN
    try:
        run_directory.mkdir()
    except OSError as exc:
        lock.release()
        raise CannotStart(f"cannot write {run_directory}: {describe_disk_error(exc, run_directory)}") from exc
    logger.warning(
        _NOT_KEPT.event,
        directory=str(directory),
        error=describe_disk_error(problem, directory),
        run_directory=str(run_directory),
    )
    return run_directory, lock


def find_listen_address(host: str, port: int) -> ListenAddress:
    """Return the address to listen on. Raises CannotStart."""
    try:
        return find_address(host, port)
    except OSError as exc:
        raise CannotStart(describe_listen_error(exc, host, port)) from exc


def describe_listen_error(exc: OSError, host: str, port: int) -> str:
    """Why `server.host` and `server.port` cannot be listened on, and what to do."""
    address = describe_address(ServerSettings(host=host, port=port))
    if isinstance(exc, socket.gaierror):
        return f"server.host: cannot resolve {host}: {exc.strerror}; use a name or an address of this machine"
    match exc.errno:
        case errno.EADDRINUSE:
            where = "" if host in ALL_ADDRESSES else f" of {host}"
            user = describe_port_user(port)
            return f"server.port: port {port}{where} is in use by {user}: stop it, or set server.port to another port"
        case errno.EACCES:
            lowest = _read_lowest_port()
            return (
                f"server.port: {address}: {exc.strerror}: ports below {lowest} are not for uid {os.geteuid()}: set "
                f"server.port to {lowest} or more, or give the process CAP_NET_BIND_SERVICE (systemd: "
                "AmbientCapabilities=CAP_NET_BIND_SERVICE), or set the sysctl "
                f"net.ipv4.ip_unprivileged_port_start to {port}"
            )
        case errno.EADDRNOTAVAIL:
            return (
                f"server.host: {host} is not an address of this machine (`ip address` lists them): correct it, or "
                "leave it empty to listen on all addresses"
            )
    return f"server.host, server.port: {address} cannot be used: {exc.strerror}"


def _read_lowest_port() -> int:
    """The first port that every user may listen on."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return 1024


def raise_connection_limit() -> int:
    """Raise the limit of open files, and return how many connections a worker may have under it.

    A worker without free descriptors could not respond to the watchdog and would be killed.
    """
    limit, connections = find_connection_limit()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))  # workers inherit it
    return connections


def find_connection_limit() -> tuple[int, int]:
    """Return the limit of open files that a server can have, and how many connections a worker may have under it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < WANTED_DESCRIPTORS:
        soft = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    return soft, max(1, min(MAX_CONNECTIONS, (soft - RESERVED_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION))

"""The settings tree: its names, its defaults, and what must hold between them.

Everything is parsed when the settings are loaded; the rest of the deployment reads finished numbers, paths and hosts.
Durations are float seconds and sizes are int bytes. A secret stays a `Secret` from the file to the place that sends it.

The layers are defaults < YAML < environment (`sources.py`). All mistakes are found in one go.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import get_args

import attrs

from dockyard.config.certificates import check_authorities, check_key_pair, check_readable
from dockyard.config.hosts import Origin, check_proxy, hide_userinfo, parse_authority, parse_host, parse_registry
from dockyard.config.loader import NOT_A_KEY, Reader, to_yaml
from dockyard.config.types import AuthType, Bytes, Encoding, Level, ProxyUrl, Seconds, Secret, converter
from dockyard.errors import NameInvalid
from dockyard.oci.reference import Name

__all__ = [
    "Auth",
    "LoggerSettings",
    "Origin",
    "Secret",
    "ServerLogSettings",
    "ServerSettings",
    "Settings",
    "SettingsError",
    "StorageSettings",
    "Upstream",
    "UpstreamLimits",
    "load",
    "show",
]

DAY_S = 24 * 3600.0
MAX_WORKERS = 1024


class SettingsError(Exception):
    """The settings cannot be used. `mistakes` has one sentence for each reason, with its key and its place."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = mistakes


@attrs.frozen
class LoggerSettings:
    """What is logged, how, and where to: `stderr`, `stdout` or a file."""

    level: Level = "info"
    encoding: Encoding = "console"
    color: bool = True
    output: str = "stderr"


@attrs.frozen
class ServerLogSettings:
    """The line that is logged for each request."""

    enabled: bool = True
    level: Level = "info"
    request_body: bool = False
    response_body: bool = False
    ignore_paths: tuple[str, ...] = ()


@attrs.frozen
class ServerSettings:
    """What Dockyard listens on, and with how many workers (0: one per core)."""

    host: str = ""
    port: int = 5000
    tls: bool = False
    certfile: str = ""
    keyfile: str = ""
    log: ServerLogSettings = ServerLogSettings()
    workers: int = 0
    drain_timeout: Seconds = 25.0


def user_cache_directory(environ: Mapping[str, str]) -> Path:
    """Where the local store is when nobody says (XDG base directories); system services have no home."""
    base = Path(environ.get("XDG_CACHE_HOME", ""))
    home = Path(environ.get("HOME", ""))
    if not base.is_absolute():
        base = home / ".cache" if home.is_absolute() else Path("/var/cache")
    return base / "dockyard"


@attrs.frozen
class StorageSettings:
    """The local store, and the S3 store when there is a bucket."""

    endpoint: str = ""
    region: str = "us-east-1"
    bucket: str = ""
    prefix: str = "cache/"
    access_key: str = ""
    secret_key: Secret = Secret()
    use_ssl: bool = False
    force_path_style: bool = False
    touch_threshold: Seconds = DAY_S
    directory: Path = attrs.field(factory=lambda: user_cache_directory(os.environ))
    max_size: Bytes = 50 * 2**30
    redirect: bool = False


@attrs.frozen
class UpstreamLimits:
    """How long upstreams may take. A `check_timeout` of 0 is no limit."""

    check_timeout: Seconds = 5.0
    check_interval: Seconds = 0.0
    connect_timeout: Seconds = 3.0
    stall_timeout: Seconds = 15.0


@attrs.frozen
class Auth:
    """Who we are at one upstream. Every type that is none of the others is the Docker keychain."""

    type: AuthType = "keychain"
    username: str = ""
    password: Secret = Secret()


@attrs.frozen
class Upstream:
    """The registry behind a prefix."""

    prefix: str
    registry: str
    auth: Auth = Auth()
    default: bool = False
    ca_file: str = ""
    insecure_skip_verify: bool = False
    proxy: ProxyUrl = attrs.field(default="", repr=hide_userinfo)
    trusted_hosts: tuple[str, ...] = ()

    @cached_property
    def origin(self) -> Origin:
        """The registry's scheme, host and port."""
        return parse_registry(self.registry)[0]

    @cached_property
    def path(self) -> str:
        """What `registry` has after its host, put before the repository: nothing, `org`, or `org/team`."""
        return parse_registry(self.registry)[1]

    @property
    def is_anonymous(self) -> bool:
        return self.auth.type == "anonymous"


DEFAULT_UPSTREAMS = (
    Upstream("docker.io", "registry-1.docker.io", Auth("anonymous"), default=True),
    Upstream("ghcr.io", "ghcr.io", Auth("anonymous")),
)


@attrs.frozen
class Settings:
    """Everything that can be set. `warnings` are remarks for the log, without secrets."""

    logger: LoggerSettings = LoggerSettings()
    server: ServerSettings = ServerSettings()
    storage: StorageSettings = attrs.field(factory=StorageSettings)
    upstream: UpstreamLimits = UpstreamLimits()
    upstreams: tuple[Upstream, ...] = DEFAULT_UPSTREAMS
    warnings: tuple[str, ...] = attrs.field(default=(), eq=False, metadata=NOT_A_KEY)


def load(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """The settings of a file (None: defaults only) under those of the environment; raises SettingsError."""
    reader = Reader(Settings, environ, converter().structure, Secret)
    settings = reader.read(path)
    if "storage.directory" not in reader.places:
        storage = attrs.evolve(settings.storage, directory=user_cache_directory(environ))
        settings = attrs.evolve(settings, storage=storage)
    settings = attrs.evolve(settings, upstreams=_with_default(settings.upstreams, reader.places))
    for key, message in _mistakes(settings):
        reader.mistake(key, message)
    if reader.mistakes:
        raise SettingsError(reader.mistakes)
    remarks = _remarks(settings, reader.written)
    return attrs.evolve(settings, warnings=(*reader.warnings, *remarks))


def show(settings: Settings) -> str:
    """The settings as YAML that `load` reads back, but for the secrets: they are `***`."""
    document = converter().unstructure(settings)
    del document["warnings"]
    return to_yaml(document)


def _with_default(upstreams: tuple[Upstream, ...], places: Mapping[str, str]) -> tuple[Upstream, ...]:
    """Mark docker.io as the default, unless the file says of it, or of another, that it is."""
    if any(upstream.default for upstream in upstreams):
        return upstreams
    for index, upstream in enumerate(upstreams):
        if upstream.prefix == "docker.io" and f"upstreams[{index}].default" not in places:
            return (*upstreams[:index], attrs.evolve(upstream, default=True), *upstreams[index + 1 :])
    return upstreams


def _mistakes(settings: Settings) -> Iterator[tuple[str, str]]:
    """What must hold and does not: key and message."""
    yield from _logger_mistakes(settings.logger)
    yield from _server_mistakes(settings.server)
    prefix = settings.storage.prefix
    if prefix and {"", ".", ".."}.intersection(prefix.removesuffix("/").split("/")):
        yield "storage.prefix", "must be a path such as cache/ without a / in front and without . or .. in it"
    for name in ("check_timeout", "connect_timeout", "stall_timeout"):
        if getattr(settings.upstream, name) > DAY_S:
            yield f"upstream.{name}", "must be 24h or less"
    for name in ("connect_timeout", "stall_timeout"):
        if not getattr(settings.upstream, name):
            yield f"upstream.{name}", "must be more than 0: every wait has an end"
    if not settings.upstreams:
        yield "upstreams", "must have at least one upstream"
    prefixes: dict[str, str] = {}
    for index, upstream in enumerate(settings.upstreams):
        key = f"upstreams[{index}]"
        if (first := prefixes.setdefault(upstream.prefix, key)) != key:
            yield f"{key}.prefix", f"is the prefix of {first} too"
        yield from _upstream_mistakes(key, upstream)
    defaults = [index for index, upstream in enumerate(settings.upstreams) if upstream.default]
    for index in defaults[1:]:
        yield f"upstreams[{index}].default", f"upstreams[{defaults[0]}] is the default already"


def _logger_mistakes(logger: LoggerSettings) -> Iterator[tuple[str, str]]:
    if logger.output in {"stderr", "stdout"}:
        return
    file = Path(logger.output)
    if not logger.output or not file.parent.is_dir() or file.is_dir():
        yield "logger.output", "must be stderr, stdout, or a file in a directory that exists"
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        yield "logger.output", "must be a file that can be written"


def _server_mistakes(server: ServerSettings) -> Iterator[tuple[str, str]]:
    if not 1 <= server.port <= 65535:
        yield "server.port", "must be from 1 to 65535"
    if server.workers > MAX_WORKERS:
        yield "server.workers", f"must be from 0 to {MAX_WORKERS}"
    if server.drain_timeout > DAY_S:
        yield "server.drain_timeout", "must be 24h or less"
    if server.host:
        yield from _refused("server.host", parse_host, server.host)
    if any(not path.startswith("/") for path in server.log.ignore_paths):
        yield "server.log.ignore_paths", "must hold paths that begin with /"
    if server.tls:
        yield from _tls_mistakes(server.certfile, server.keyfile)


def _tls_mistakes(certfile: str, keyfile: str) -> Iterator[tuple[str, str]]:
    given = {"server.certfile": certfile, "server.keyfile": keyfile}
    mistakes = [(key, "is needed by server.tls") for key, path in given.items() if not path]
    mistakes += [found for key, path in given.items() if path for found in _refused(key, check_readable, path)]
    yield from mistakes or _refused("server.keyfile", partial(check_key_pair, certfile), keyfile)


def _upstream_mistakes(key: str, upstream: Upstream) -> Iterator[tuple[str, str]]:
    try:
        Name.parse(upstream.prefix)
    except NameInvalid:
        yield f"{key}.prefix", "must be a name in lower case such as ghcr.io or ghcr.io/my-org, without a port"
    yield from _refused(f"{key}.registry", parse_registry, upstream.registry)
    yield from _auth_mistakes(f"{key}.auth", upstream.auth)
    if upstream.ca_file:
        yield from _refused(f"{key}.ca_file", check_authorities, upstream.ca_file)
    if upstream.proxy:
        yield from _refused(f"{key}.proxy", check_proxy, upstream.proxy)
    for host in upstream.trusted_hosts:
        yield from _refused(f"{key}.trusted_hosts", parse_authority, host)


def _auth_mistakes(key: str, auth: Auth) -> Iterator[tuple[str, str]]:
    if auth.type == "basic" and not auth.username:
        yield f"{key}.username", "is needed by auth.type basic"
    if auth.type == "basic" and ":" in auth.username:
        yield f"{key}.username", "must not hold a colon (RFC 7617)"
    if auth.type in {"basic", "bearer"} and not auth.password:
        yield f"{key}.password", f"is needed by auth.type {auth.type}"
    if auth.type == "bearer" and not re.fullmatch(r"[!-~]*", auth.password.reveal()):
        yield f"{key}.password", "must be ASCII without spaces, as it is sent as it stands"


def _remarks(settings: Settings, written: Mapping[str, str]) -> Iterator[str]:
    """What is allowed and yet probably not meant."""
    for index, upstream in enumerate(settings.upstreams):
        key = f"upstreams[{index}].auth"
        if upstream.auth.type != "keychain":
            continue
        if written.get(f"{key}.type", "").lower() not in {"", "keychain"}:
            yield f"{key}.type: is none of {', '.join(get_args(AuthType))}; the Docker keychain is used"
        if upstream.auth.username or upstream.auth.password:
            yield f"{key}: username and password are not used by the Docker keychain; set type: basic or bearer"


def _refused(key: str, check: Callable[[str], object], text: str) -> Iterator[tuple[str, str]]:
    try:
        check(text)
    except ValueError as exc:
        yield key, str(exc)

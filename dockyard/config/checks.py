"""Rules for settings beyond the type of each value: ranges, values that depend on each other, files that must exist."""

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import get_args

from dockyard.config.access import explain
from dockyard.config.access_checks import find_access_errors, find_access_warnings
from dockyard.config.certificates import KeyPairError, check_authorities, check_readable, read_key_pair
from dockyard.config.hosts import (
    check_endpoint,
    check_listen_host,
    check_proxy,
    is_aws,
    parse_authority,
    parse_registry,
)
from dockyard.config.settings import (
    DAY_S,
    Auth,
    ServerSettings,
    Settings,
    StorageSettings,
    Upstream,
    UpstreamLimits,
    find_stream,
)
from dockyard.config.types import AuthType
from dockyard.errors import NameInvalid
from dockyard.oci.reference import Name

MAX_WORKERS = 1024
MAX_CONNECTIONS = 16  # of one blob
MIN_USUAL_BYTES = 1024 * 1024

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{1,61}[A-Za-z0-9]")
_REGION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
_AWS_REGION = re.compile(r"[a-z]{2,5}(?:-[a-z]+)+-[0-9]{1,2}")
_AWS_HOST = re.compile(rf"s3[.-](?:dualstack\.)?({_AWS_REGION.pattern})\.amazonaws\.com")
_AWS_ZONE = re.compile(rf"({_AWS_REGION.pattern})[a-z]")


def find_errors(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield each rule that is violated, as key and message."""
    yield from _output_errors("logger.output", settings.logger.output)
    yield from _server_errors(settings.server)
    prefix = settings.storage.prefix
    if prefix and {"", ".", ".."}.intersection(prefix.removesuffix("/").split("/")):
        yield "storage.prefix", "must be a path such as cache/, without a leading / and without . or .. in it"
    yield from _bucket_errors(settings.storage)
    yield from _key_errors(settings.storage)
    yield from _limit_errors(settings.upstream)
    if not settings.upstreams:
        yield "upstreams", "must have at least one upstream"
    prefixes: dict[str, str] = {}
    for index, upstream in enumerate(settings.upstreams):
        key = f"upstreams[{index}]"
        if (first := prefixes.setdefault(upstream.prefix, key)) != key:
            yield f"{key}.prefix", f"is the prefix of {first} too; each prefix may be used once"
        yield from _upstream_errors(key, upstream)
    defaults = [index for index, upstream in enumerate(settings.upstreams) if upstream.default]
    for index in defaults[1:]:
        yield f"upstreams[{index}].default", f"upstreams[{defaults[0]}] is the default already; only one can be"
    yield from _output_errors("access.audit", settings.access.audit or "stderr")
    yield from find_access_errors(settings.access, settings.upstreams, settings.server)


def find_warnings(settings: Settings, raw_values: Mapping[str, str]) -> Iterator[str]:
    """Yield what is allowed but probably not intended. `raw_values` are the values as they are written, by key."""
    if settings.storage.endpoint and not settings.storage.bucket:
        yield "storage.endpoint: has no effect without storage.bucket: no bucket is used"
    host = _AWS_HOST.match(settings.storage.endpoint.lower())
    if settings.storage.bucket and host and host[1] != settings.storage.region:
        yield f"storage.region: is {settings.storage.region}, but storage.endpoint is in {host[1]}: set it to {host[1]}"
    for name in ("max_size", "scrub_rate"):
        key, size = f"storage.{name}", getattr(settings.storage, name)
        if 0 < size < MIN_USUAL_BYTES and raw_values.get(key, "").strip().isdigit():
            yield f"{key}: a size without a unit is in bytes, so this is {size} bytes; write {size}GiB or {size}MiB"
    for index, upstream in enumerate(settings.upstreams):
        yield from _upstream_warnings(f"upstreams[{index}]", upstream, raw_values)
    yield from find_access_warnings(settings.access, settings.upstreams, settings.server)


def _upstream_warnings(key: str, upstream: Upstream, raw_values: Mapping[str, str]) -> Iterator[str]:
    first = upstream.prefix.partition("/")[0]
    if "." not in first and first != "localhost":
        yield (
            f"{key}.prefix: {first} has no dot: clients that use Dockyard as a mirror of another registry get images "
            f"of this upstream for names such as docker.io/{first}/app; use a prefix with a dot"
        )
    if upstream.lazy_background != "download" and not upstream.lazy:
        yield f"{key}.lazy_background: has no effect without lazy: true"
    if upstream.auth.type != "keychain":
        return
    if raw_values.get(f"{key}.auth.type", "").lower() not in {"", "keychain"}:
        yield f"{key}.auth.type: is none of {', '.join(get_args(AuthType))}; the Docker keychain is used"
    if upstream.auth.username or upstream.auth.password:
        yield f"{key}.auth: username and password are ignored by the Docker keychain; set type: basic or bearer"


def _output_errors(key: str, output: str) -> Iterator[tuple[str, str]]:
    if find_stream(output) is not None:
        return
    file = Path(output)
    what = "must be stderr, stdout, or a file in an existing directory"
    if not output or file.is_dir():
        yield key, what
    elif not file.parent.is_dir():
        yield key, f"{what}: there is no directory {file.parent}"
    elif file.is_socket():
        yield key, "must be a file, not a socket"
    elif not os.access(file if file.exists() else file.parent, os.W_OK):
        denied = PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield key, f"must be a writable file: {explain(denied, file, is_writing=True)}"


def _server_errors(server: ServerSettings) -> Iterator[tuple[str, str]]:
    if not 1 <= server.port <= 65535:
        yield "server.port", "must be from 1 to 65535"
    if not 0 <= server.workers <= MAX_WORKERS:
        yield "server.workers", f"must be from 0 to {MAX_WORKERS}; 0 means one for each processor"
    if server.drain_timeout > DAY_S:
        yield "server.drain_timeout", "must be 24h or less"
    if server.host:
        yield from _check("server.host", check_listen_host, server.host)
    if any(not path.startswith("/") for path in server.log.ignore_paths):
        yield "server.log.ignore_paths", "must be paths that begin with /"
    if server.tls:
        yield from _tls_errors(server.certfile, server.keyfile)


def _tls_errors(certfile: str, keyfile: str) -> Iterator[tuple[str, str]]:
    files = {"server.certfile": certfile, "server.keyfile": keyfile}
    errors = [(key, "is required when server.tls is true") for key, path in files.items() if not path]
    errors += [error for key, path in files.items() if path for error in _check(key, check_readable, path)]
    yield from errors
    if errors:
        return
    try:
        read_key_pair(certfile, keyfile)
    except KeyPairError as exc:
        yield exc.key, str(exc)


def _bucket_errors(storage: StorageSettings) -> Iterator[tuple[str, str]]:
    if storage.endpoint:
        yield from _check("storage.endpoint", check_endpoint, storage.endpoint)
    if not storage.bucket:
        return
    if not _BUCKET.fullmatch(storage.bucket):
        hint = ""
        if "/" in storage.bucket:
            hint = "; write the name only: the host is set by storage.endpoint, the path in it by storage.prefix"
        yield (
            "storage.bucket",
            f"must be the name of a bucket: 3 to 63 letters, digits, dots and hyphens, such as dockyard-cache{hint}",
        )
    elif storage.endpoint.startswith(f"{storage.bucket}.s3") and is_aws(storage.endpoint):
        yield "storage.endpoint", "must not begin with the name of the bucket, which is put before it"
    region, example = storage.region, "such as eu-central-1"
    if zone := _AWS_ZONE.fullmatch(region):
        yield "storage.region", f"is an availability zone, not a region: write {zone[1]}"
    elif is_aws(storage.endpoint) and not _AWS_REGION.fullmatch(region):
        lower = f": write {region.lower()}" if _AWS_REGION.fullmatch(region.lower()) else ""
        yield "storage.region", f"must be a region of AWS, {example}{lower}"
    elif not _REGION.fullmatch(region):
        yield "storage.region", f"must be the name of a region, {example} or auto"


def _key_errors(storage: StorageSettings) -> Iterator[tuple[str, str]]:
    """Without this, half a pair would be replaced by the credentials of somebody else from the environment."""
    hint = "set both keys, or none to use the AWS credential chain"
    if storage.access_key and not storage.secret_key:
        yield "storage.secret_key", f"is required when storage.access_key is set: {hint}"
    if storage.secret_key and not storage.access_key:
        yield "storage.access_key", f"is required when storage.secret_key is set: {hint}"


def _limit_errors(limits: UpstreamLimits) -> Iterator[tuple[str, str]]:
    for name in ("check_timeout", "connect_timeout", "stall_timeout"):
        if getattr(limits, name) > DAY_S:
            yield f"upstream.{name}", "must be 24h or less"
    for name in ("connect_timeout", "stall_timeout"):
        if not getattr(limits, name):
            yield f"upstream.{name}", "must be more than 0"
    if not 1 <= limits.connections <= MAX_CONNECTIONS:
        yield "upstream.connections", f"must be from 1 to {MAX_CONNECTIONS}; 1 means one connection for each blob"


def _upstream_errors(key: str, upstream: Upstream) -> Iterator[tuple[str, str]]:
    if not _is_name(upstream.prefix):
        lower = upstream.prefix.lower()
        hint = f": write {lower}" if _is_name(lower) else ""
        yield f"{key}.prefix", f"must be a lower-case name such as ghcr.io or ghcr.io/my-org, without a port{hint}"
    yield from _check(f"{key}.registry", parse_registry, upstream.registry)
    yield from _auth_errors(f"{key}.auth", upstream.auth)
    if upstream.ca_file:
        yield from _check(f"{key}.ca_file", check_authorities, upstream.ca_file)
    if upstream.proxy:
        yield from _check(f"{key}.proxy", check_proxy, upstream.proxy)
    for host in upstream.trusted_hosts:
        yield from _check(f"{key}.trusted_hosts", parse_authority, host)


def _is_name(text: str) -> bool:
    try:
        Name.parse(text)
    except NameInvalid:
        return False
    return True


def _auth_errors(key: str, auth: Auth) -> Iterator[tuple[str, str]]:
    if auth.type == "basic" and not auth.username:
        yield f"{key}.username", "is required by auth.type basic"
    if auth.type == "basic" and ":" in auth.username:
        yield f"{key}.username", "must not contain a colon (RFC 7617)"
    if auth.type in {"basic", "bearer"} and not auth.password:
        yield f"{key}.password", f"is required by auth.type {auth.type}"
    if auth.type == "bearer" and not re.fullmatch(r"[!-~]*", auth.password.reveal()):
        yield f"{key}.password", "must be printable ASCII without spaces, which is what a bearer token consists of"


def _check(key: str, check: Callable[[str], object], text: str) -> Iterator[tuple[str, str]]:
    """Yield an error when `check` raises ValueError."""
    try:
        check(text)
    except ValueError as exc:
        yield key, str(exc)

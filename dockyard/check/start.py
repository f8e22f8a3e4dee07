"""Everything that the server needs at its start, looked at without taking it: no file is written, nothing is sent.

What has an error in the settings has its default there, and is not looked at.
"""

import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from dockyard.access.audit import look_at_audit_output
from dockyard.check.access import find_all as find_access_findings
from dockyard.check.findings import Finding, Severity, error, note, ok, warning
from dockyard.config.access import explain
from dockyard.config.loader import LoadedSettings
from dockyard.config.settings import AccessSettings, Settings, StorageSettings, Upstream
from dockyard.first_pull import describe_address
from dockyard.preconditions import (
    MAX_CONNECTIONS,
    CannotStart,
    check_bucket_settings,
    check_storage_directory,
    find_connection_limit,
    find_listen_address,
    find_server,
    find_start_warnings,
)
from dockyard.upstream.errors import UpstreamError
from dockyard.upstream.keychain import Keychain
from dockyard.workers.port_users import is_listening


def find_all(loaded: LoadedSettings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what was found: settings, audit log, storage directory, bucket, address, open files, keychain, access."""
    settings = loaded.settings
    for text in loaded.errors:
        yield Finding(Severity.ERROR, text, is_setting=True)
    if not loaded.errors:
        yield ok("settings: no errors")
    access = AccessSettings() if loaded.is_wrong("access") else settings.access
    usable = attrs.evolve(settings, upstreams=tuple(loaded.usable_upstreams), access=access)
    for found in find_start_warnings(usable, environ):
        details = " ".join(f"{name}={_format(value)}" for name, value in found.fields.items())
        yield warning(f"{found.event}{f' ({details})' if details else ''}")
    if settings.access.audit and not loaded.is_wrong("access.audit"):
        yield _check_audit_log(settings.access)
    server = None
    if not (loaded.is_wrong("storage.directory") or loaded.is_wrong("storage.prefix")):
        try:
            server = find_server(settings.storage.directory)
        except CannotStart as exc:
            yield error(str(exc))
        yield from _check_storage(settings.storage, server)
    if not loaded.is_wrong("storage"):
        try:
            check_bucket_settings(settings.storage)
        except CannotStart as exc:
            yield error(str(exc))
    if not (loaded.is_wrong("server.host") or loaded.is_wrong("server.port")):
        yield from _check_address(settings, server)
    yield from _check_descriptors()
    yield from _check_keychain(loaded.usable_upstreams, environ)
    yield from find_access_findings(loaded)


def _check_audit_log(access: AccessSettings) -> Finding:
    try:
        look_at_audit_output(access)
    except OSError as exc:
        reason = explain(exc, Path(access.audit), is_writing=True)
        return error(f"access.audit: {access.audit} cannot be opened: {reason}")
    return ok(f"access.audit: {access.audit} can be written")


def _check_storage(storage: StorageSettings, server: int | None) -> Iterator[Finding]:
    directory = storage.directory
    try:
        problem = check_storage_directory(storage)
    except CannotStart as exc:
        yield error(str(exc))
    else:
        if problem:
            yield warning(problem)
        else:
            yield ok(f"storage.directory: {directory} {'can be written' if directory.is_dir() else 'can be made'}")
    if server is not None:
        process = f" (process {server})" if server else ""
        yield note(f"a Dockyard{process} runs with {directory}: a second one cannot start until it is stopped")


def _check_address(settings: Settings, server: int | None) -> Iterator[Finding]:
    host, port = settings.server.host, settings.server.port
    try:
        find_listen_address(host, port)
    except CannotStart as exc:
        is_used = isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EADDRINUSE
        if is_used and server is not None and is_listening(server, port) is not False:
            yield note(f"server.port: port {port} is in use by the Dockyard that runs")
        else:
            yield error(str(exc))
    else:
        yield ok(f"server.host, server.port: {describe_address(settings.server)} can be listened on")


def _check_descriptors() -> Iterator[Finding]:
    limit, connections = find_connection_limit()
    if connections < MAX_CONNECTIONS:
        yield warning(
            f"open files: the hard limit is {limit}, which is enough for {connections} connections of each worker "
            f"instead of {MAX_CONNECTIONS}: raise it (systemd: LimitNOFILE=65536, docker run: --ulimit nofile=65536, "
            "a shell: ulimit -n 65536)"
        )
    else:
        yield ok(f"open files: {connections} connections of each worker")


def _check_keychain(upstreams: Sequence[Upstream], environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield where the login of each upstream comes from that uses the Docker keychain. No helper is run.

    Why one has none is a warning of the start.
    """
    keychain = Keychain(environ)
    for upstream in upstreams:
        if upstream.auth.type != "keychain":
            continue
        with contextlib.suppress(UpstreamError):
            yield note(f"upstream {upstream.prefix}: login: {keychain.find_source(upstream.origin.authority)}")


def _format(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

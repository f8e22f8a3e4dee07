"""`dockyard check --connect`: asks each upstream, the bucket and issuers of tokens, as the server would. Blocking."""

import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dockyard.access.jwks import check_keys, has_url
from dockyard.check.findings import Finding, error, ok, warning
from dockyard.config.loader import LoadedSettings
from dockyard.config.settings import JwtIssuer, Settings, StorageSettings, Upstream
from dockyard.errors import RegistryError
from dockyard.s3.store import S3Store
from dockyard.upstream.circuit_breaker import CircuitBreaker
from dockyard.upstream.client import RegistryClient
from dockyard.upstream.keychain import Keychain

MAX_THREADS = 16


def find_all(loaded: LoadedSettings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what the upstreams, the issuers of tokens and the bucket respond, in the order of the settings."""
    settings, keychain = loaded.settings, Keychain(environ)
    with tempfile.TemporaryDirectory(prefix="dockyard-check-") as directory, ThreadPoolExecutor(MAX_THREADS) as pool:
        yield from pool.map(
            lambda upstream: _ask(upstream, settings, keychain, Path(directory)), loaded.usable_upstreams
        )
    if not loaded.is_wrong("access"):
        yield from (_read_keys(issuer) for issuer in settings.access.jwt if has_url(issuer))
    if settings.storage.bucket and not loaded.is_wrong("storage"):
        yield from _ask_bucket(settings.storage, environ)


def _ask(upstream: Upstream, settings: Settings, keychain: Keychain, directory: Path) -> Finding:
    registry = RegistryClient(upstream, settings.upstream, keychain, CircuitBreaker(directory, upstream.prefix))
    name = f"upstream {upstream.prefix} ({upstream.origin})"
    try:
        return ok(f"{name}: {registry.check_api()}")
    except RegistryError as exc:
        return error(f"{name}: {_describe(exc)}")
    finally:
        registry.close()


def _read_keys(issuer: JwtIssuer) -> Finding:
    name = f"keys of the issuer {issuer.name} ({issuer.jwks})"
    try:
        return ok(f"{name}: {check_keys(issuer)} for signatures")
    except ValueError as exc:
        return error(f"{name}: {exc}")


def _describe(exc: RegistryError) -> str:
    """The message, then the stage, the host and the system's error in parentheses, then what to do."""
    if exc.details is None:
        return exc.message
    parts = (
        f"while {exc.details.stage}" if exc.details.stage else "",
        "" if exc.details.host in exc.details.error else exc.details.host,
        exc.details.error,
        f"login: {exc.details.credentials}" if exc.details.credentials else "",
    )
    cure = f": {exc.details.cure}" if exc.details.cure else ""
    return f"{exc.message} ({'; '.join(filter(None, parts))}){cure}"


def _ask_bucket(storage: StorageSettings, environ: Mapping[str, str]) -> Iterator[Finding]:
    name = f"bucket {storage.bucket} at {storage.service}"
    try:
        store = S3Store(storage, environ)
    except ValueError:
        return  # an error at the start, which is reported as such
    problems = store.check()
    for problem in problems:
        yield error(f"{name}: {problem}")
    if problems:
        return
    yield ok(f"{name}: objects can be read and written")
    if reason := store.find_old_versions():
        yield warning(f"{name}: {reason}")

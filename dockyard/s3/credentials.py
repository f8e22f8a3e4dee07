"""Credentials for the S3 service: from the settings, or from the environment that the process runs in. Blocking.

Without keys in the settings, the first source that is configured is used, in the order of the AWS tools: environment
variables, the shared AWS files, web identity (IRSA), the role of a container (ECS, EKS Pod Identity). If none is
configured, the role of the machine (EC2, IMDSv2). If the source that is configured fails, no other one is used: its
credentials would be those of another principal. A source of which only a part is set is configured, and fails.

Requests are sent by the providers of minio-py over connections with timeouts. Profiles with `role_arn`,
`web_identity_token_file` or `credential_process` are added in `profiles`.

Credentials that expire are renewed five minutes before; while that fails, they are used until they expire. A failure is
cached for some seconds: a machine outside AWS must not wait for a timeout in each request.
"""

import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import IamAwsProvider

from dockyard.config.settings import StorageSettings
from dockyard.http1.connections import use_strict_pools
from dockyard.s3.profiles import IncompletePair, Profiles, assume_role_with_token, get_pair, sts_url

RENEWAL_MARGIN = timedelta(minutes=5)
MIN_RENEWAL_INTERVAL_S = 10.0
# Credentials without an expiration are read again this often: files change.
RELOAD_INTERVAL_S = 60.0
REQUEST_TIMEOUT = urllib3.Timeout(connect=1.0, read=5.0)

CredentialSource = Callable[[], Credentials]

log = structlog.get_logger()


class NoCredentials(Exception):
    """There are no credentials. The message names the source that failed."""


class CredentialChain:
    """The current credentials. For many threads: one renews them; the others wait only if there are no valid ones."""

    def __init__(self, settings: StorageSettings, environ: Mapping[str, str]) -> None:
        self._configured = _configured_credentials(settings)
        self._environ = environ
        self._region = settings.region
        self._lock = threading.Lock()
        self._current: Credentials | None = None
        self._fetched_at = float("-inf")
        self._error = ""

    def get(self) -> Credentials:
        """Return the credentials to sign with; blocks while they are fetched. Raises NoCredentials."""
        if self._configured:
            return self._configured
        current = self._current
        if current and not self._is_renewal_due(current):
            return current
        if current and not _is_expired(current):
            if not self._lock.acquire(blocking=False):
                return current  # another thread is renewing them
        else:
            self._lock.acquire()
        try:
            return self._renew_if_due()
        finally:
            self._lock.release()

    def renew(self) -> bool:
        """Fetch other credentials, because the service rejected the current ones; return whether there are others.

        False also when they were fetched less than MIN_RENEWAL_INTERVAL_S ago.
        """
        if self._configured:
            return False
        with self._lock:
            previous = self._current
            if not self._was_fetched_before(MIN_RENEWAL_INTERVAL_S):
                return False
            try:
                self._current = self._fetch()
            except NoCredentials:
                return False
            return self._current != previous

    def _renew_if_due(self) -> Credentials:
        current = self._current
        if current and not self._is_renewal_due(current):
            return current  # another thread has renewed them
        is_usable = current is not None and not _is_expired(current)
        if not self._was_fetched_before(MIN_RENEWAL_INTERVAL_S):
            if current and is_usable:
                return current
            if self._error:
                raise NoCredentials(self._error)
        try:
            self._current = self._fetch()
        except NoCredentials as exc:
            if current is None or not is_usable:
                raise
            log.warning("cannot renew the S3 credentials, using the current ones until they expire", error=str(exc))
            return current
        return self._current

    def _was_fetched_before(self, interval_s: float) -> bool:
        return time.monotonic() - self._fetched_at >= interval_s

    def _is_renewal_due(self, credentials: Credentials) -> bool:
        if credentials.expiration is None:
            return self._was_fetched_before(RELOAD_INTERVAL_S)
        return _expiration(credentials) - datetime.now(UTC) < RENEWAL_MARGIN

    def _fetch(self) -> Credentials:
        self._fetched_at = time.monotonic()
        self._error = ""
        pools = urllib3.PoolManager(timeout=REQUEST_TIMEOUT, retries=False)
        use_strict_pools(pools)
        name, source = _choose_source(self._environ, self._region, pools)
        try:
            return source()
        except Exception as exc:  # noqa: BLE001 - of urllib3, json, minio-py or reading a file
            # Else only the type of the exception: messages contain URLs with tokens.
            reason = str(exc) if isinstance(exc, IncompletePair) else type(exc).__name__
            self._error = (
                f"{name} provided none ({reason}): correct that, or set storage.access_key and storage.secret_key"
            )
            raise NoCredentials(self._error) from None
        finally:
            pools.clear()


def _configured_credentials(settings: StorageSettings) -> Credentials | None:
    if not (settings.access_key and settings.secret_key):
        return None
    return Credentials(access_key=settings.access_key, secret_key=settings.secret_key.reveal())


def _expiration(credentials: Credentials) -> datetime:
    """Return the expiration with its time zone, which minio-py leaves out: UTC."""
    if credentials.expiration is None:
        return datetime.max.replace(tzinfo=UTC)
    return credentials.expiration.replace(tzinfo=UTC)


def _is_expired(credentials: Credentials) -> bool:
    return _expiration(credentials) <= datetime.now(UTC)


def _choose_source(environ: Mapping[str, str], region: str, pools: urllib3.PoolManager) -> tuple[str, CredentialSource]:
    """Return the first source that is configured, else the role of the machine; and its name for messages."""
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or region
    if any(environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")):
        return "the environment", lambda: _from_environment(environ)
    profiles = Profiles(environ, region, pools)
    if profiles.has_profile:
        return f"profile {profiles.profile} of the AWS files", lambda: profiles.get(profiles.profile)
    if environ.get("AWS_WEB_IDENTITY_TOKEN_FILE") or environ.get("AWS_ROLE_ARN"):
        return "web identity", lambda: _from_web_identity(environ, region, pools)
    if url := _container_url(environ):
        return "the role of the container", lambda: _from_container(url, _container_token(environ), pools)
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return "the environment", lambda: _from_environment(environ)
    endpoint = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "").rstrip("/") or None
    return "the role of the machine (EC2)", IamAwsProvider(custom_endpoint=endpoint, http_client=pools).retrieve


def _from_environment(environ: Mapping[str, str]) -> Credentials:
    access_key, secret_key = get_pair(environ, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return Credentials(access_key, secret_key, environ.get("AWS_SESSION_TOKEN") or None)


def _from_web_identity(environ: Mapping[str, str], region: str, pools: urllib3.PoolManager) -> Credentials:
    file, role = get_pair(environ, "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN")
    session = environ.get("AWS_ROLE_SESSION_NAME", "")
    return assume_role_with_token(file, role, session, sts_url(environ, region), pools)


def _container_url(environ: Mapping[str, str]) -> str:
    """Return the URL of a container's credentials: ECS sets a path, EKS Pod Identity and others the whole URL."""
    if path := environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        return f"http://169.254.170.2/{path.lstrip('/')}"
    return environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")


def _container_token(environ: Mapping[str, str]) -> str:
    """Return the authorization token. Its file is read each time, because Kubernetes replaces the token in it."""
    if file := environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
        return Path(file).read_text("utf-8").strip()
    return environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")


def _from_container(url: str, token: str, pools: urllib3.PoolManager) -> Credentials:
    """Fetch the credentials of a container.

    Only `fetch` of the provider is used: otherwise it would read the environment on its own, and use the token as the
    name of a file.
    """
    headers: Any = {"Authorization": token} if token else None
    return IamAwsProvider(http_client=pools).fetch(url, headers=headers)

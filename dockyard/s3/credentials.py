"""Who we are to the store: fixed keys, or what the machine gives us.

Without keys in the settings, the first of these that is set up is asked, as the AWS tools do: environment, the shared
files of AWS, web identity (IRSA), a container's role (ECS, EKS Pod Identity). Where none is, the machine's role (EC2,
IMDSv2) may be there. One that is set up and fails is not passed over: the next one would be somebody else.

minio-py's providers do the asking, over connections with time limits; profiles with `role_arn`,
`web_identity_token_file` or `credential_process` are added here.

What has an end is asked for anew five minutes before it; while that fails, what is still valid is used. That there is
nothing is remembered for a while as well: a machine outside AWS must not wait for one at every request.
"""

import ssl
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
from dockyard.s3.profiles import Profiles, assume_with_token, sts_address

MARGIN = timedelta(minutes=5)
RENEWED_EVERY_S = 10.0
LASTING_FOR_S = 60.0
LIMITS = urllib3.Timeout(connect=1.0, read=5.0)

Ask = Callable[[], Credentials]

log = structlog.get_logger()


class NoCredentials(Exception):
    """Nobody gave us any. The message says who was asked."""


class CredentialChain:
    """The credentials for now. For many threads: one asks, and the others wait only if there is nothing valid."""

    def __init__(self, settings: StorageSettings, environ: Mapping[str, str]) -> None:
        self._fixed = _fixed(settings)
        self._environ = environ
        self._region = settings.region
        self._lock = threading.Lock()
        self._found: Credentials | None = None
        self._asked_at = float("-inf")
        self._error = ""

    def find(self) -> Credentials:
        """The credentials to sign with. Raises NoCredentials."""
        if self._fixed:
            return self._fixed
        found = self._found
        if found and not self._is_due(found):
            return found
        if found and not _is_over(found):
            if not self._lock.acquire(blocking=False):
                return found  # another thread is asking
        else:
            self._lock.acquire()
        try:
            return self._find_anew()
        finally:
            self._lock.release()

    def renew(self) -> bool:
        """The store refused these: get others. False when there are none, or it was tried a moment ago."""
        if self._fixed:
            return False
        with self._lock:
            before = self._found
            if not self._may_ask(RENEWED_EVERY_S):
                return False
            try:
                self._found = self._ask()
            except NoCredentials:
                return False
            return self._found != before

    def _find_anew(self) -> Credentials:
        before = self._found
        if before and not self._is_due(before):
            return before  # another thread was faster
        is_usable = before is not None and not _is_over(before)
        if not self._may_ask(RENEWED_EVERY_S):
            if before and is_usable:
                return before
            if self._error:
                raise NoCredentials(self._error)
        try:
            self._found = self._ask()
        except NoCredentials as exc:
            if before is None or not is_usable:
                raise
            log.warning("S3 credentials could not be renewed yet", error=str(exc))
            return before
        return self._found

    def _may_ask(self, every_s: float) -> bool:
        return time.monotonic() - self._asked_at >= every_s

    def _is_due(self, found: Credentials) -> bool:
        if found.expiration is None:
            return self._may_ask(LASTING_FOR_S)  # keys in files change too
        return _end_of(found) - datetime.now(UTC) < MARGIN

    def _ask(self) -> Credentials:
        self._asked_at = time.monotonic()
        self._error = ""
        pools = urllib3.PoolManager(timeout=LIMITS, retries=False, ssl_context=ssl.create_default_context())
        place, ask = _place(self._environ, self._region, pools)
        try:
            return ask()
        except Exception as exc:  # noqa: BLE001 - it may be any of urllib3's, json's and the files'
            # Only the kind: messages hold URLs with tokens in them.
            self._error = (
                f"{place} gave none ({type(exc).__name__}); set that right, or storage.access_key and secret_key"
            )
            raise NoCredentials(self._error) from None
        finally:
            pools.clear()


def _fixed(settings: StorageSettings) -> Credentials | None:
    if not (settings.access_key and settings.secret_key):
        return None
    return Credentials(access_key=settings.access_key, secret_key=settings.secret_key.reveal())


def _end_of(found: Credentials) -> datetime:
    """minio-py keeps it in UTC without saying so."""
    if found.expiration is None:
        return datetime.max.replace(tzinfo=UTC)
    return found.expiration.replace(tzinfo=UTC)


def _is_over(found: Credentials) -> bool:
    return _end_of(found) <= datetime.now(UTC)


def _place(environ: Mapping[str, str], region: str, pools: urllib3.PoolManager) -> tuple[str, Ask]:
    """Where credentials are to be had: the first place that is set up, else IMDS."""
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or region
    if environ.get("AWS_ACCESS_KEY_ID"):
        return "the environment", lambda: _from_environment(environ)
    files = Profiles(environ, region, pools)
    if files.has_profile:
        return f"profile {files.profile} of the AWS files", lambda: files.find(files.profile)
    if environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return "web identity", lambda: _from_web_identity(environ, region, pools)
    if address := _container_address(environ):
        return "the role of the container", lambda: _fetch(address, _container_token(environ), pools)
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return "the environment", lambda: _from_environment(environ)
    endpoint = environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "").rstrip("/") or None
    return "the role of the machine (EC2)", IamAwsProvider(custom_endpoint=endpoint, http_client=pools).retrieve


def _from_environment(environ: Mapping[str, str]) -> Credentials:
    return Credentials(
        access_key=environ["AWS_ACCESS_KEY_ID"],
        secret_key=environ["AWS_SECRET_ACCESS_KEY"],
        session_token=environ.get("AWS_SESSION_TOKEN") or None,
    )


def _from_web_identity(environ: Mapping[str, str], region: str, pools: urllib3.PoolManager) -> Credentials:
    return assume_with_token(
        environ["AWS_WEB_IDENTITY_TOKEN_FILE"],
        environ["AWS_ROLE_ARN"],
        environ.get("AWS_ROLE_SESSION_NAME", ""),
        sts_address(environ, region),
        pools,
    )


def _container_address(environ: Mapping[str, str]) -> str:
    """ECS gives a path on its own address, EKS Pod Identity and others a whole URL."""
    if path := environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
        return f"http://169.254.170.2/{path.lstrip('/')}"
    return environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI", "")


def _container_token(environ: Mapping[str, str]) -> str:
    """The file is read every time: Kubernetes replaces the token in it."""
    if file := environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
        return Path(file).read_text("utf-8").strip()
    return environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")


def _fetch(address: str, token: str, pools: urllib3.PoolManager) -> Credentials:
    """minio-py would read its own idea of the environment, and take the token for the name of its file."""
    headers: Any = {"Authorization": token} if token else None
    return IamAwsProvider(http_client=pools).fetch(address, headers=headers)

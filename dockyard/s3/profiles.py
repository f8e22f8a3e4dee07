"""The shared AWS files: profiles with keys, with a role to assume, or with a program that prints credentials."""

import configparser
import json
import shlex
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import structlog
import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import AssumeRoleProvider, WebIdentityProvider

PROCESS_TIMEOUT_S = 20.0
MAX_ASSUMED_ROLES = 4
# A section with any of them provides credentials, or fails.
_CREDENTIAL_KEYS = {
    *("aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
    *("role_arn", "web_identity_token_file", "credential_process"),
}

log = structlog.get_logger()


class IncompletePair(Exception):
    """Only one of two values is set that belong together. The message names both, and contains no value."""


class Profiles:
    """The profiles of the shared AWS files. Entries of `credentials` take precedence over those of `config`."""

    def __init__(self, environ: Mapping[str, str], region: str, pools: urllib3.PoolManager) -> None:
        home = Path(environ.get("HOME") or "/nonexistent") / ".aws"
        self.profile = environ.get("AWS_PROFILE") or environ.get("AWS_DEFAULT_PROFILE") or "default"
        self._environ = environ
        self._region = region
        self._pools = pools
        self._credentials = _read(Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"))
        self._config = _read(Path(environ.get("AWS_CONFIG_FILE") or home / "config"))

    @property
    def has_profile(self) -> bool:
        is_chosen = self._environ.get("AWS_PROFILE") or self._environ.get("AWS_DEFAULT_PROFILE")
        return bool(is_chosen or _CREDENTIAL_KEYS.intersection(self._section(self.profile)))

    def get(self, profile: str, depth: int = 0) -> Credentials:
        """Return the credentials of a profile; a role is assumed with those of its source profile.

        Raises KeyError and ValueError for incomplete and circular profiles, and the exceptions of the providers.
        """
        section = self._section(profile)
        if depth > MAX_ASSUMED_ROLES:
            raise ValueError("circular source profiles")
        role, session = section.get("role_arn", ""), section.get("role_session_name", "") or "dockyard"
        sts = sts_url(self._environ, section.get("region") or self._region)
        if role and (file := section.get("web_identity_token_file")):
            return assume_role_with_token(file, role, session, sts, self._pools)
        if role and (source := section.get("source_profile")) and (source != profile or depth == 0):
            source_credentials = self._keys(source) if source == profile else self.get(source, depth + 1)
            return self._assume_role(role, session, sts, source_credentials, section.get("external_id"))
        if command := section.get("credential_process"):
            return _run(command)
        return self._keys(profile)

    def _assume_role(
        self, role: str, session: str, sts: str, source_credentials: Credentials, external_id: str | None
    ) -> Credentials:
        if source_credentials.session_token:
            raise ValueError("minio-py cannot assume a role with temporary credentials")
        provider = AssumeRoleProvider(
            sts_endpoint=sts,
            access_key=source_credentials.access_key,
            secret_key=source_credentials.secret_key,
            region=self._region,
            role_arn=role,
            role_session_name=session,
            external_id=external_id,
            http_client=self._pools,
        )
        return provider.retrieve()

    def _keys(self, profile: str) -> Credentials:
        """Return the keys of the file that has any: a pair is never made of both files. Raises IncompletePair."""
        in_config, in_credentials = self._sections(profile)
        names = ("aws_access_key_id", "aws_secret_access_key")
        section = in_credentials if any(in_credentials.get(name) for name in names) else in_config
        access_key, secret_key = get_pair(section, *names)
        return Credentials(access_key, secret_key, section.get("aws_session_token") or None)

    def _section(self, profile: str) -> dict[str, str]:
        in_config, in_credentials = self._sections(profile)
        return in_config | in_credentials

    def _sections(self, profile: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return the section of a profile in `config` and that in `credentials`, empty where there is none."""
        name = "default" if profile == "default" else f"profile {profile}"
        in_config = dict(self._config[name]) if name in self._config else {}
        return in_config, dict(self._credentials[profile]) if profile in self._credentials else {}


def get_pair(values: Mapping[str, str], first: str, second: str) -> tuple[str, str]:
    """Return two values that belong together. Raises IncompletePair when one is missing or empty."""
    missing = [name for name in (first, second) if not values.get(name)]
    if missing:
        raise IncompletePair(f"{' and '.join(missing)} not set, {first} and {second} belong together")
    return values[first], values[second]


def _read(file: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(default_section="\0", strict=False)
    try:
        parser.read(file, "utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError):
        log.warning("an AWS file cannot be read and is ignored", file=file.name)
        return configparser.RawConfigParser(default_section="\0")
    return parser


def _run(command: str) -> Credentials:
    """Run a program that prints credentials as JSON (`credential_process`)."""
    done = subprocess.run(  # noqa: S603 - the command is from a file of the operator
        shlex.split(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=PROCESS_TIMEOUT_S, check=True
    )
    output = json.loads(done.stdout)
    expiration = output.get("Expiration")
    return Credentials(
        access_key=output["AccessKeyId"],
        secret_key=output["SecretAccessKey"],
        session_token=output.get("SessionToken"),
        expiration=datetime.fromisoformat(expiration) if expiration else None,
    )


def assume_role_with_token(file: str, role: str, session: str, sts: str, pools: urllib3.PoolManager) -> Credentials:
    """Return the credentials of a role for the web identity token in a file, which is read each time."""
    token = Path(file).read_text("utf-8").strip()
    provider = WebIdentityProvider(
        jwt_provider_func=lambda: {"access_token": token, "expires_in": "0"},
        sts_endpoint=sts,
        role_arn=role,
        role_session_name=session or "dockyard",
        http_client=pools,
    )
    return provider.retrieve()


def sts_url(environ: Mapping[str, str], region: str) -> str:
    """Return the URL of the AWS service that assumes roles (STS)."""
    china = ".cn" if region.startswith("cn-") else ""
    return environ.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{region}.amazonaws.com{china}"

"""The shared files of AWS: profiles with keys, with roles to assume, or with a program to run."""

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

PROCESS_LIMIT_S = 20.0
MAX_ASSUMED_ROLES = 4
_GIVES = {"aws_access_key_id", "role_arn", "credential_process"}

log = structlog.get_logger()


class Profiles:
    """The shared files of AWS: `credentials` counts before `config`."""

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
        return bool(self._environ.get("AWS_PROFILE") or _GIVES.intersection(self._section(self.profile)))

    def find(self, profile: str, depth: int = 0) -> Credentials:
        """The credentials of a profile; a role is assumed with those of the profile that it names."""
        section = self._section(profile)
        if depth > MAX_ASSUMED_ROLES:
            raise ValueError("profiles that name each other")
        role, session = section.get("role_arn", ""), section.get("role_session_name", "") or "dockyard"
        sts = sts_address(self._environ, section.get("region") or self._region)
        if role and (file := section.get("web_identity_token_file")):
            return assume_with_token(file, role, session, sts, self._pools)
        if role and (source := section.get("source_profile")) and (source != profile or depth == 0):
            by = self._keys(source) if source == profile else self.find(source, depth + 1)
            return self._assume(role, session, sts, by, section.get("external_id"))
        if command := section.get("credential_process"):
            return _run(command)
        return self._keys(profile)

    def _assume(self, role: str, session: str, sts: str, by: Credentials, external_id: str | None) -> Credentials:
        if by.session_token:
            raise ValueError("minio-py assumes roles with lasting keys only")
        provider = AssumeRoleProvider(
            sts_endpoint=sts,
            access_key=by.access_key,
            secret_key=by.secret_key,
            region=self._region,
            role_arn=role,
            role_session_name=session,
            external_id=external_id,
            http_client=self._pools,
        )
        return provider.retrieve()

    def _keys(self, profile: str) -> Credentials:
        section = self._section(profile)
        return Credentials(
            access_key=section["aws_access_key_id"],
            secret_key=section["aws_secret_access_key"],
            session_token=section.get("aws_session_token") or None,
        )

    def _section(self, profile: str) -> dict[str, str]:
        in_config = "default" if profile == "default" else f"profile {profile}"
        section = dict(self._config[in_config]) if in_config in self._config else {}
        return section | (dict(self._credentials[profile]) if profile in self._credentials else {})


def _read(file: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(default_section="\0", strict=False)
    try:
        parser.read(file, "utf-8")
    except (configparser.Error, OSError, UnicodeDecodeError):
        log.warning("an AWS file cannot be read and is passed over", file=file.name)
        return configparser.RawConfigParser(default_section="\0")
    return parser


def _run(command: str) -> Credentials:
    """A program that prints credentials (`credential_process`)."""
    done = subprocess.run(  # noqa: S603 - the operator wrote it into their own file
        shlex.split(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=PROCESS_LIMIT_S, check=True
    )
    said = json.loads(done.stdout)
    end = said.get("Expiration")
    return Credentials(
        access_key=said["AccessKeyId"],
        secret_key=said["SecretAccessKey"],
        session_token=said.get("SessionToken"),
        expiration=datetime.fromisoformat(end) if end else None,
    )


def assume_with_token(file: str, role: str, session: str, sts: str, pools: urllib3.PoolManager) -> Credentials:
    """The credentials of a role that a token in a file stands for. The token is read anew each time."""
    token = Path(file).read_text("utf-8").strip()
    provider = WebIdentityProvider(
        jwt_provider_func=lambda: {"access_token": token, "expires_in": "0"},
        sts_endpoint=sts,
        role_arn=role,
        role_session_name=session or "dockyard",
        http_client=pools,
    )
    return provider.retrieve()


def sts_address(environ: Mapping[str, str], region: str) -> str:
    """Where roles are assumed."""
    china = ".cn" if region.startswith("cn-") else ""
    return environ.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{region}.amazonaws.com{china}"

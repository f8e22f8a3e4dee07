"""Credentials: found in each source of AWS, renewed in time, and never shown."""

import contextlib
import datetime as dt
import json
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider

from dockyard.config.settings import StorageSettings
from dockyard.config.types import Secret
from dockyard.oci.reference import Digest
from dockyard.s3 import credentials
from dockyard.s3.credentials import CredentialChain, NoCredentials, _container_url
from dockyard.s3.errors import S3Error
from dockyard.s3.store import S3Store
from tests.s3.store.aws import TOKEN, FakeAws
from tests.s3.store.servers import ACCESS_KEY, SECRET_KEY, Server
from tests.s3.store.store_adapters import reader
from tests.support.busy_machine import EVENT_TIMEOUT_S

KINDS = ["irsa", "ecs", "eks", "ec2"]
SETTINGS = StorageSettings(bucket="cache", directory=Path("/tmp"))


@pytest.fixture
def aws() -> Iterator[FakeAws]:
    """A fake of the AWS services that provide credentials."""
    with contextlib.closing(FakeAws()) as aws:
        yield aws


@pytest.fixture
def _renew_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow a renewal at any time."""
    monkeypatch.setattr(credentials, "MIN_RENEWAL_INTERVAL_S", 0.0)


def chain(environ: dict[str, str]) -> CredentialChain:
    """Return a chain without keys in the settings."""
    return CredentialChain(SETTINGS, environ)


def write(home: Path, name: str, text: str) -> None:
    """Write one of the shared AWS files."""
    (home / ".aws").mkdir(exist_ok=True)
    (home / ".aws" / name).write_text(text)


def test_keys_of_the_settings_take_precedence(tmp_path: Path) -> None:
    """The environment is ignored."""
    settings = attrs.evolve(SETTINGS, access_key="ours", secret_key=Secret("secret"))
    assert CredentialChain(settings, {"AWS_ACCESS_KEY_ID": "other"}).get().access_key == "ours"


@pytest.mark.parametrize("kind", KINDS)
def test_roles_are_found(aws: FakeAws, tmp_path: Path, kind: str) -> None:
    """Web identity, containers and machines provide keys that expire."""
    found = chain(aws.environ(kind, tmp_path)).get()
    assert (found.access_key, found.secret_key, found.session_token) == (aws.key, aws.secret, aws.session)
    assert found.expiration is not None


def test_keys_of_the_environment_are_found() -> None:
    """With and without a session token."""
    environ = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    assert chain(environ).get().session_token is None
    assert chain(environ | {"AWS_SESSION_TOKEN": "session"}).get().session_token == "session"


@pytest.mark.parametrize(
    ("environ", "key"),
    [({}, "of-default"), ({"AWS_PROFILE": "other"}, "of-other"), ({"AWS_PROFILE": "config-only"}, "of-config")],
)
def test_profiles_are_found(tmp_path: Path, environ: dict[str, str], key: str) -> None:
    """In `credentials`, and in `config`, where their sections have other names. Secrets may have any characters."""
    write(
        tmp_path,
        "credentials",
        "[default]\naws_access_key_id = of-default\naws_secret_access_key = a%b=c\n"
        "[other]\naws_access_key_id = of-other\naws_secret_access_key = secret\naws_session_token = session\n",
    )
    write(
        tmp_path,
        "config",
        "[default]\nregion = eu-west-1\naws_access_key_id = wrong\n"
        "[profile config-only]\naws_access_key_id = of-config\naws_secret_access_key = secret\n",
    )
    assert chain({"HOME": str(tmp_path), **environ}).get().access_key == key


def test_a_credential_process_is_run(tmp_path: Path) -> None:
    """The program of a profile prints the credentials."""
    end = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat()
    output = {"Version": 1, "AccessKeyId": "of-program", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": end}
    (tmp_path / "output.json").write_text(json.dumps(output))
    program = f"{sys.executable} -c \"print(open('{tmp_path}/output.json').read())\""
    write(tmp_path, "config", f"[default]\ncredential_process = {program}\n")
    found = chain({"HOME": str(tmp_path)}).get()
    assert (found.access_key, found.session_token) == ("of-program", "t")
    assert found.expiration is not None


@pytest.mark.parametrize("how", ["source_profile = base", "web_identity_token_file = {home}/token"])
def test_a_profile_may_be_a_role(aws: FakeAws, tmp_path: Path, how: str) -> None:
    """The role is assumed with the keys of another profile, or with a token."""
    environ = {"HOME": str(tmp_path), "AWS_ENDPOINT_URL_STS": aws.url}
    (tmp_path / "token").write_text(TOKEN)
    write(tmp_path, "credentials", "[base]\naws_access_key_id = base\naws_secret_access_key = secret\n")
    role = "role_arn = arn:aws:iam::123456789012:role/dockyard"
    write(tmp_path, "config", f"[default]\n{role}\n{how.format(home=tmp_path)}\n")
    assert chain(environ).get().access_key == aws.key


def test_circular_profiles_are_rejected(tmp_path: Path) -> None:
    """They do not cause an endless loop."""
    role = "role_arn = arn:aws:iam::1:role/x"
    write(tmp_path, "config", f"[default]\n{role}\nsource_profile = b\n[profile b]\n{role}\nsource_profile = default\n")
    with pytest.raises(NoCredentials):
        chain({"HOME": str(tmp_path)}).get()


def test_the_first_configured_source_is_used(aws: FakeAws, tmp_path: Path) -> None:
    """The order is: environment, files, web identity, container, machine."""
    environ: dict[str, str] = {}
    expected = ["IMDS token", "container", "AssumeRoleWithWebIdentity"]
    for kind, request in zip(["ec2", "eks", "irsa"], expected, strict=True):
        environ |= aws.environ(kind, tmp_path)
        aws.requests.clear()
        chain(environ).get()
        assert aws.requests[0] == request
    write(tmp_path, "credentials", "[default]\naws_access_key_id = of-file\naws_secret_access_key = secret\n")
    assert chain(environ).get().access_key == "of-file"
    environ |= {"AWS_ACCESS_KEY_ID": "of-environment", "AWS_SECRET_ACCESS_KEY": "secret"}
    assert chain(environ).get().access_key == "of-environment"


def test_no_other_source_is_used_when_one_fails(aws: FakeAws, tmp_path: Path) -> None:
    """The role of the machine is another principal than that of the pod."""
    environ = aws.environ("ec2", tmp_path) | aws.environ("irsa", tmp_path)
    aws.status = 500
    with pytest.raises(NoCredentials, match="web identity"):
        chain(environ).get()
    assert aws.requests == ["AssumeRoleWithWebIdentity"]


def test_the_url_of_a_container_role_of_ecs() -> None:
    """ECS sets a path; the host is fixed."""
    assert _container_url({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/x"}) == "http://169.254.170.2/v2/x"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("_renew_at_once")
def test_keys_are_renewed_before_they_expire(aws: FakeAws, tmp_path: Path, kind: str) -> None:
    """Five minutes before, and not earlier."""
    credential_chain = chain(aws.environ(kind, tmp_path))
    credential_chain.get()
    aws.key = "next"
    assert credential_chain.get().access_key == "key-of-the-role"
    credential_chain = chain(aws.environ(kind, tmp_path))
    aws.lasts_s = 299
    credential_chain.get()
    aws.key = "next but one"
    assert credential_chain.get().access_key == "next but one"


@pytest.mark.usefixtures("_renew_at_once")
def test_valid_keys_are_used_while_they_cannot_be_renewed(aws: FakeAws, tmp_path: Path) -> None:
    """A short outage of the source has no effect."""
    credential_chain = chain(aws.environ("eks", tmp_path))
    aws.lasts_s = 100
    first = credential_chain.get()
    aws.status = 500
    assert credential_chain.get() == first
    aws.status, aws.key = 200, "next"
    assert credential_chain.get().access_key == "next"


@pytest.mark.usefixtures("_renew_at_once")
def test_expired_keys_are_not_used(aws: FakeAws, tmp_path: Path) -> None:
    """The S3 service would reject them."""
    credential_chain = chain(aws.environ("eks", tmp_path))
    aws.lasts_s = -1
    credential_chain.get()
    aws.status = 500
    with pytest.raises(NoCredentials):
        credential_chain.get()


def test_a_failure_is_cached(aws: FakeAws, tmp_path: Path) -> None:
    """A machine outside AWS must not wait for a timeout in each request."""
    credential_chain = chain(aws.environ("ec2", tmp_path))
    aws.status = 404
    for _ in range(3):
        with pytest.raises(NoCredentials, match="EC2"):
            credential_chain.get()
    assert aws.requests == ["IMDS token"]


def test_one_thread_fetches_the_keys_for_all(aws: FakeAws, tmp_path: Path) -> None:
    """The others wait for it."""
    credential_chain = chain(aws.environ("eks", tmp_path))
    with ThreadPoolExecutor(16) as threads:
        assert len({found.access_key for found in threads.map(lambda _: credential_chain.get(), range(64))}) == 1
    assert aws.requests == ["container"]


def test_an_error_does_not_contain_the_token(aws: FakeAws, tmp_path: Path) -> None:
    """The exceptions of minio-py contain the whole URL with the token."""
    aws.status = 403
    with pytest.raises(NoCredentials) as caught:
        chain(aws.environ("irsa", tmp_path)).get()
    assert TOKEN not in f"{caught.value}{caught.value.__cause__}"
    assert caught.value.__suppress_context__


@pytest.mark.usefixtures("_renew_at_once")
def test_rejected_keys_are_renewed_at_once(aws: FakeAws, minio: Server, tmp_path: Path, prefix: str) -> None:
    """Keys that are revoked before they expire are replaced, and the request is retried."""
    settings = attrs.evolve(minio.settings(prefix), access_key="")
    with contextlib.closing(S3Store(settings, aws.environ("eks", tmp_path))) as s3:
        aws.session = None
        with pytest.raises(S3Error) as caught:
            s3.open_blob(Digest.of(b"x"))
        assert caught.value.code == "InvalidAccessKeyId"
        aws.key, aws.secret = ACCESS_KEY, SECRET_KEY
        assert s3.open_blob(Digest.of(b"x")) is None


def test_session_tokens_are_signed(minio: Server, tmp_path: Path, prefix: str) -> None:
    """Keys from the STS of MinIO work for every kind of request, and in presigned URLs."""
    user = prefix.strip("/")
    admin = MinioAdmin(endpoint=minio.host, credentials=StaticProvider(ACCESS_KEY, SECRET_KEY), secure=False)
    admin.user_add(user, "secret-of-the-user")
    admin.policy_set("readwrite", user=user)
    write(tmp_path, "credentials", f"[base]\naws_access_key_id={user}\naws_secret_access_key=secret-of-the-user\n")
    role = "role_arn = arn:aws:iam::123456789012:role/dockyard"
    write(tmp_path, "config", f"[default]\n{role}\nsource_profile = base\n")
    environ = {"HOME": str(tmp_path), "AWS_ENDPOINT_URL_STS": f"http://{minio.host}"}
    body = b"layer"
    with contextlib.closing(S3Store(attrs.evolve(minio.settings(prefix), access_key=""), environ)) as s3:
        assert s3.check() == []
        s3.publish_blob(Digest.of(body), len(body), reader([body]))
        found = s3.open_blob(Digest.of(body))
        assert found is not None
        assert found.read(100) == body
        found.close()
        with urllib.request.urlopen(s3.presign_blob(Digest.of(body), 60), timeout=EVENT_TIMEOUT_S) as response:  # noqa: S310
            assert response.read() == body


@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        (["AWS_ACCESS_KEY_ID"], "AWS_SECRET_ACCESS_KEY not set"),
        (["AWS_SECRET_ACCESS_KEY"], "AWS_ACCESS_KEY_ID not set"),
        (["AWS_SESSION_TOKEN"], "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY not set"),
        (["AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"], "AWS_SECRET_ACCESS_KEY not set"),
        (["AWS_ROLE_ARN"], "AWS_WEB_IDENTITY_TOKEN_FILE not set"),
        (["AWS_WEB_IDENTITY_TOKEN_FILE"], "AWS_ROLE_ARN not set"),
    ],
)
@pytest.mark.parametrize("others", [None, ""], ids=["unset", "empty"])
def test_half_a_pair_in_the_environment_is_an_error(
    aws: FakeAws, tmp_path: Path, kept: list[str], missing: str, others: str | None
) -> None:
    """The next source would be another principal. The error names the variable that is missing, and no value."""
    names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
    names += ["AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"]
    environ = aws.environ("ec2", tmp_path)
    environ |= dict.fromkeys(kept, "canary") | {name: others for name in names if name not in kept and others == ""}
    with pytest.raises(NoCredentials, match=missing) as caught:
        chain(environ).get()
    assert "canary" not in str(caught.value)
    assert aws.requests == []


@pytest.mark.parametrize("name", ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"])
@pytest.mark.parametrize("file", ["credentials", "config"])
def test_half_a_pair_in_a_file_is_an_error(aws: FakeAws, tmp_path: Path, name: str, file: str) -> None:
    """Neither the role of the machine nor the other file completes it."""
    write(tmp_path, file, f"[default]\n{name} = canary\n")
    with pytest.raises(NoCredentials, match="belong together"):
        chain(aws.environ("ec2", tmp_path)).get()
    assert aws.requests == []


def test_a_pair_is_never_made_of_two_files(tmp_path: Path) -> None:
    """The keys of `credentials` are used without the secret and the session token of `config`."""
    write(tmp_path, "config", "[default]\naws_access_key_id=b\naws_secret_access_key=b\naws_session_token=b\n")
    write(tmp_path, "credentials", "[default]\naws_access_key_id=a\naws_secret_access_key=a\n")
    found = chain({"HOME": str(tmp_path)}).get()
    assert (found.access_key, found.secret_key, found.session_token) == ("a", "a", None)
    write(tmp_path, "credentials", "[default]\naws_access_key_id=a\n")
    with pytest.raises(NoCredentials, match="aws_secret_access_key not set"):
        chain({"HOME": str(tmp_path)}).get()


@pytest.mark.parametrize("variable", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
def test_a_profile_that_does_not_exist_is_an_error(aws: FakeAws, tmp_path: Path, variable: str) -> None:
    """The role of the machine is not what was chosen."""
    with pytest.raises(NoCredentials, match="profile other"):
        chain(aws.environ("ec2", tmp_path) | {variable: "other"}).get()
    assert aws.requests == []

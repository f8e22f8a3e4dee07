"""Who we are to the store: found in each of the places of AWS, renewed in time, and never shown."""

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
from dockyard.s3 import S3Error, S3Store, credentials
from dockyard.s3.credentials import CredentialChain, NoCredentials, _container_url
from tests.s3.store.aws import TOKEN, Aws
from tests.s3.store.servers import ACCESS_KEY, SECRET_KEY, Server

KINDS = ["irsa", "ecs", "eks", "ec2"]
SETTINGS = StorageSettings(bucket="cache", directory=Path("/tmp"))


@pytest.fixture
def aws() -> Iterator[Aws]:
    """Services that give credentials away."""
    with contextlib.closing(Aws()) as aws:
        yield aws


@pytest.fixture
def _always_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once."""
    monkeypatch.setattr(credentials, "MIN_RENEWAL_INTERVAL_S", 0.0)


def chain(environ: dict[str, str]) -> CredentialChain:
    """A chain without keys in the settings."""
    return CredentialChain(SETTINGS, environ)


def write(home: Path, name: str, text: str) -> None:
    """Write one of AWS's files."""
    (home / ".aws").mkdir(exist_ok=True)
    (home / ".aws" / name).write_text(text)


def test_keys_in_the_settings_come_first(tmp_path: Path) -> None:
    """They are what the operator said of this store."""
    settings = attrs.evolve(SETTINGS, access_key="ours", secret_key=Secret("secret"))
    assert CredentialChain(settings, {"AWS_ACCESS_KEY_ID": "other"}).get().access_key == "ours"


@pytest.mark.parametrize("kind", KINDS)
def test_roles_are_found(aws: Aws, tmp_path: Path, kind: str) -> None:
    """Web identity, containers and machines give keys that end."""
    found = chain(aws.environ(kind, tmp_path)).get()
    assert (found.access_key, found.secret_key, found.session_token) == (aws.key, aws.secret, aws.session)
    assert found.expiration is not None


def test_keys_of_the_environment_are_found() -> None:
    """With a session token or without."""
    environ = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    assert chain(environ).get().session_token is None
    assert chain(environ | {"AWS_SESSION_TOKEN": "session"}).get().session_token == "session"


@pytest.mark.parametrize(
    ("environ", "key"),
    [({}, "of-default"), ({"AWS_PROFILE": "other"}, "of-other"), ({"AWS_PROFILE": "config-only"}, "of-config")],
)
def test_profiles_are_found(tmp_path: Path, environ: dict[str, str], key: str) -> None:
    """In `credentials`, and in `config`, where their names are written otherwise. Secrets may have any character."""
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


def test_a_program_is_run(tmp_path: Path) -> None:
    """`credential_process` of a profile."""
    end = (dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)).isoformat()
    said = {"Version": 1, "AccessKeyId": "of-program", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": end}
    (tmp_path / "said.json").write_text(json.dumps(said))
    program = f"{sys.executable} -c \"print(open('{tmp_path}/said.json').read())\""
    write(tmp_path, "config", f"[default]\ncredential_process = {program}\n")
    found = chain({"HOME": str(tmp_path)}).get()
    assert (found.access_key, found.session_token) == ("of-program", "t")
    assert found.expiration is not None


@pytest.mark.parametrize("how", ["source_profile = base", "web_identity_token_file = {home}/token"])
def test_a_profile_may_be_a_role(aws: Aws, tmp_path: Path, how: str) -> None:
    """Assumed with the keys of another profile, or with a token."""
    environ = {"HOME": str(tmp_path), "AWS_ENDPOINT_URL_STS": aws.url}
    (tmp_path / "token").write_text(TOKEN)
    write(tmp_path, "credentials", "[base]\naws_access_key_id = base\naws_secret_access_key = secret\n")
    role = "role_arn = arn:aws:iam::123456789012:role/dockyard"
    write(tmp_path, "config", f"[default]\n{role}\n{how.format(home=tmp_path)}\n")
    assert chain(environ).get().access_key == aws.key


def test_profiles_that_name_each_other_end(tmp_path: Path) -> None:
    """A mistake in a file is no endless loop."""
    role = "role_arn = arn:aws:iam::1:role/x"
    write(tmp_path, "config", f"[default]\n{role}\nsource_profile = b\n[profile b]\n{role}\nsource_profile = default\n")
    with pytest.raises(NoCredentials):
        chain({"HOME": str(tmp_path)}).get()


def test_the_first_place_that_is_set_up_counts(aws: Aws, tmp_path: Path) -> None:
    """Environment, files, web identity, container, machine."""
    environ: dict[str, str] = {}
    expected = ["IMDS token", "container", "AssumeRoleWithWebIdentity"]
    for kind, bucket_view in zip(["ec2", "eks", "irsa"], expected, strict=True):
        environ |= aws.environ(kind, tmp_path)
        aws.asked.clear()
        chain(environ).get()
        assert aws.asked[0] == bucket_view
    write(tmp_path, "credentials", "[default]\naws_access_key_id = of-file\naws_secret_access_key = secret\n")
    assert chain(environ).get().access_key == "of-file"
    environ |= {"AWS_ACCESS_KEY_ID": "of-environment", "AWS_SECRET_ACCESS_KEY": "secret"}
    assert chain(environ).get().access_key == "of-environment"


def test_a_place_that_fails_is_not_passed_over(aws: Aws, tmp_path: Path) -> None:
    """The machine's role is somebody else than the pod's."""
    environ = aws.environ("ec2", tmp_path) | aws.environ("irsa", tmp_path)
    aws.status = 500
    with pytest.raises(NoCredentials, match="web identity"):
        chain(environ).get()
    assert aws.asked == ["AssumeRoleWithWebIdentity"]


def test_the_address_of_a_container_role_of_ecs() -> None:
    """ECS gives a path; its address is fixed."""
    assert _container_url({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/x"}) == "http://169.254.170.2/v2/x"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("_always_ask")
def test_keys_are_renewed_before_they_end(aws: Aws, tmp_path: Path, kind: str) -> None:
    """Five minutes before; and not earlier."""
    keys = chain(aws.environ(kind, tmp_path))
    keys.get()
    aws.key = "next"
    assert keys.get().access_key == "key-of-the-role"
    keys = chain(aws.environ(kind, tmp_path))
    aws.lasts_s = 299
    keys.get()
    aws.key = "next but one"
    assert keys.get().access_key == "next but one"


@pytest.mark.usefixtures("_always_ask")
def test_valid_keys_are_used_while_they_cannot_be_renewed(aws: Aws, tmp_path: Path) -> None:
    """A service that is down for a minute stops nobody."""
    keys = chain(aws.environ("eks", tmp_path))
    aws.lasts_s = 100
    first = keys.get()
    aws.status = 500
    assert keys.get() == first
    aws.status, aws.key = 200, "next"
    assert keys.get().access_key == "next"


@pytest.mark.usefixtures("_always_ask")
def test_keys_that_have_ended_are_not_used(aws: Aws, tmp_path: Path) -> None:
    """The store would refuse them."""
    keys = chain(aws.environ("eks", tmp_path))
    aws.lasts_s = -1
    keys.get()
    aws.status = 500
    with pytest.raises(NoCredentials):
        keys.get()


def test_that_there_is_nothing_is_remembered(aws: Aws, tmp_path: Path) -> None:
    """A machine outside AWS must not wait for one at every request."""
    keys = chain(aws.environ("ec2", tmp_path))
    aws.status = 404
    for _ in range(3):
        with pytest.raises(NoCredentials, match="EC2"):
            keys.get()
    assert aws.asked == ["IMDS token"]


def test_one_thread_asks_for_all(aws: Aws, tmp_path: Path) -> None:
    """The others wait for it."""
    keys = chain(aws.environ("eks", tmp_path))
    with ThreadPoolExecutor(16) as threads:
        assert len({found.access_key for found in threads.map(lambda _: keys.get(), range(64))}) == 1
    assert aws.asked == ["container"]


def test_what_went_wrong_shows_no_token(aws: Aws, tmp_path: Path) -> None:
    """minio-py puts the whole address into its message, and the token is in it."""
    aws.status = 403
    with pytest.raises(NoCredentials) as caught:
        chain(aws.environ("irsa", tmp_path)).get()
    assert TOKEN not in f"{caught.value}{caught.value.__cause__}"
    assert caught.value.__suppress_context__


@pytest.mark.usefixtures("_always_ask")
def test_keys_that_the_store_refuses_are_renewed_at_once(aws: Aws, minio: Server, tmp_path: Path, prefix: str) -> None:
    """Somebody took them away before their end; the request is sent again with others."""
    settings = attrs.evolve(minio.settings(prefix), access_key="")
    with contextlib.closing(S3Store(settings, aws.environ("eks", tmp_path))) as tier:
        aws.session = None
        with pytest.raises(S3Error) as caught:
            tier.open_blob(Digest.of(b"x"))
        assert caught.value.code == "InvalidAccessKeyId"
        aws.key, aws.secret = ACCESS_KEY, SECRET_KEY
        assert tier.open_blob(Digest.of(b"x")) is None


def test_session_tokens_are_signed(minio: Server, tmp_path: Path, prefix: str) -> None:
    """Keys that MinIO's own STS gives work for every kind of request, and in presigned URLs."""
    user = prefix.strip("/")
    admin = MinioAdmin(endpoint=minio.host, credentials=StaticProvider(ACCESS_KEY, SECRET_KEY), secure=False)
    admin.user_add(user, "secret-of-the-user")
    admin.policy_set("readwrite", user=user)
    write(tmp_path, "credentials", f"[base]\naws_access_key_id={user}\naws_secret_access_key=secret-of-the-user\n")
    role = "role_arn = arn:aws:iam::123456789012:role/dockyard"
    write(tmp_path, "config", f"[default]\n{role}\nsource_profile = base\n")
    environ = {"HOME": str(tmp_path), "AWS_ENDPOINT_URL_STS": f"http://{minio.host}"}
    body = b"layer"
    with contextlib.closing(S3Store(attrs.evolve(minio.settings(prefix), access_key=""), environ)) as tier:
        assert tier.check() == []
        tier.publish_blob(Digest.of(body), len(body), iter([body]))
        found = tier.open_blob(Digest.of(body))
        assert found is not None
        assert found.read(100) == body
        found.close()
        with urllib.request.urlopen(tier.presign_blob(Digest.of(body), 60), timeout=10) as answer:  # noqa: S310
            assert answer.read() == body

"""The start-up check: each mistake of an operator has its sentence, and nothing is left behind."""

import datetime as dt

import attrs
import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.time import utcnow

from dockyard.config.settings import StorageSettings
from dockyard.config.types import Secret
from dockyard.s3 import S3Store
from tests.s3.store.proxy import Forward, Respond, S3Proxy, s3_error
from tests.s3.store.servers import ACCESS_KEY, BUCKET, SECRET_KEY, Server

ANY_SERVER = pytest.mark.parametrize("server", ["minio"], indirect=True)


def troubles(settings: StorageSettings) -> list[str]:
    """What the check says, without secrets."""
    found = S3Store(settings, {"AWS_EC2_METADATA_DISABLED": "true"}).check()
    assert SECRET_KEY not in "".join(found)
    return found


def test_a_good_store_has_no_troubles(tier: S3Store, direct: S3Store, proxy: S3Proxy) -> None:
    """Two requests, and the bucket is as it was."""
    assert tier.check() == []
    assert len(proxy.requests) == 2
    listing = direct._client.request("list", "GET", query={"prefix": direct._prefix})
    assert listing is not None
    assert b"<Contents>" not in listing.body


def test_a_missing_bucket_is_named(server: Server) -> None:
    """It is not made for the operator: a slip of the pen would make another one."""
    [said] = troubles(server.settings(bucket="no-such-bucket"))
    assert said == f"bucket no-such-bucket does not exist at {server.host}: create it, or set storage.bucket"


def test_a_wrong_access_key_is_named(server: Server) -> None:
    """With the setting to look at."""
    [said] = troubles(attrs.evolve(server.settings(), access_key="nobody"))
    assert "storage.access_key" in said


def test_a_wrong_secret_key_is_named(server: Server) -> None:
    """Which is another mistake than a wrong access key."""
    [said] = troubles(attrs.evolve(server.settings(), secret_key=Secret("another-secret")))
    assert "storage.secret_key" in said
    assert "another-secret" not in said


def test_no_credentials_at_all_is_named(server: Server) -> None:
    """Neither keys nor a role."""
    [said] = troubles(attrs.evolve(server.settings(), access_key=""))
    assert "no credentials" in said
    assert "storage.access_key" in said


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_wrong_clock_is_named(server: Server, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """S3 takes no signature that is a quarter of an hour off."""
    now = utcnow()
    monkeypatch.setattr("minio.time.utcnow", lambda: now + dt.timedelta(hours=hours))
    found = troubles(server.settings())
    assert "clock" in found[0] or "time" in found[0]


@pytest.mark.parametrize("server", ["versitygw"], indirect=True)
def test_another_region_is_named(server: Server) -> None:
    """MinIO takes any."""
    [said] = troubles(attrs.evolve(server.settings(), region="eu-west-1"))
    assert "storage.region" in said


def test_a_port_that_nobody_listens_on_is_named(minio: Server) -> None:
    """The endpoint is wrong, or the store is down."""
    [said] = troubles(minio.settings(endpoint="127.0.0.1:1"))
    assert said == "cannot connect to S3 at 127.0.0.1:1: check storage.endpoint"


def test_a_bucket_as_host_is_explained(minio: Server) -> None:
    """Without path style the bucket becomes part of the host, which MinIO's users do not expect."""
    settings = attrs.evolve(minio.settings(endpoint="minio.invalid:9000"), force_path_style=False)
    [said] = troubles(settings)
    assert f"{BUCKET}.minio.invalid:9000" in said
    assert "storage.force_path_style: true" in said


def test_tls_to_a_plain_port_is_named(server: Server) -> None:
    """`use_ssl` is easily wrong."""
    [said] = troubles(attrs.evolve(server.settings(), use_ssl=True))
    assert "storage.use_ssl" in said


@ANY_SERVER
@pytest.mark.parametrize(
    ("answer", "setting"),
    [
        (s3_error(403, "AccessDenied"), "s3:ListBucket"),
        (s3_error(403, "RequestTimeTooSkewed"), "clock"),
        (s3_error(403, "AccountProblem"), "keys"),
        (s3_error(400, "ExpiredToken"), "role"),
        (s3_error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"), "storage.region to eu-west-1"),
        (Respond(301, b"", "x-amz-bucket-region: eu-west-2\r\n"), "storage.region to eu-west-2"),
        (Respond(200, b"<html>hello</html>"), "storage.endpoint"),
        (Respond(404, b"<html>hello</html>"), "not an S3 service"),
        (Respond(400, b"Client sent an HTTP request to an HTTPS server."), "storage.use_ssl"),
        (s3_error(503, "SlowDown"), "as soon as it works"),
    ],
)
def test_what_a_store_may_say_is_explained(server: Server, proxy: S3Proxy, answer: Respond, setting: str) -> None:
    """Each with what to change."""
    proxy.rule = lambda _: answer
    [said] = troubles(server.settings(endpoint=proxy.host))
    assert setting in said


def test_a_store_that_takes_wrong_bytes_is_named(tier: S3Store, proxy: S3Proxy) -> None:
    """What it took is deleted again."""
    proxy.rule = lambda request: Respond(200) if request.method == "PUT" else Forward()
    [said] = tier.check()
    assert "another hash" in said
    assert proxy.counted() == {"GET": 1, "PUT": 1, "DELETE": 1}


@pytest.mark.parametrize(
    ("rights", "said"),
    [
        ({"objects": ["s3:GetObject", "s3:PutObject"], "bucket": ["s3:ListBucket"]}, []),
        ({"objects": ["s3:GetObject"], "bucket": ["s3:ListBucket"]}, ["s3:PutObject"]),
        ({"objects": ["s3:GetObject", "s3:PutObject"], "bucket": []}, []),  # AWS wants ListBucket, MinIO does not
        ({"objects": ["s3:PutObject"], "bucket": ["s3:ListBucket"]}, ["s3:GetObject"]),
    ],
    ids=["all", "no PutObject", "no ListBucket", "no GetObject"],
)
def test_missing_rights_are_named(minio: Server, prefix: str, rights: dict[str, list[str]], said: list[str]) -> None:
    """Judged by a real server, for users with such a policy."""
    user = prefix.strip("/")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": actions, "Resource": [f"arn:aws:s3:::{resource}"]}
            for actions, resource in ((rights["objects"], f"{BUCKET}/*"), (rights["bucket"], BUCKET))
            if actions
        ],
    }
    admin = MinioAdmin(endpoint=minio.host, credentials=StaticProvider(ACCESS_KEY, SECRET_KEY), secure=False)
    admin.user_add(user, "secret-of-the-user")
    admin.policy_add(user, policy=policy)
    admin.policy_set(user, user=user)
    settings = attrs.evolve(minio.settings(prefix), access_key=user, secret_key=Secret("secret-of-the-user"))
    found = troubles(settings)
    assert len(found) == len(said)
    assert all(words in sentence for words, sentence in zip(said, found, strict=True))

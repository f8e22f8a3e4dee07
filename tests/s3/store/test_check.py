"""The start-up check: each configuration mistake has its own sentence, and no object is left in the bucket."""

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


def find_problems(settings: StorageSettings) -> list[str]:
    """Return the problems that the check finds. They contain no secrets."""
    found = S3Store(settings, {"AWS_EC2_METADATA_DISABLED": "true"}).check()
    assert SECRET_KEY not in "".join(found)
    return found


def test_a_usable_bucket_has_no_problems(s3: S3Store, direct_s3: S3Store, proxy: S3Proxy) -> None:
    """The check sends two requests and does not change the bucket."""
    assert s3.check() == []
    assert len(proxy.requests) == 2
    listing = direct_s3._client.request("list", "GET", query={"prefix": direct_s3._prefix})
    assert listing is not None
    assert b"<Contents>" not in listing.body


def test_a_missing_bucket_is_named(server: Server) -> None:
    """It is not created: the name may be misspelt."""
    [problem] = find_problems(server.settings(bucket="no-such-bucket"))
    assert problem == f"bucket no-such-bucket does not exist at {server.host}: create it, or set storage.bucket"


def test_a_wrong_access_key_is_named(server: Server) -> None:
    """The sentence names the setting."""
    [problem] = find_problems(attrs.evolve(server.settings(), access_key="nobody"))
    assert "storage.access_key" in problem


def test_a_wrong_secret_key_is_named(server: Server) -> None:
    """The sentence is another one than for a wrong access key."""
    [problem] = find_problems(attrs.evolve(server.settings(), secret_key=Secret("another-secret")))
    assert "storage.secret_key" in problem
    assert "another-secret" not in problem


def test_missing_credentials_are_named(server: Server) -> None:
    """Neither keys nor a role are configured."""
    [problem] = find_problems(attrs.evolve(server.settings(), access_key=""))
    assert "no credentials" in problem
    assert "storage.access_key" in problem


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_wrong_clock_is_named(server: Server, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """S3 rejects signatures whose time is off by more than 15 minutes."""
    now = utcnow()
    monkeypatch.setattr("minio.time.utcnow", lambda: now + dt.timedelta(hours=hours))
    found = find_problems(server.settings())
    assert "clock" in found[0] or "time" in found[0]


@pytest.mark.parametrize("server", ["versitygw"], indirect=True)
def test_another_region_is_named(server: Server) -> None:
    """MinIO accepts any region."""
    [problem] = find_problems(attrs.evolve(server.settings(), region="eu-west-1"))
    assert "storage.region" in problem


def test_a_port_without_a_listener_is_named(minio: Server) -> None:
    """The endpoint is wrong, or the service is down."""
    [problem] = find_problems(minio.settings(endpoint="127.0.0.1:1"))
    assert problem == "cannot connect to S3 at 127.0.0.1:1: check storage.endpoint"


def test_a_bucket_as_host_is_explained(minio: Server) -> None:
    """Without path style the bucket is part of the host name, which users of MinIO do not expect."""
    settings = attrs.evolve(minio.settings(endpoint="minio.invalid:9000"), force_path_style=False)
    [problem] = find_problems(settings)
    assert f"{BUCKET}.minio.invalid:9000" in problem
    assert "storage.force_path_style: true" in problem


def test_tls_to_a_plain_port_is_named(server: Server) -> None:
    """The sentence names `storage.use_ssl`."""
    [problem] = find_problems(attrs.evolve(server.settings(), use_ssl=True))
    assert "storage.use_ssl" in problem


@ANY_SERVER
@pytest.mark.parametrize(
    ("response", "setting"),
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
def test_error_responses_are_explained(server: Server, proxy: S3Proxy, response: Respond, setting: str) -> None:
    """Each sentence names what to change."""
    proxy.rule = lambda _: response
    [problem] = find_problems(server.settings(endpoint=proxy.host))
    assert setting in problem


def test_a_service_that_stores_wrong_bytes_is_named(s3: S3Store, proxy: S3Proxy) -> None:
    """The object that it stored is deleted."""
    proxy.rule = lambda request: Respond(200) if request.method == "PUT" else Forward()
    [problem] = s3.check()
    assert "another hash" in problem
    assert proxy.counted() == {"GET": 1, "PUT": 1, "DELETE": 1}


@pytest.mark.parametrize(
    ("permissions", "expected"),
    [
        ({"objects": ["s3:GetObject", "s3:PutObject"], "bucket": ["s3:ListBucket"]}, []),
        ({"objects": ["s3:GetObject"], "bucket": ["s3:ListBucket"]}, ["s3:PutObject"]),
        ({"objects": ["s3:GetObject", "s3:PutObject"], "bucket": []}, []),  # AWS requires ListBucket, MinIO does not
        ({"objects": ["s3:PutObject"], "bucket": ["s3:ListBucket"]}, ["s3:GetObject"]),
    ],
    ids=["all", "no PutObject", "no ListBucket", "no GetObject"],
)
def test_missing_permissions_are_named(
    minio: Server, prefix: str, permissions: dict[str, list[str]], expected: list[str]
) -> None:
    """For users of a real server with these policies."""
    user = prefix.strip("/")
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": actions, "Resource": [f"arn:aws:s3:::{resource}"]}
            for actions, resource in ((permissions["objects"], f"{BUCKET}/*"), (permissions["bucket"], BUCKET))
            if actions
        ],
    }
    admin = MinioAdmin(endpoint=minio.host, credentials=StaticProvider(ACCESS_KEY, SECRET_KEY), secure=False)
    admin.user_add(user, "secret-of-the-user")
    admin.policy_add(user, policy=policy)
    admin.policy_set(user, user=user)
    settings = attrs.evolve(minio.settings(prefix), access_key=user, secret_key=Secret("secret-of-the-user"))
    found = find_problems(settings)
    assert len(found) == len(expected)
    assert all(words in sentence for words, sentence in zip(expected, found, strict=True))

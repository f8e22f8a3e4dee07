"""The start-up check: each configuration mistake has its own sentence, and no object is left in the bucket."""

import contextlib
import datetime as dt

import attrs
import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.time import utcnow

from dockyard.config.settings import StorageSettings
from dockyard.config.types import Secret
from dockyard.oci.reference import Digest
from dockyard.s3.store import S3Store
from dockyard.storage import keys
from tests.s3.store.proxy import Forward, Respond, S3Proxy, s3_error
from tests.s3.store.servers import ACCESS_KEY, BUCKET, SECRET_KEY, Server
from tests.s3.store.store_adapters import reader

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
    sentence = f"bucket no-such-bucket does not exist at {server.host}: create it, or set storage.bucket"
    facts = f"(bucket no-such-bucket at {server.host}; check: 404 NoSuchBucket; the service responded: The specified"
    assert problem.startswith(f"{sentence} {facts}")


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
    reason = "cannot connect to S3 at 127.0.0.1:1: Connection refused: check storage.endpoint"
    assert problem == f"{reason} (bucket {BUCKET} at 127.0.0.1:1)"


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


@ANY_SERVER
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "InvalidRequest"), (403, "AccessDenied"), (403, "AccountProblem"), (409, "X"), (503, "SlowDown")],
)
def test_the_message_of_the_service_is_part_of_the_problem(
    server: Server, proxy: S3Proxy, method: str, status: int, code: str
) -> None:
    """It says what the service wants, which no list of known codes can."""
    message = (
        "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters"
    )
    error = s3_error(status, code, f"<Message>{message}</Message>")
    proxy.rule = lambda request: error if request.method == method else Forward()
    [problem] = find_problems(server.settings(endpoint=proxy.host))
    assert problem.count(message) == 1


OLD_VERSIONS_EXPIRE = "<NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration>"


def lifecycle(rule: str) -> Respond:
    """Return the lifecycle configuration with one rule."""
    return Respond(200, f"<LifecycleConfiguration><Rule>{rule}</Rule></LifecycleConfiguration>".encode())


@ANY_SERVER
@pytest.mark.parametrize(
    ("versioning", "rules", "words"),
    [
        ("Enabled", s3_error(404, "NoSuchLifecycleConfiguration"), "no lifecycle rule expires old versions"),
        ("Enabled", s3_error(403, "AccessDenied"), "the lifecycle rules cannot be read"),
        ("Enabled", s3_error(501, "NotImplemented"), "no lifecycle rule expires old versions"),
        ("Enabled", lifecycle(f"<Status>Disabled</Status>{OLD_VERSIONS_EXPIRE}"), "no lifecycle rule"),
        (
            "Enabled",
            lifecycle(f"<Status>Enabled</Status><Prefix>logs/</Prefix>{OLD_VERSIONS_EXPIRE}"),
            "no lifecycle rule",
        ),
        ("Enabled", lifecycle("<Status>Enabled</Status><Expiration><Days>30</Days></Expiration>"), "no lifecycle rule"),
        ("Enabled", lifecycle(f"<Status>Enabled</Status><Filter/>{OLD_VERSIONS_EXPIRE}"), ""),
        ("Enabled", lifecycle(f"<Status>Enabled</Status><Prefix>cac</Prefix>{OLD_VERSIONS_EXPIRE}"), ""),
        ("Suspended", s3_error(404, "NoSuchLifecycleConfiguration"), ""),
        ("", s3_error(404, "NoSuchLifecycleConfiguration"), ""),
        (None, s3_error(404, "NoSuchLifecycleConfiguration"), ""),
    ],
)
def test_a_bucket_that_keeps_old_versions_is_named(
    server: Server, proxy: S3Proxy, versioning: str | None, rules: Respond, words: str
) -> None:
    """Each touch makes a version, so the bucket grows for ever. A service that does not tell is no problem."""
    status = f"<Status>{versioning}</Status>" if versioning else ""
    body = f"<VersioningConfiguration>{status}</VersioningConfiguration>".encode()
    answer = s3_error(403, "AccessDenied") if versioning is None else Respond(200, body)
    proxy.rule = lambda request: answer if "versioning" in request.target else rules
    with contextlib.closing(S3Store(server.settings(endpoint=proxy.host), {})) as s3:
        found = s3.find_old_versions()
    assert words in found
    assert bool(found) == bool(words)
    assert ("NoncurrentVersionExpiration" in found) == bool(words)


def test_versioning_of_a_real_bucket_is_found(minio: Server) -> None:
    """MinIO is asked as AWS is."""
    settings = attrs.evolve(minio.settings(), bucket="versioned")
    with contextlib.closing(S3Store(settings, {})) as s3:
        client = s3._client
        assert client.request("make bucket", "PUT", headers={"Content-Length": "0"}) is not None
        assert s3.find_old_versions() == ""
        enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
        assert client.request("versioning", "PUT", query={"versioning": ""}, body=enabled) is not None
        assert "no lifecycle rule" in s3.find_old_versions()


def test_a_bucket_with_object_lock_is_usable(minio: Server) -> None:
    """With a default retention, S3 rejects uploads without a checksum."""
    settings = attrs.evolve(minio.settings(), bucket="locked")
    with contextlib.closing(S3Store(settings, {})) as s3:
        lock = {"x-amz-bucket-object-lock-enabled": "true"}
        assert s3._client.request("make bucket", "PUT", headers=lock) is not None
        rule = "<Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule>"
        body = (
            f"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled>{rule}</ObjectLockConfiguration>"
        )
        assert s3._client.request("lock", "PUT", query={"object-lock": ""}, body=body.encode()) is not None
        assert s3.check() == []
        digest = Digest.of(b"layer")
        s3.publish_blob(digest, 5, reader([b"layer"]))
        assert s3.stat_blob(digest) is not None
        assert s3.touch(keys.blob_key(settings.prefix, digest))

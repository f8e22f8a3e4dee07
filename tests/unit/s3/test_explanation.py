"""Each error of an S3 service says what to change, and where it happened."""

import ssl

import pytest
from urllib3 import exceptions as urllib3_errors

from dockyard.config.settings import StorageSettings
from dockyard.http1.tls import TLSProblem
from dockyard.s3.errors import S3Error, to_s3_error
from dockyard.s3.explanation import explain

SETTINGS = StorageSettings(endpoint="s3.example:9000", bucket="images", force_path_style=True)
AWS = StorageSettings(bucket="images", region="eu-west-1")
HOUR_AHEAD_S = 3600.0


def error(code: str, status: int = 0, **more: object) -> S3Error:
    """An error as the client raises it."""
    sent = f"S3 at s3.example:9000 responded with {status} {code} to put blob" if status else "S3 at s3.example:9000"
    return S3Error(sent, code, status=status, operation="put blob", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (error("unreachable"), "check storage.endpoint"),
        (error("insecure", tls_problem=TLSProblem.NO_TLS), "set storage.use_ssl to false"),
        (error("insecure", tls_problem=TLSProblem.UNKNOWN_CA), "SSL_CERT_FILE"),
        (error("insecure", tls_problem=TLSProblem.SELF_SIGNED), "SSL_CERT_FILE"),
        (error("insecure", tls_problem=TLSProblem.EXPIRED), "renew the certificate of the service"),
        (error("insecure", tls_problem=TLSProblem.OTHER_NAME), "a name that is in the certificate"),
        (error("insecure", tls_problem=TLSProblem.OTHER), "check storage.endpoint and its certificate"),
        (error("broken"), "if it speaks HTTPS on this port, set storage.use_ssl to true"),
        (error("", 400), "if it speaks HTTPS on this port, set storage.use_ssl to true"),
        (error("MethodNotAllowed", 405), "not an S3 service, but perhaps its web console"),
        (error("InvalidAccessKeyId", 403), "check storage.access_key"),
        (error("SignatureDoesNotMatch", 403), "check storage.secret_key"),
        (error("ExpiredToken", 400), "it has expired, so renew what provides it (AWS_SESSION_TOKEN"),
        (error("RequestTimeTooSkewed", 403), "set the clock of this machine"),
        (error("NoSuchBucket", 404), "create it, or set storage.bucket"),
        (error("PermanentRedirect", 301, region="eu-west-1"), "set storage.region to eu-west-1"),
        (error("IllegalLocationConstraintException", 400), "set storage.region"),
        (error("AccessDenied", 403), "allow s3:ListBucket on images, and s3:GetObject on images/cache/*"),
        (error("AccessDenied", 403, is_upload=True), "allow s3:PutObject on images/cache/*"),
        (error("AllAccessDisabled", 403), "check the keys, or the role, and their permissions"),
        (error("XMinioStorageFull", 507), "is full: free space"),
        (error("QuotaExceeded", 403), "raise its quota"),
        (error("", 507), "free space"),
        (error("SlowDown", 503), "the bucket is used as soon as it works"),
    ],
)
def test_an_error_says_what_to_change(exc: S3Error, words: str) -> None:
    """And names bucket, host, operation, status and code."""
    sentence = explain(exc, SETTINGS, "s3.example:9000", is_tls=False)

    assert words in sentence
    assert "(bucket images at s3.example:9000" in sentence
    assert not exc.status or str(exc.status) in sentence
    assert exc.status == 0 or "put blob" in sentence
    assert exc.status == 0 or exc.code in sentence


def test_the_message_of_the_service_is_repeated_once() -> None:
    """It may say what no list of codes can."""
    exc = error("InvalidRequest", 400, service_message="needs a checksum")

    assert explain(exc, SETTINGS, "s3.example:9000", is_tls=False).count("needs a checksum") == 1


def test_the_status_is_named_beside_a_host_with_the_same_number() -> None:
    """The port has the digits of the status, and the bucket the words of the service."""
    settings = StorageSettings(endpoint="s3.example:24043", bucket="gone", force_path_style=True)
    exc = error("NoSuchBucket", 404, service_message="gone")
    sentence = explain(exc, settings, "s3.example:24043", is_tls=False)

    assert sentence.endswith(
        "(bucket gone at s3.example:24043; put blob: 404 NoSuchBucket; the service responded: gone)"
    )


def test_both_clocks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the service says that the signature is wrong."""
    monkeypatch.setattr("time.time", lambda: 0.0)
    for code in ("RequestTimeTooSkewed", "SignatureDoesNotMatch"):
        sentence = explain(error(code, 403, date=HOUR_AHEAD_S), SETTINGS, "s3.example:9000", is_tls=False)

        assert sentence.startswith(
            "the clock of this machine (1970-01-01 00:00:00 UTC) and that of s3.example:9000 (1970-01-01 01:00:00 UTC) "
            "differ by 3600 s: set the clock of this machine"
        )


def test_a_bucket_in_the_host_name_is_explained() -> None:
    """Only if the settings put it there, and not for AWS."""
    settings = StorageSettings(endpoint="minio:9000", bucket="images")
    hint = "MinIO and other services need storage.force_path_style: true"

    assert hint in explain(error("unreachable"), settings, "images.minio:9000", is_tls=False)
    assert hint not in explain(error("unreachable"), SETTINGS, "s3.example:9000", is_tls=False)
    assert hint not in explain(error("unreachable"), AWS, "images.s3.eu-west-1.amazonaws.com", is_tls=True)


def test_the_error_of_the_system_is_named() -> None:
    """Of a connection that was refused, of a name that cannot be resolved, and of TLS."""
    refused = urllib3_errors.NewConnectionError(None, "with the host")  # type: ignore[arg-type]
    refused.__cause__ = ConnectionRefusedError(111, "Connection refused")
    plain = urllib3_errors.SSLError(ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number"))
    plain.args[0].reason = "WRONG_VERSION_NUMBER"

    assert str(to_s3_error(refused, "S3 at h")) == "cannot connect to S3 at h: Connection refused"
    assert to_s3_error(plain, "S3 at h").tls_problem is TLSProblem.NO_TLS

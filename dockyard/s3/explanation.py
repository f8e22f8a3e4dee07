"""What an error of the S3 service means and what to change: one sentence for the log, with the facts behind it."""

import time
from datetime import UTC, datetime

from dockyard.config.settings import StorageSettings
from dockyard.http1.tls import TLSProblem
from dockyard.s3.errors import REJECTED_CREDENTIALS, S3Error

MAX_CLOCK_SKEW_S = 300.0

_EXPIRED_TOKENS = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_WRONG_ACCESS_KEY = REJECTED_CREDENTIALS - _EXPIRED_TOKENS - {"SignatureDoesNotMatch"}
_WRONG_CLOCK = {"RequestTimeTooSkewed", "ClockSkewed", "RequestExpired"}
_WRONG_REGION = {"AuthorizationHeaderMalformed", "InvalidRegion", "IllegalLocationConstraintException"}
_FULL = {
    *("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "QuotaExceeded", "InsufficientStorage", "StorageFull"),
    *("InsufficientCapacity", "StorageQuotaExceeded", "ServiceQuotaExceededException"),
}
_NO_S3 = {"", "MethodNotAllowed", "UnknownMethod"}
_CURES_OF_TLS = {
    TLSProblem.NO_TLS: "set storage.use_ssl to false, or storage.endpoint to the port that speaks HTTPS",
    TLSProblem.UNKNOWN_CA: "name a PEM file with its CA in the environment variable SSL_CERT_FILE",
    TLSProblem.SELF_SIGNED: "name a PEM file with this certificate in the environment variable SSL_CERT_FILE",
    TLSProblem.EXPIRED: "renew the certificate of the service",
    TLSProblem.NOT_YET_VALID: "set the clock of this machine",
    TLSProblem.OTHER_NAME: "set storage.endpoint to a name that is in the certificate",
}


def explain(exc: S3Error, settings: StorageSettings, host: str, *, is_tls: bool) -> str:
    """What is wrong, what to change, and in parentheses bucket, host, operation, status and message of the service.

    `host` is where requests go.
    """
    sentence = _describe(exc, settings, host, is_tls=is_tls)
    facts = [f"bucket {settings.bucket} at {host}"]
    if str(exc) not in sentence:  # which has them all
        if exc.status:
            facts.append(f"{exc.operation}: {exc.status} {exc.code}".rstrip())
        if exc.service_message:
            facts.append(f"the service responded: {exc.service_message}")
    return f"{sentence} ({'; '.join(facts)})"


def _describe(exc: S3Error, settings: StorageSettings, host: str, *, is_tls: bool) -> str:
    service, bucket, code = settings.service, settings.bucket, exc.code
    if sentence := (
        _describe_connection(exc, settings, host, is_tls=is_tls)
        or _describe_clock(exc, service)
        or _describe_credentials(exc, service)
    ):
        return sentence
    if code == "NoSuchBucket":
        return f"bucket {bucket} does not exist at {service}: create it, or set storage.bucket"
    if code in _FULL or exc.status == 507:
        return (
            f"bucket {bucket} or {service} is full: free space, raise its quota, or let a lifecycle rule expire "
            "objects; pulls continue, and nothing new is published"
        )
    if exc.status in {301, 307, 308} or exc.region or code in _WRONG_REGION:
        return f"bucket {bucket} is in another region: set storage.region{f' to {exc.region}' * bool(exc.region)}"
    if exc.status == 403:
        return _describe_denial(exc, settings, service)
    return f"{exc}: the bucket is used as soon as it works"


def _describe_connection(exc: S3Error, settings: StorageSettings, host: str, *, is_tls: bool) -> str:
    """What is wrong with the endpoint; empty for other errors."""
    hint = _path_style_hint(settings, host)
    use_tls = "" if is_tls else "if it speaks HTTPS on this port, set storage.use_ssl to true; else "
    match exc.code:
        case "unreachable":
            return f"{exc}: check storage.endpoint{hint}"
        case "insecure":
            cure = _CURES_OF_TLS.get(exc.tls_problem) if exc.tls_problem else None
            return f"{exc}: {cure or 'check storage.endpoint and its certificate'}"
        case "garbage" | "broken":
            return f"{exc}: {use_tls}check storage.endpoint"
    if exc.status in {400, 404, 405} and exc.code in _NO_S3:
        return f"{exc}: {use_tls}storage.endpoint is not an S3 service, but perhaps its web console{hint}"
    return ""


def _describe_clock(exc: S3Error, service: str) -> str:
    """That the clocks differ; empty for other errors."""
    now = time.time()
    skew_s = abs(exc.date - now) if exc.date else 0.0
    if exc.code not in _WRONG_CLOCK and not (exc.code == "SignatureDoesNotMatch" and skew_s > MAX_CLOCK_SKEW_S):
        return ""
    theirs = f" ({_format(exc.date)}) differ by {skew_s:.0f} s" if exc.date else " differ"
    return f"the clock of this machine ({_format(now)}) and that of {service}{theirs}: set the clock of this machine"


def _describe_credentials(exc: S3Error, service: str) -> str:
    """What is wrong with keys and tokens; empty for other errors."""
    code = exc.code
    if code == "credentials":
        return str(exc)
    if code == "SignatureDoesNotMatch":
        return f"{service} rejects the secret key: check storage.secret_key"
    if code in _EXPIRED_TOKENS:
        return (
            f"{service} rejects the session token ({code}): it has expired, so renew what provides it "
            "(AWS_SESSION_TOKEN, the AWS profile, the role), or set storage.access_key and storage.secret_key"
        )
    if code in _WRONG_ACCESS_KEY:
        return f"{service} rejects the access key ({code}): check storage.access_key, or the role"
    return ""


def _describe_denial(exc: S3Error, settings: StorageSettings, service: str) -> str:
    bucket, objects = settings.bucket, f"{settings.bucket}/{settings.prefix}*"
    if exc.code not in {"AccessDenied", ""}:
        return f"{service} denies access ({exc.code}): check the keys, or the role, and their permissions"
    if exc.is_upload:
        return f"no permission to write to bucket {bucket}: allow s3:PutObject on {objects}"
    if not exc.code:  # the response to HEAD has no error code
        return f"{service} denies access: check the keys, or the role, and their permissions"
    return (
        f"{service} denies access to objects of bucket {bucket} that do not exist, which looks like an error: "
        f"allow s3:ListBucket on {bucket}, and s3:GetObject on {objects}"
    )


def _path_style_hint(settings: StorageSettings, host: str) -> str:
    if settings.force_path_style or not settings.endpoint or not host.startswith(f"{settings.bucket}."):
        return ""
    return f"; requests for the bucket go to {host}: MinIO and other services need storage.force_path_style: true"


def _format(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

"""The start-up check of the bucket and the permissions: one sentence for each configuration mistake. Blocking.

Two requests. A GET of a key that does not exist must report a missing object, not a denied one or anything else. An
upload with a wrong hash must be rejected for that reason: without permission to write it is rejected earlier, and a
service that accepts it does not verify uploads. Neither request leaves anything in the bucket.

`find_old_versions` is about space, not about errors: a versioned bucket keeps what a touch replaces.
"""

import re
import secrets
import time
from hashlib import sha256

from dockyard.config.settings import StorageSettings
from dockyard.s3.client import REJECTED_CREDENTIALS, S3Client
from dockyard.s3.errors import S3Error
from dockyard.s3.responses import xml_text

MAX_CLOCK_SKEW_S = 300.0
_WRONG_HASH = {"XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "BadDigest", "InvalidDigest"}
_WRONG_ACCESS_KEY = (*REJECTED_CREDENTIALS - {"SignatureDoesNotMatch"}, "TokenRefreshRequired")
_WRONG_CLOCK = ("RequestTimeTooSkewed", "ClockSkewed")
_WRONG_TLS = ("insecure", "garbage", "broken")


def check_bucket(client: S3Client, settings: StorageSettings) -> list[str]:
    """Return one sentence for each problem, with what to change; empty when there is none."""
    key = f"{settings.prefix}check-{secrets.token_hex(16)}"
    try:
        if client.request("check", "GET", key) is not None:
            return [f"{client.host} returned an object that does not exist: storage.endpoint is not an S3 service"]
    except S3Error as exc:
        return [_explain(exc, client, settings)]
    return _check_writing(client, settings, key)


def find_old_versions(client: S3Client, settings: StorageSettings) -> str:
    """Return why the bucket keeps replaced objects for ever, with what to change; empty when it does not.

    Also empty when the service does not tell: the credentials need no permission for this.
    """
    try:
        response = client.request("check", "GET", query={"versioning": ""})
    except S3Error:
        return ""
    if response is None or response.xml_text("Status") != "Enabled":
        return ""
    remedy = "add NoncurrentVersionExpiration to the lifecycle rule of the bucket"
    try:
        response = client.request("check", "GET", query={"lifecycle": ""})
    except S3Error as exc:
        if exc.status == 403:
            return f"versioning is enabled, and the lifecycle rules cannot be read ({exc}): {remedy} if it is missing"
        response = None
    rules = re.findall(rb"<Rule>(.*?)</Rule>", response.body, re.DOTALL) if response else []
    if any(_expires_old_versions(rule, settings.prefix) for rule in rules):
        return ""
    return f"versioning is enabled, and no lifecycle rule expires old versions: {remedy}"


def _expires_old_versions(rule: bytes, prefix: str) -> bool:
    is_ours = xml_text(rule, "Status") == "Enabled" and prefix.startswith(xml_text(rule, "Prefix"))
    return is_ours and b"<NoncurrentVersionExpiration>" in rule


def _check_writing(client: S3Client, settings: StorageSettings, key: str) -> list[str]:
    body = b"dockyard"
    headers = {"Content-Type": "text/plain", "Content-Length": str(len(body))}
    try:
        # An iterator, so that it is sent once and with the wrong hash.
        response = client.open_response(
            "check", "PUT", key, headers=headers, body=iter([body]), payload_hash=sha256(key.encode()).hexdigest()
        )
    except S3Error as exc:
        if exc.code in _WRONG_HASH:
            return []
        if exc.status == 403 and exc.code in {"AccessDenied", ""}:
            objects = f"{client.bucket}/{settings.prefix}*"
            sentence = f"no permission to write to bucket {client.bucket}: allow s3:PutObject on {objects}"
            return [_add_service_message(sentence, exc)]
        return [_explain(exc, client, settings)]
    if response is not None:
        response.close()
    client.request("check", "DELETE", key)
    problem = f"{client.host} stored an object with another hash than the signed one"
    return [f"{problem}: this service does not verify uploads, so objects are verified only when they are read"]


def _explain(exc: S3Error, client: S3Client, settings: StorageSettings) -> str:
    return _add_service_message(_describe(exc, client, settings), exc)


def _add_service_message(sentence: str, exc: S3Error) -> str:
    """Add what the service said about the error, unless it is in the sentence."""
    if not exc.service_message or exc.service_message in sentence:
        return sentence
    return f"{sentence} (the service responded: {exc.service_message})"


def _describe(exc: S3Error, client: S3Client, settings: StorageSettings) -> str:
    service = settings.endpoint or f"AWS S3 in {settings.region}"
    bucket = client.bucket
    skew_s = abs(exc.date - time.time()) if exc.date else 0.0
    is_clock_wrong = exc.code == "SignatureDoesNotMatch" and skew_s > MAX_CLOCK_SKEW_S
    code = "ClockSkewed" if is_clock_wrong else exc.code
    sentences = {
        "unreachable": f"{exc}: check storage.endpoint{_path_style_hint(client, settings)}",
        "credentials": str(exc),
        "NoSuchBucket": f"bucket {bucket} does not exist at {service}: create it, or set storage.bucket",
        "SignatureDoesNotMatch": f"{service} rejects the secret key: check storage.secret_key",
        "AccessDenied": (
            f"{service} denies access to objects of bucket {bucket} that do not exist, which looks like an error: "
            f"allow s3:ListBucket on {bucket}, and s3:GetObject on {bucket}/{settings.prefix}*"
        ),
        **dict.fromkeys(
            _WRONG_ACCESS_KEY,
            f"{service} rejects the access key ({code}): check storage.access_key, or the role",
        ),
        **dict.fromkeys(
            _WRONG_CLOCK,
            f"the clock of this machine and that of {service} differ by {skew_s:.0f} s: set this machine's clock",
        ),
        **dict.fromkeys(
            _WRONG_TLS,
            f"{exc}: check storage.use_ssl (it is {str(client.is_tls).lower()}) and the certificate",
        ),
    }
    if sentence := sentences.get(code):
        return sentence
    if exc.status in {301, 307, 308} or exc.region:
        return f"bucket {bucket} is in another region: set storage.region{f' to {exc.region}' * bool(exc.region)}"
    if exc.status == 403:
        return f"{service} denies access ({code or 403}): check the keys, or the role, and their permissions"
    if exc.status in {400, 404, 405} and not code:
        hint = _path_style_hint(client, settings)
        return f"{exc}: storage.endpoint is not an S3 service, or storage.use_ssl is wrong{hint}"
    return f"{exc}: the bucket is used as soon as it works"


def _path_style_hint(client: S3Client, settings: StorageSettings) -> str:
    if settings.force_path_style or not settings.endpoint or not client.host.startswith(f"{client.bucket}."):
        return ""
    return (
        f"; requests for the bucket go to {client.host}: MinIO and other services need storage.force_path_style: true"
    )

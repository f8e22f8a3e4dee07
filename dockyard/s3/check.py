"""The start-up check of bucket and rights: what an operator got wrong, in plain words.

Two questions. A key that cannot exist must be missing, and neither forbidden nor anything else. And an upload with a
false hash must be refused for that: whoever may not write is told so first, and a store that takes it cannot be
trusted to refuse wrong bytes. Neither leaves anything in the bucket.
"""

import secrets
import time
from hashlib import sha256

from dockyard.config.settings import StorageSettings
from dockyard.s3.client import WRONG_LOGIN, S3Client
from dockyard.s3.errors import S3Error

MAX_CLOCK_SKEW_S = 300.0
_REFUSED = {"XAmzContentSHA256Mismatch", "BadDigest", "InvalidDigest"}
_LOGIN = (*WRONG_LOGIN - {"SignatureDoesNotMatch"}, "TokenRefreshRequired")
_CLOCK = ("RequestTimeTooSkewed", "ClockSkewed")
_TLS = ("insecure", "garbage", "broken")


def check_bucket(client: S3Client, settings: StorageSettings) -> list[str]:
    """One sentence for each, with what to change; empty when all is well."""
    key = f"{settings.prefix}check-{secrets.token_hex(16)}"
    try:
        if client.request("check", "GET", key) is not None:
            return [f"{client.host} has an object that cannot exist: storage.endpoint is not an S3 service"]
    except S3Error as fault:
        return [_explain(fault, client, settings)]
    return [*_writing(client, settings, key)]


def _writing(client: S3Client, settings: StorageSettings, key: str) -> list[str]:
    body = b"dockyard"
    headers = {"Content-Type": "text/plain", "Content-Length": str(len(body))}
    try:
        # As an iterator it is sent once, with the hash that we claim.
        opened = client.open_response(
            "check", "PUT", key, headers=headers, body=iter([body]), payload=sha256(key.encode()).hexdigest()
        )
    except S3Error as fault:
        if fault.code in _REFUSED:
            return []
        if fault.status == 403 and fault.code in {"AccessDenied", ""}:
            objects = f"{client.bucket}/{settings.prefix}*"
            return [f"nothing may be written to bucket {client.bucket}: give us s3:PutObject on {objects}"]
        return [_explain(fault, client, settings)]
    if opened is not None:
        opened.close()
    client.request("check", "DELETE", key)
    return [
        f"{client.host} stored bytes of another hash than it was told: what it has is verified only when it is read"
    ]


def _explain(fault: S3Error, client: S3Client, settings: StorageSettings) -> str:
    where = settings.endpoint or f"AWS S3 in {settings.region}"
    skew = abs(fault.date - time.time()) if fault.date else 0.0
    code = "ClockSkewed" if fault.code == "SignatureDoesNotMatch" and skew > MAX_CLOCK_SKEW_S else fault.code
    bucket = client.bucket
    sentences = {
        "unreachable": f"{fault}: check storage.endpoint{_style(client, settings)}",
        "credentials": str(fault),
        "NoSuchBucket": f"bucket {bucket} does not exist at {where}: create it, or set storage.bucket",
        "SignatureDoesNotMatch": f"{where} says that the secret key is wrong: check storage.secret_key",
        "AccessDenied": (
            f"what is missing in bucket {bucket} looks forbidden and cannot be told from trouble: "
            f"give us s3:ListBucket on it, and s3:GetObject on {bucket}/{settings.prefix}*"
        ),
        **dict.fromkeys(
            _LOGIN, f"{where} does not take our access key ({code}): check storage.access_key, or the role"
        ),
        **dict.fromkeys(_CLOCK, f"our clock and that of {where} differ by {skew:.0f} s: set this machine's clock"),
        **dict.fromkeys(
            _TLS, f"{fault}: check storage.use_ssl (it is {str(client.is_tls).lower()}) and the certificate"
        ),
    }
    if sentence := sentences.get(code):
        return sentence
    if fault.status in {301, 307, 308} or fault.region:
        return f"bucket {bucket} is in another region: set storage.region{f' to {fault.region}' * bool(fault.region)}"
    if fault.status == 403:
        return f"{where} refuses us ({code or 403}): check the keys, or the role, and their rights"
    if fault.status in {400, 404, 405} and not code:
        return f"{fault}: that is no S3 service, or storage.use_ssl is wrong{_style(client, settings)}"
    return f"{fault}: it is used as soon as it works"


def _style(client: S3Client, settings: StorageSettings) -> str:
    if settings.force_path_style or not settings.endpoint or not client.host.startswith(f"{client.bucket}."):
        return ""
    return f"; the bucket is asked for at {client.host}: MinIO and others want storage.force_path_style: true"

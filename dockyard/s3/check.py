"""The start-up check of bucket and rights: what an operator got wrong, in plain words.

Two questions. A key that cannot exist must be missing, and neither forbidden nor anything else. And an upload with a
false hash must be refused for that: whoever may not write is told so first, and a store that takes it cannot be
trusted to refuse wrong bytes. Neither leaves anything in the bucket.
"""

import secrets
import time
from hashlib import sha256

from dockyard.config.settings import StorageSettings
from dockyard.s3.client import WRONG_LOGIN, Wire
from dockyard.s3.errors import StorageFault

SKEW_AT_MOST_S = 300.0
_REFUSED = {"XAmzContentSHA256Mismatch", "BadDigest", "InvalidDigest"}
_LOGIN = (*WRONG_LOGIN - {"SignatureDoesNotMatch"}, "TokenRefreshRequired")
_CLOCK = ("RequestTimeTooSkewed", "ClockSkewed")
_TLS = ("insecure", "garbage", "broken")


def find_troubles(wire: Wire, settings: StorageSettings) -> list[str]:
    """One sentence for each, with what to change; empty when all is well."""
    key = f"{settings.prefix}check-{secrets.token_hex(16)}"
    try:
        if wire.ask("check", "GET", key) is not None:
            return [f"{wire.host} has an object that cannot exist: storage.endpoint is not an S3 service"]
    except StorageFault as fault:
        return [_explain(fault, wire, settings)]
    return [*_writing(wire, settings, key)]


def _writing(wire: Wire, settings: StorageSettings, key: str) -> list[str]:
    body = b"dockyard"
    headers = {"Content-Type": "text/plain", "Content-Length": str(len(body))}
    try:
        # As an iterator it is sent once, with the hash that we claim.
        opened = wire.open(
            "check", "PUT", key, headers=headers, body=iter([body]), payload=sha256(key.encode()).hexdigest()
        )
    except StorageFault as fault:
        if fault.code in _REFUSED:
            return []
        if fault.status == 403 and fault.code in {"AccessDenied", ""}:
            objects = f"{wire.bucket}/{settings.prefix}*"
            return [f"nothing may be written to bucket {wire.bucket}: give us s3:PutObject on {objects}"]
        return [_explain(fault, wire, settings)]
    if opened is not None:
        opened.close()
    wire.ask("check", "DELETE", key)
    return [f"{wire.host} stored bytes of another hash than it was told: what it has is verified only when it is read"]


def _explain(fault: StorageFault, wire: Wire, settings: StorageSettings) -> str:
    where = settings.endpoint or f"AWS S3 in {settings.region}"
    skew = abs(fault.date - time.time()) if fault.date else 0.0
    code = "ClockSkewed" if fault.code == "SignatureDoesNotMatch" and skew > SKEW_AT_MOST_S else fault.code
    bucket = wire.bucket
    sentences = {
        "unreachable": f"{fault}: check storage.endpoint{_style(wire, settings)}",
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
        **dict.fromkeys(_TLS, f"{fault}: check storage.use_ssl (it is {str(wire.is_tls).lower()}) and the certificate"),
    }
    if sentence := sentences.get(code):
        return sentence
    if fault.status in {301, 307, 308} or fault.region:
        return f"bucket {bucket} is in another region: set storage.region{f' to {fault.region}' * bool(fault.region)}"
    if fault.status == 403:
        return f"{where} refuses us ({code or 403}): check the keys, or the role, and their rights"
    if fault.status in {400, 404, 405} and not code:
        return f"{fault}: that is no S3 service, or storage.use_ssl is wrong{_style(wire, settings)}"
    return f"{fault}: it is used as soon as it works"


def _style(wire: Wire, settings: StorageSettings) -> str:
    if settings.force_path_style or not settings.endpoint or not wire.host.startswith(f"{wire.bucket}."):
        return ""
    return f"; the bucket is asked for at {wire.host}: MinIO and others want storage.force_path_style: true"

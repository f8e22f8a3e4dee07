"""The start-up check of the bucket and the permissions: one sentence for each configuration mistake. Blocking.

Two requests. A GET of a key that does not exist must report a missing object, not a denied one or anything else. An
upload with a wrong hash must be rejected for that reason: without permission to write it is rejected earlier, and a
service that accepts it does not verify uploads. Neither request leaves anything in the bucket.

`find_old_versions` is about space, not about errors: a versioned bucket keeps what a touch replaces.
"""

import re
import secrets
from hashlib import sha256

from dockyard.config.settings import StorageSettings
from dockyard.s3.client import S3Client
from dockyard.s3.errors import S3Error
from dockyard.s3.responses import xml_text

_WRONG_HASH = {"XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "BadDigest", "InvalidDigest"}


def check_bucket(client: S3Client, settings: StorageSettings) -> list[str]:
    """Return one sentence for each problem, with what to change; empty when there is none."""
    key = f"{settings.prefix}check-{secrets.token_hex(16)}"
    try:
        if client.request("check", "GET", key) is not None:
            return [f"{client.host} returned an object that does not exist: storage.endpoint is not an S3 service"]
    except S3Error as exc:
        return [exc.explanation]
    return _check_writing(client, key)


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


def _check_writing(client: S3Client, key: str) -> list[str]:
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
        return [exc.explanation]
    if response is not None:
        response.close()
    client.request("check", "DELETE", key)
    problem = f"{client.host} stored an object with another hash than the signed one"
    return [f"{problem}: this service does not verify uploads, so objects are verified only when they are read"]

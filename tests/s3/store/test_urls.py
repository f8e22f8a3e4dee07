"""The URLs of the bucket: AWS or another service, virtual-hosted or path style."""

from pathlib import Path

import pytest

from dockyard.config.settings import StorageSettings
from dockyard.config.types import Secret
from dockyard.oci.reference import Digest
from dockyard.s3.store import S3Store

DIGEST = Digest.of(b"")


def settings(**given: object) -> StorageSettings:
    """Return settings with credentials and a bucket."""
    chosen = {"bucket": "cache", "access_key": "key", "secret_key": Secret("secret"), "directory": Path("/tmp")} | given
    return StorageSettings(**chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "https://cache.s3.us-east-1.amazonaws.com/"),
        ({"region": "eu-central-1"}, "https://cache.s3.eu-central-1.amazonaws.com/"),
        ({"region": "cn-north-1"}, "https://cache.s3.cn-north-1.amazonaws.com.cn/"),
        ({"region": "us-gov-west-1"}, "https://cache.s3.us-gov-west-1.amazonaws.com/"),
        ({"force_path_style": True}, "https://s3.us-east-1.amazonaws.com/cache/"),
        ({"bucket": "my.cache"}, "https://s3.us-east-1.amazonaws.com/my.cache/"),
        ({"use_ssl": True, "endpoint": "s3.eu-west-1.amazonaws.com", "region": "eu-west-1"},
         "https://cache.s3.eu-west-1.amazonaws.com/"),
        ({"endpoint": "minio:9000", "force_path_style": True}, "http://minio:9000/cache/"),
        ({"endpoint": "minio:9000", "force_path_style": True, "use_ssl": True}, "https://minio:9000/cache/"),
        ({"endpoint": "store.example"}, "http://cache.store.example/"),
        ({"endpoint": "127.0.0.1:9000"}, "http://127.0.0.1:9000/cache/"),
        ({"endpoint": "[::1]:9000"}, "http://[::1]:9000/cache/"),
        ({"endpoint": "abc.r2.cloudflarestorage.com", "region": "auto", "use_ssl": True, "force_path_style": True},
         "https://abc.r2.cloudflarestorage.com/cache/"),
    ],
)  # fmt: skip
def test_requests_go_to_the_url_of_the_settings(given: dict[str, object], url: str) -> None:
    """An IP address, and a bucket with dots over TLS, always use path style: no other style is possible."""
    presigned = S3Store(settings(**given), {}).presign_blob(DIGEST, 60)
    assert presigned.startswith(f"{url}cache/blobs/sha256/e3/{DIGEST.encoded}?")


@pytest.mark.parametrize(
    "given",
    [
        {"endpoint": "http://minio:9000"},
        {"endpoint": "minio:9000/path"},
        {"endpoint": "minio:port"},
        {"endpoint": "user@minio"},
        {"region": "us east"},
        {"endpoint": "foo.amazonaws.com", "use_ssl": True},
        {"bucket": ""},
    ],
)
def test_settings_without_a_valid_url_are_rejected(given: dict[str, object]) -> None:
    """They are rejected before a request is sent; the message names the settings."""
    with pytest.raises(ValueError, match=r"storage\.endpoint"):
        S3Store(settings(**given), {})


def test_secrets_are_not_shown() -> None:
    """No `repr` of the store and of its parts contains a secret."""
    s3 = S3Store(settings(secret_key=Secret("canary")), {})
    assert "canary" not in f"{s3!r}{s3.__dict__!r}{s3._client.__dict__!r}{s3._client._credentials!r}"

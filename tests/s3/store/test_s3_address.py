"""Where requests go: AWS or another store, virtual host or path style."""

from pathlib import Path

import pytest

from dockyard.config.settings import StorageSettings
from dockyard.config.types import Secret
from dockyard.oci.reference import Digest
from dockyard.s3 import S3Store

DIGEST = Digest.of(b"")


def settings(**given: object) -> StorageSettings:
    """Settings with keys and a bucket."""
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
def test_objects_are_asked_for_there(given: dict[str, object], url: str) -> None:
    """An address and a dotted bucket over TLS take path style, whatever was said: nothing else can work."""
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
def test_settings_that_make_no_address_are_refused(given: dict[str, object]) -> None:
    """Before anything is sent, and with the keys to look at."""
    with pytest.raises(ValueError, match=r"storage\.endpoint"):
        S3Store(settings(**given), {})


def test_secrets_are_not_shown() -> None:
    """Not by the tier, and not by its parts."""
    tier = S3Store(settings(secret_key=Secret("canary")), {})
    assert "canary" not in f"{tier!r}{tier.__dict__!r}{tier._client.__dict__!r}{tier._client._credentials!r}"

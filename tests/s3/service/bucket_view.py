"""A bucket as another program sees it: objects are written and read with the client of minio-py, not with Dockyard.

Every test ends with `audit`, which reads the whole bucket and hashes each object.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import urllib3
from minio import Minio
from minio.credentials import StaticProvider
from minio.error import S3Error
from minio.minioadmin import MinioAdmin

from tests.s3.store.servers import ACCESS_KEY, SECRET_KEY, Server
from tests.support.bodies import digest_of
from tests.support.schema1 import payload_of

PREFIX = "cache/"
BLOB_TYPE = "application/octet-stream"
EMPTY = hashlib.sha256().hexdigest()
READ_BYTES = 1024 * 1024

_NAME = r"(?:[a-z0-9]+(?:[._-]+[a-z0-9]+)*/)+"
_CONTENT = re.compile(
    rf"cache/(?:manifests/{_NAME}|blobs/)(?P<algorithm>sha256|sha512)/(?:(?P<two>[0-9a-f]{{2}})/)?(?P<hex>[0-9a-f]+)"
)
_POINTER = re.compile(rf"cache/manifests/{_NAME}tags/[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}")
_LINK = re.compile(rf"cache/links/{_NAME}(?:sha256/[0-9a-f]{{64}}|sha512/[0-9a-f]{{128}})")
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@attrs.frozen
class Object:
    """The metadata of an object."""

    size: int
    content_type: str
    modified: datetime
    metadata: dict[str, str]


class BucketView:
    """The bucket of one test, on a real server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.bucket = f"bucket-{secrets.token_hex(4)}"
        self._unfinished_before = self._unfinished()
        self._client = Minio(
            server.host,
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            secure=False,
            http_client=urllib3.PoolManager(timeout=urllib3.Timeout(30), retries=False),
        )

    def make(self) -> None:
        """Create the bucket."""
        self._client.make_bucket(self.bucket)

    def close(self) -> None:
        self._client._http.clear()

    def storage(self, endpoint: str = "", **more: Any) -> dict[str, Any]:
        """Return the `storage:` settings of a Dockyard over this bucket. `endpoint` is a proxy before the server."""
        return {
            "endpoint": endpoint or self.server.host,
            "bucket": self.bucket,
            "prefix": PREFIX,
            "access_key": ACCESS_KEY,
            "secret_key": SECRET_KEY,
            "use_ssl": False,
            "force_path_style": True,
            **more,
        }

    # Reading

    def listed(self) -> set[str]:
        """Return all keys."""
        return {str(each.object_name) for each in self._client.list_objects(self.bucket, recursive=True)}

    def get(self, key: str) -> bytes:
        """Return the bytes of an object."""
        with self._client.get_object(self.bucket, key) as response:
            return response.read()

    def stat(self, key: str) -> Object:
        found = self._client.stat_object(self.bucket, key)
        metadata = {name.lower(): value for name, value in (found.metadata or {}).items()}
        assert found.size is not None
        assert found.last_modified is not None
        return Object(found.size, found.content_type or "", found.last_modified, metadata)

    def age(self, key: str) -> timedelta:
        """Return the age of an object by its LastModified."""
        return datetime.now(UTC) - self.stat(key).modified

    def uploads(self) -> set[str]:
        """Return the unfinished multipart uploads that this test has started."""
        return self._unfinished() - self._unfinished_before

    def _unfinished(self) -> set[str]:
        """Read them from the disk of the server: MinIO does not list those that were started before its restart."""
        directory = self.server.data / ".minio.sys" / "multipart"
        return {str(path.relative_to(directory)) for path in directory.glob("*/*")}

    # Writing

    def put(self, key: str, body: bytes, content_type: str = BLOB_TYPE, *, days_ago: int = 0, **metadata: str) -> None:
        """Put an object with a LastModified so many days ago, which MinIO accepts from a replication."""
        headers = {"Content-Type": content_type, **{f"x-amz-meta-{name}": value for name, value in metadata.items()}}
        if days_ago:
            modified = datetime.now(UTC) - timedelta(days=days_ago)
            headers |= {
                "X-Minio-Source-Mtime": modified.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "X-Minio-Source-Replication-Request": "true",
            }
        self._client._execute("PUT", self.bucket, object_name=key, body=body, headers=headers)

    def put_blob(self, body: bytes, **options: Any) -> str:
        """Put a blob under its key; return the key."""
        key = blob_key(digest_of(body))
        self.put(key, body, **options)
        return key

    def remove(self, key: str) -> None:
        self._client.remove_object(self.bucket, key)

    def age_all(self, days: int) -> None:
        """Make every object so old, and keep its bytes and its media type."""
        for key in self.listed():
            self.put(key, self.get(key), self.stat(key).content_type, days_ago=days)

    def add_login(self, *actions: str) -> dict[str, str]:
        """Create an access key with these permissions for the bucket; return it as `storage:` settings."""
        settings = {"access_key": secrets.token_hex(8), "secret_key": secrets.token_hex(16)}
        statements = [
            {"Effect": "Allow", "Action": [action], "Resource": [f"arn:aws:s3:::{self.bucket}{path}"]}
            for action, path in ((action, "" if action == "s3:ListBucket" else "/*") for action in actions)
        ]
        admin = self._admin()
        admin.add_service_account(**settings, policy={"Version": "2012-10-17", "Statement": statements})
        admin._http.clear()
        return settings

    def remove_login(self, settings: dict[str, str]) -> None:
        """Revoke an access key."""
        admin = self._admin()
        admin.delete_service_account(settings["access_key"])
        admin._http.clear()

    def _admin(self) -> MinioAdmin:
        return MinioAdmin(endpoint=self.server.host, credentials=StaticProvider(ACCESS_KEY, SECRET_KEY), secure=False)

    # Audit

    def audit(self) -> list[str]:
        """Read all objects; return a line for each that does not match its key, and for each unfinished upload."""
        problems = [f"unfinished upload {each}" for each in sorted(self.uploads())]
        found = {key: self._find_problem(key) for key in sorted(self.listed())}
        return problems + [f"{key}: {problem}" for key, problem in found.items() if problem]

    def _find_problem(self, key: str) -> str:
        with self._client.get_object(self.bucket, key) as response:
            return find_object_problem(key, response.stream(READ_BYTES))


def find_object_problem(key: str, pieces: Iterable[bytes]) -> str:
    """Return the problem of an object under its key; empty when there is none."""
    if _POINTER.fullmatch(key):
        text = b"".join(pieces)
        return "" if _DIGEST.fullmatch(text.strip()) else f"a pointer that is not a digest: {text!r}"
    if _LINK.fullmatch(key):
        return "a link that is not empty" if b"".join(pieces) else ""
    match = _CONTENT.fullmatch(key)
    if match is None:
        return "not a key of Dockyard"
    if "/blobs/" in key and match["two"] != match["hex"][:2]:
        return "not below its first two characters"
    if "/manifests/" in key:
        body = b"".join(pieces)
        pieces = [payload_of(body)]  # the signatures of a schema 1 manifest are not covered by its digest
    hasher, size = hashlib.new(match["algorithm"]), 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
    if hasher.hexdigest() != match["hex"]:
        return f"{size} bytes with another digest"
    return "" if size or match["hex"] == EMPTY else "empty"


def blob_key(digest: str) -> str:
    """Return the key of a blob, as documented. Dockyard's own function is not used here because it is under test."""
    algorithm, _, encoded = digest.partition(":")
    return f"cache/blobs/{algorithm}/{encoded[:2]}/{encoded}"


def manifest_key(name: str, digest: str) -> str:
    """Return the key of a manifest, as documented."""
    return f"cache/manifests/{name}/{digest.replace(':', '/')}"


def link_key(name: str, digest: str) -> str:
    """Return the key of a link from a repository to a blob, as documented."""
    return f"cache/links/{name}/{digest.replace(':', '/')}"


def tag_key(name: str, tag: str) -> str:
    """Return the key of a tag pointer, as documented."""
    return f"cache/manifests/{name}/tags/{tag}"


def is_missing(bucket_view: BucketView, key: str) -> bool:
    """Whether the server has no such object."""
    try:
        bucket_view.stat(key or "the-bucket-is-not-an-object")
    except S3Error as exc:
        return exc.code == "NoSuchKey"
    return False


def named_by(manifest: bytes) -> tuple[list[str], list[str]]:
    """Return the digests of the manifests, and of the blobs, that a manifest names."""
    document = json.loads(manifest)
    children = [each["digest"] for each in document.get("manifests", [])]
    parts = [document["config"], *document["layers"]] if "layers" in document else []
    return children, [each["digest"] for each in parts]

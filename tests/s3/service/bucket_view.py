"""A bucket as somebody else sees it: what an operator's tools would put there and find, never through Dockyard.

`audit` is the judge of every test: it reads the whole bucket and hashes it.
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

PREFIX = "cache/"
BLOB_TYPE = "application/octet-stream"
EMPTY = hashlib.sha256().hexdigest()
READ_BYTES = 1024 * 1024

_NAME = r"(?:[a-z0-9]+(?:[._-]+[a-z0-9]+)*/)+"
_CONTENT = re.compile(
    rf"cache/(?:manifests/{_NAME}|blobs/)(?P<algorithm>sha256|sha512)/(?:(?P<two>[0-9a-f]{{2}})/)?(?P<hex>[0-9a-f]+)"
)
_POINTER = re.compile(rf"cache/manifests/{_NAME}tags/[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}}")
_DIGEST = re.compile(rb"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")


@attrs.frozen
class Object:
    """An object's headers."""

    size: int
    content_type: str
    modified: datetime
    metadata: dict[str, str]


class BucketView:
    """A bucket of one test, on a real server."""

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
        """Make the bucket."""
        self._client.make_bucket(self.bucket)

    def close(self) -> None:
        self._client._http.clear()

    def storage(self, endpoint: str = "", **more: Any) -> dict[str, Any]:
        """The `storage:` of a Dockyard that keeps its things here; `endpoint` is a proxy before the server."""
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

    # What is there

    def listed(self) -> set[str]:
        """All keys."""
        return {str(each.object_name) for each in self._client.list_objects(self.bucket, recursive=True)}

    def get(self, key: str) -> bytes:
        """The bytes of an object."""
        with self._client.get_object(self.bucket, key) as answer:
            return answer.read()

    def stat(self, key: str) -> Object:
        found = self._client.stat_object(self.bucket, key)
        metadata = {name.lower(): value for name, value in (found.metadata or {}).items()}
        assert found.size is not None
        assert found.last_modified is not None
        return Object(found.size, found.content_type or "", found.last_modified, metadata)

    def age(self, key: str) -> timedelta:
        """How long ago an object was written, as the server tells it."""
        return datetime.now(UTC) - self.stat(key).modified

    def uploads(self) -> set[str]:
        """Multipart uploads that nobody completed, of this test's making."""
        return self._unfinished() - self._unfinished_before

    def _unfinished(self) -> set[str]:
        """Looked for on the server's disk: what was begun before a restart of MinIO it does not list."""
        rooms = self.server.data / ".minio.sys" / "multipart"
        return {str(path.relative_to(rooms)) for path in rooms.glob("*/*")}

    # What others do

    def put(self, key: str, body: bytes, content_type: str = BLOB_TYPE, *, days_ago: int = 0, **metadata: str) -> None:
        """Put an object there, as it would have been so many days ago (for MinIO it then comes by replication)."""
        headers = {"Content-Type": content_type, **{f"x-amz-meta-{name}": value for name, value in metadata.items()}}
        if days_ago:
            before_response = datetime.now(UTC) - timedelta(days=days_ago)
            headers |= {
                "X-Minio-Source-Mtime": before_response.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "X-Minio-Source-Replication-Request": "true",
            }
        self._client._execute("PUT", self.bucket, object_name=key, body=body, headers=headers)

    def put_blob(self, body: bytes, **options: Any) -> str:
        """Put a blob under its key; the key."""
        key = blob_key(digest_of(body))
        self.put(key, body, **options)
        return key

    def remove(self, key: str) -> None:
        self._client.remove_object(self.bucket, key)

    def age_all(self, days: int) -> None:
        """Make every object so old, with all that it is."""
        for key in self.listed():
            self.put(key, self.get(key), self.stat(key).content_type, days_ago=days)

    def add_login(self, *actions: str) -> dict[str, str]:
        """A key that may do only this here; as settings of `storage:`."""
        login = {"access_key": secrets.token_hex(8), "secret_key": secrets.token_hex(16)}
        rights = [
            {"Effect": "Allow", "Action": [action], "Resource": [f"arn:aws:s3:::{self.bucket}{self._below(action)}"]}
            for action in actions
        ]
        admin = self._admin()
        admin.add_service_account(**login, policy={"Version": "2012-10-17", "Statement": rights})
        admin._http.clear()
        return login

    def remove_login(self, login: dict[str, str]) -> None:
        """The key is good for nothing any more."""
        admin = self._admin()
        admin.delete_service_account(login["access_key"])
        admin._http.clear()

    def _admin(self) -> MinioAdmin:
        return MinioAdmin(endpoint=self.server.host, credentials=StaticProvider(ACCESS_KEY, SECRET_KEY), secure=False)

    @staticmethod
    def _below(action: str) -> str:
        return "" if action == "s3:ListBucket" else "/*"

    # The judge

    def audit(self) -> list[str]:
        """Read everything; one line for each object that is not what its key says, and for each unfinished upload."""
        wrong = [f"unfinished upload {each}" for each in sorted(self.uploads())]
        judged = {key: self._judge(key) for key in sorted(self.listed())}
        return wrong + [f"{key}: {trouble}" for key, trouble in judged.items() if trouble]

    def _judge(self, key: str) -> str:
        with self._client.get_object(self.bucket, key) as answer:
            return find_object_problem(key, answer.stream(READ_BYTES))


def find_object_problem(key: str, pieces: Iterable[bytes]) -> str:
    """What is wrong with an object under a key of ours; nothing when all is right."""
    if _POINTER.fullmatch(key):
        text = b"".join(pieces)
        return "" if _DIGEST.fullmatch(text.strip()) else f"a pointer that says {text!r}"
    match = _CONTENT.fullmatch(key)
    if match is None:
        return "not a key of ours"
    if "/blobs/" in key and match["two"] != match["hex"][:2]:
        return "not in the room of its first two characters"
    hasher, size = hashlib.new(match["algorithm"]), 0
    for piece in pieces:
        hasher.update(piece)
        size += len(piece)
    if hasher.hexdigest() != match["hex"]:
        return f"{size} bytes of another digest"
    return "" if size or match["hex"] == EMPTY else "empty"


def blob_key(digest: str) -> str:
    """Where the original keeps a blob. Written down here on purpose: Dockyard's own function is on trial."""
    algorithm, _, encoded = digest.partition(":")
    return f"cache/blobs/{algorithm}/{encoded[:2]}/{encoded}"


def manifest_key(name: str, digest: str) -> str:
    """Where the original keeps a manifest."""
    return f"cache/manifests/{name}/{digest.replace(':', '/')}"


def tag_key(name: str, tag: str) -> str:
    """Where the original keeps the pointer of a tag."""
    return f"cache/manifests/{name}/tags/{tag}"


def is_missing(bucket_view: BucketView, key: str) -> bool:
    """Whether the server has no such object."""
    try:
        bucket_view.stat(key or "a-bucket-is-no-object")
    except S3Error as exc:
        return exc.code == "NoSuchKey"
    return False


def named_by(manifest: bytes) -> tuple[list[str], list[str]]:
    """The digests of the manifests, and of the blobs, that a manifest names."""
    document = json.loads(manifest)
    children = [each["digest"] for each in document.get("manifests", [])]
    parts = [document["config"], *document["layers"]] if "layers" in document else []
    return children, [each["digest"] for each in parts]

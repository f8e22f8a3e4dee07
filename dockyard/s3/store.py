"""The S3 store: blobs, manifests and tag pointers as objects in a bucket. Blocking.

An object is either complete and right, or absent. A method returns None when the service states that there is no such
object, or when the object was deleted or replaced during the request. Every other failure raises `S3Error`; the caller
then continues without the bucket. All methods may be called from many threads.

Requests to the service, by operation:

| operation | requests |
|---|---|
| a blob or manifest in the local store or in memory | none |
| `open_blob`, `read_manifest`, `read_pointer` | 1 GET, found or not; 1 more for a resumed blob; 1 for each range |
| `stat_blob`, `has_link` | 1 HEAD; 1 HEAD of the bucket when nothing was found, and it was not seen for a minute |
| `publish_blob`, `write_manifest`, `write_pointer`, `write_link` | 1 PUT |
| `publish_blob` above 5 GiB, or of a sha512 digest | 1 POST, 1 PUT for each 512 MiB, 1 POST, 1 HEAD |
| `touch` | 1 HEAD, 1 PUT (copy) |
| `touch` above 5 GiB, or where a copy does not update LastModified | 1 HEAD, 1 POST, 1 PUT for each GiB, 1 POST |
| `presign_blob` | none |
| `check` | 1 GET, 1 PUT |
| `find_old_versions` | 1 GET, 1 more when versioning is enabled |
| `retry_aborts` | 1 DELETE for each upload |
| `abort_stale_uploads` | 1 GET for each 1,000 uploads, 1 DELETE for each that is stale |

So a cold blob takes a GET that finds nothing, and a PUT. All requests but those of `publish_blob` are retried once when
the connection broke or the service responded with a 5xx status.
"""

import time
from collections import Counter
from collections.abc import Mapping
from urllib.parse import quote

import attrs
import structlog

from dockyard.config.settings import StorageSettings
from dockyard.errors import DigestInvalid
from dockyard.oci.manifest import MAX_MANIFEST_BYTES
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3.blob_stream import S3BlobStream, parse_extent
from dockyard.s3.check import check_bucket, find_old_versions
from dockyard.s3.client import S3Client
from dockyard.s3.credentials import CredentialChain
from dockyard.s3.errors import S3Error
from dockyard.s3.responses import S3Response, parse_time
from dockyard.s3.upload import (
    COPY_TIMEOUT_S,
    GIB,
    MAX_PUT_BYTES,
    PART_BYTES,
    Chunks,
    abort_upload,
    copy_parts,
    fits_one_put,
    list_unfinished_uploads,
    put_blob,
    put_parts,
)
from dockyard.storage import keys
from dockyard.storage.local import Pointer

MAX_POINTER_BYTES = 1024
COPY_PART_BYTES = GIB

# Headers that a touch sends again: a copy that replaces the metadata keeps no others.
_METADATA_HEADERS = {
    *("content-type", "cache-control", "content-disposition", "content-encoding", "content-language", "expires"),
    *("x-amz-storage-class", "x-amz-website-redirect-location", "x-amz-server-side-encryption"),
    *("x-amz-server-side-encryption-aws-kms-key-id", "x-amz-server-side-encryption-bucket-key-enabled"),
}

log = structlog.get_logger()


@attrs.frozen
class ObjectInfo:
    """The size of an object in bytes, and its age by the clock of the service."""

    size: int
    age_s: float


@attrs.frozen
class S3Object:
    """The bytes of a small object, not verified, its age by the clock of the service, and its Content-Type."""

    body: bytes = attrs.field(repr=False)
    age_s: float
    media_type: str


class S3Store:
    """Blobs, manifests and tag pointers in one bucket.

    Each process creates its own, after it was forked. Raises ValueError when the settings do not give a valid URL. The
    sizes are for tests: the largest PUT or copy, and the length of the parts of what is larger.
    """

    def __init__(
        self,
        settings: StorageSettings,
        environ: Mapping[str, str],
        *,
        max_put_bytes: int = MAX_PUT_BYTES,
        part_bytes: int = PART_BYTES,
        copy_part_bytes: int = COPY_PART_BYTES,
    ) -> None:
        self._settings = settings
        self._prefix = settings.prefix
        self._max_put_bytes = max_put_bytes
        self._part_bytes = part_bytes
        self._copy_part_bytes = copy_part_bytes
        self._copies_in_parts = False  # set by the first touch, if the service requires it
        self._client = S3Client(settings, CredentialChain(settings, environ))

    @property
    def requests(self) -> Counter[str]:
        """The requests sent, by operation."""
        return self._client.requests

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    # Blobs

    def open_blob(self, digest: Digest, start: int = 0, etag: str = "", stop: int | None = None) -> S3BlobStream | None:
        """Open a blob at byte `start`, if it still has that `etag`; None when there is no such object.

        With `stop` it ends before that byte; None also when the service does not support ranges. Raises S3Error.
        """
        headers = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"} if start or stop is not None else {}
        headers |= {"If-Match": etag} if etag else {}
        response = self._client.open_response("get blob", "GET", keys.blob_key(self._prefix, digest), headers=headers)
        if response is None:
            return None
        if response.status == 200 and stop is not None:
            response.close()
            return None
        try:
            body_start, size = parse_extent(response, start, stop)
        except ValueError as exc:
            response.close()
            raise S3Error(f"unexpected response of the S3 service for {digest}: {exc}", "garbage") from exc
        if not size and digest != Digest.of(b"", digest.algorithm):
            response.close()
            log.warning("an object in S3 is empty and is not used", digest=str(digest))
            return None
        return S3BlobStream(response, size, body_start, stop)

    def stat_blob(self, digest: Digest) -> ObjectInfo | None:
        """Return the size and age of a blob; None when there is no such object. Raises S3Error."""
        response = self._head(keys.blob_key(self._prefix, digest))
        return ObjectInfo(_content_length(response), response.age_s) if response else None

    def publish_blob(self, digest: Digest, size: int, chunks: Chunks) -> None:
        """Upload a blob while its chunks are produced: `chunks(start)` yields the bytes from `start` on.

        Raises S3Error, and the exceptions of `chunks`: then the connection was closed, and no object was created.
        """
        key = keys.blob_key(self._prefix, digest)
        if fits_one_put(digest, size, self._max_put_bytes):
            put_blob(self._client, key, digest, size, chunks)
        else:
            put_parts(self._client, key, digest, size, chunks, self._part_bytes)

    def fits_one_put(self, digest: Digest, size: int) -> bool:
        """Whether `publish_blob` reads the bytes of a blob once, in order."""
        return fits_one_put(digest, size, self._max_put_bytes)

    def presign_blob(self, digest: Digest, expires_s: int) -> str:
        """Return a URL that reads the blob without credentials. Raises S3Error."""
        return self._client.presign(keys.blob_key(self._prefix, digest), expires_s)

    # Manifests and tags

    def read_manifest(self, name: Name, digest: Digest) -> S3Object | None:
        """Read the bytes of a manifest, not verified; None when there is no such object. Raises S3Error."""
        return self._read("get manifest", keys.manifest_key(self._prefix, name, digest), MAX_MANIFEST_BYTES)

    def write_manifest(self, name: Name, digest: Digest, body: bytes, media_type: str) -> None:
        """Store a verified manifest. Raises S3Error."""
        self._write("put manifest", keys.manifest_key(self._prefix, name, digest), body, media_type)

    def read_pointer(self, name: Name, tag: Tag) -> Pointer | None:
        """Read the pointer of a tag; None when there is no such object, or one that is not a digest. Raises S3Error.

        `checked_at` is the time at which it was written, by the clock of this machine.
        """
        found = self._read("get pointer", keys.tag_key(self._prefix, name, tag), MAX_POINTER_BYTES)
        if found is None:
            return None
        try:
            return Pointer(Digest.parse(found.body.decode("ascii").strip()), time.time() - found.age_s)
        except (UnicodeDecodeError, DigestInvalid) as exc:
            log.warning("a tag pointer in S3 is not a digest and is ignored", tag=str(tag), error=str(exc))
            return None

    def write_pointer(self, name: Name, tag: Tag, digest: Digest) -> None:
        """Point the tag at a manifest that is stored already. Raises S3Error."""
        self._write("put pointer", keys.tag_key(self._prefix, name, tag), str(digest).encode(), "text/plain")

    # Links

    def has_link(self, name: Name, digest: Digest) -> bool:
        """Whether there is a link from a repository to a blob. Raises S3Error."""
        return self._head(keys.link_key(self._prefix, name, digest)) is not None

    def write_link(self, name: Name, digest: Digest) -> None:
        """Write a link from a repository to a blob, or renew its LastModified. Raises S3Error."""
        self._write("put link", keys.link_key(self._prefix, name, digest), b"", "application/octet-stream")

    # Maintenance

    def touch(self, key: str) -> bool:
        """Renew the LastModified of an object, so that lifecycle rules do not expire it; False when it is absent.

        The object is copied onto itself with its metadata: in parts when it is too large for one copy, or when the
        service does not update LastModified on a copy (versitygw). Raises S3Error.
        """
        found = self._head(key)
        if found is None:
            return False
        source = {
            "x-amz-copy-source": quote(f"/{self._settings.bucket}/{key}"),
            "x-amz-copy-source-if-match": found.headers.get("ETag", ""),
        }
        metadata = {
            name.lower(): value
            for name, value in found.headers.items()
            if name.lower() in _METADATA_HEADERS or name.lower().startswith("x-amz-meta-")
        }
        size = _content_length(found)
        if size <= self._max_put_bytes and not self._copies_in_parts:
            headers = {**source, **metadata, "x-amz-metadata-directive": "REPLACE"}
            copied = self._client.request("copy", "PUT", key, headers=headers, read_timeout_s=COPY_TIMEOUT_S)
            if copied is None:
                return self._head(key) is not None  # replaced meanwhile, or deleted
            if _is_renewed(found, copied):
                return True
            log.info("the S3 service does not update LastModified on a copy, objects are copied in parts")
            self._copies_in_parts = True
        if not size:
            return self._client.request("put again", "PUT", key, headers=metadata) is not None
        return copy_parts(self._client, key, source, metadata, size, self._copy_part_bytes)

    def check(self) -> list[str]:
        """Check the bucket and the permissions; return one sentence for each problem, with what to change."""
        return check_bucket(self._client, self._settings)

    def find_old_versions(self) -> str:
        """Return why the bucket keeps replaced objects for ever, with what to change; empty when it does not."""
        return find_old_versions(self._client, self._settings)

    def retry_aborts(self) -> None:
        """Abort the uploads that could not be aborted when they failed. Raises S3Error."""
        uploads = self._client.unaborted_uploads
        while uploads:
            upload = uploads[-1]
            abort_upload(self._client, *upload)
            uploads.remove(upload)  # not pop(): another thread may have added one meanwhile

    def abort_stale_uploads(self, older_than_s: float) -> int:
        """Abort the unfinished uploads below the prefix that are at least so old; return how many. Raises S3Error."""
        aborted = 0
        for upload in list_unfinished_uploads(self._client):
            if upload.key.startswith(self._prefix) and upload.age_s >= older_than_s:
                abort_upload(self._client, upload.key, upload.upload_id)
                aborted += 1
        return aborted

    def _head(self, key: str) -> S3Response | None:
        return self._client.request("head", "HEAD", key)

    def _read(self, operation: str, key: str, max_bytes: int) -> S3Object | None:
        try:
            response = self._client.request(operation, "GET", key, max_bytes=max_bytes)
        except S3Error as exc:
            if exc.code != "oversize":
                raise
            log.warning("an object in S3 is too large and is not used", key=key)
            return None
        if response is None:
            return None
        return S3Object(response.body, response.age_s, response.headers.get("Content-Type", ""))

    def _write(self, operation: str, key: str, body: bytes, media_type: str) -> None:
        if self._client.request(operation, "PUT", key, headers={"Content-Type": media_type}, body=body) is None:
            raise S3Error(f"unexpected response of the S3 service to {operation}", "garbage")


def _is_renewed(before: S3Response, copied: S3Response) -> bool:
    """Whether the copy has a newer LastModified. HTTP dates have a resolution of one second."""
    modified_at = int(parse_time(copied.xml_text("LastModified")) or copied.date)
    return modified_at > int(before.last_modified) or modified_at >= int(copied.date) - 1


def _content_length(response: S3Response) -> int:
    try:
        return int(response.headers["Content-Length"])
    except (KeyError, ValueError) as exc:
        raise S3Error("the S3 service responded without the size of an object", "garbage") from exc

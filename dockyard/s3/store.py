"""The S3 store: objects in a bucket, under the keys of the original.

An object is there whole and right, or not there. `None` means that the store said so, or that the object vanished or
changed while we looked; whatever else goes wrong is a `S3Error`, and the caller does without the store. Methods
block and may be called from many threads.

Requests to the store, by operation:

| operation | requests |
|---|---|
| a warm blob or manifest | none: the local store or memory has it |
| `open_blob`, `read_manifest`, `read_pointer` | 1 GET, found or not; a resumed blob 1 more |
| `stat_blob` | 1 HEAD; 1 HEAD of the bucket when nothing was found and it was not seen for a minute |
| `publish_blob`, `write_manifest`, `write_pointer` | 1 PUT |
| `publish_blob` above 5 GiB, or of a sha512 digest | 1 POST, 1 PUT for each 512 MiB, 1 POST, 1 HEAD |
| `touch` | 1 HEAD, 1 PUT (copy) |
| `touch` above 5 GiB, or where a copy does not make the object newer | 1 HEAD, 1 POST, 1 PUT for each GiB, 1 POST |
| `presign_blob` | none |
| `check` | 1 GET, 1 PUT |
| `retry_aborts` | 1 DELETE for each |
| `abort_stale_uploads` | 1 GET for each 1,000 uploads, 1 DELETE for each that is stale |

A cold blob thus costs a GET that finds nothing and a PUT. What can be asked again (all but `publish_blob`) is asked
once more when the connection broke, before the answer or in its middle, or the store answered 5xx.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from urllib.parse import quote

import attrs
import structlog

from dockyard.config.settings import StorageSettings
from dockyard.errors import DigestInvalid
from dockyard.oci.manifest import MAX_MANIFEST_BYTES
from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3.body import S3BlobStream, find_extent
from dockyard.s3.check import check_bucket
from dockyard.s3.client import S3Client
from dockyard.s3.credentials import CredentialChain
from dockyard.s3.errors import S3Error
from dockyard.s3.responses import S3Response, find_text, parse_date
from dockyard.s3.upload import (
    COPY_TIMEOUT_S,
    GIB,
    MAX_PUT_BYTES,
    PART_BYTES,
    abort_upload,
    copy_parts,
    fits_one_put,
    put_blob,
    put_parts,
)
from dockyard.storage import keys
from dockyard.storage.local import Pointer

MAX_POINTER_BYTES = 1024
COPY_PART_BYTES = GIB
MAX_UPLOAD_PAGES = 100

# What an object is beside its bytes. A copy that replaces the metadata keeps only what it is given again.
_KEPT = {
    *("content-type", "cache-control", "content-disposition", "content-encoding", "content-language", "expires"),
    *("x-amz-storage-class", "x-amz-website-redirect-location", "x-amz-server-side-encryption"),
    *("x-amz-server-side-encryption-aws-kms-key-id", "x-amz-server-side-encryption-bucket-key-enabled"),
}

log = structlog.get_logger()


@attrs.frozen
class ObjectInfo:
    """An object that is there: its size in bytes, and how old it is by the store's own clock."""

    size: int
    age_s: float


@attrs.frozen
class S3Object:
    """The bytes of a manifest, not verified, and how old the object is."""

    body: bytes = attrs.field(repr=False)
    age_s: float


class S3Store:
    """Blobs, manifests and tag pointers in one bucket.

    One for each process: made after a fork. Raises ValueError when the settings make no address. The two sizes are for
    tests: what one PUT or copy may be, and the parts of what is larger.
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
        self._copies_in_parts = False  # learnt from the first touch
        self._client = S3Client(settings, CredentialChain(settings, environ))

    @property
    def requests(self) -> Counter[str]:
        """What was sent to the store, by operation."""
        return self._client.requests

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._client.close()

    # Blobs

    def open_blob(self, digest: Digest, start: int = 0, etag: str = "") -> S3BlobStream | None:
        """A blob from byte `start` on, if it still has that `etag`; None when there is no such object."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        headers |= {"If-Match": etag} if etag else {}
        opened = self._client.open_response("get blob", "GET", keys.blob_key(self._prefix, digest), headers=headers)
        if opened is None:
            return None
        try:
            begins, size = find_extent(opened, start)
        except ValueError as exc:
            opened.close()
            raise S3Error(f"the store sent a body of unknown extent for {digest}", "garbage") from exc
        if not size and digest != Digest.of(b"", digest.algorithm):
            opened.close()
            log.warning("an object in S3 is empty and is not used", digest=str(digest))
            return None
        return S3BlobStream(opened, size, begins)

    def stat_blob(self, digest: Digest) -> ObjectInfo | None:
        """How large and how old a blob is; None when there is no such object. Raises S3Error."""
        answer = self._head(keys.blob_key(self._prefix, digest))
        return ObjectInfo(_length(answer), answer.age_s) if answer else None

    def publish_blob(self, digest: Digest, size: int, chunks: Iterator[bytes]) -> None:
        """Send a blob while its chunks come, at their pace.

        Raises S3Error, and whatever `chunks` raises: then the request was cut, and no object appeared.
        """
        key = keys.blob_key(self._prefix, digest)
        if fits_one_put(digest, size, self._max_put_bytes):
            put_blob(self._client, key, digest, size, chunks)
        else:
            put_parts(self._client, key, digest, size, chunks, self._part_bytes)

    def presign_blob(self, digest: Digest, expires_s: int) -> str:
        """A URL that gives the blob to whoever has it. Raises S3Error."""
        return self._client.presign(keys.blob_key(self._prefix, digest), expires_s)

    # Manifests and tags

    def read_manifest(self, name: Name, digest: Digest) -> S3Object | None:
        """The bytes of a manifest, not verified; None when there is no such object. Raises S3Error."""
        return self._read("get manifest", keys.manifest_key(self._prefix, name, digest), MAX_MANIFEST_BYTES)

    def write_manifest(self, name: Name, digest: Digest, body: bytes, media_type: str) -> None:
        """Store a verified manifest. Raises S3Error."""
        self._write("put manifest", keys.manifest_key(self._prefix, name, digest), body, media_type)

    def read_pointer(self, name: Name, tag: Tag) -> Pointer | None:
        """The manifest that a tag points to, and when the pointer was written, by the clock of this machine.

        None when there is no such object, or one that is not a digest. Raises S3Error.
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
        """Point the tag at a manifest that was stored before. Raises S3Error."""
        self._write("put pointer", keys.tag_key(self._prefix, name, tag), str(digest).encode(), "text/plain")

    # Upkeep

    def touch(self, key: str) -> bool:
        """Make an object new, for the rules that expire old ones; False when it is gone.

        It is copied onto itself with all that it is, in parts where a copy would be too large, or did not make the
        object newer (versitygw). Raises S3Error.
        """
        found = self._head(key)
        if found is None:
            return False
        source = {
            "x-amz-copy-source": quote(f"/{self._settings.bucket}/{key}"),
            "x-amz-copy-source-if-match": found.headers.get("ETag", ""),
        }
        kept = {
            name.lower(): value
            for name, value in found.headers.items()
            if name.lower() in _KEPT or name.lower().startswith("x-amz-meta-")
        }
        size = _length(found)
        if size <= self._max_put_bytes and not self._copies_in_parts:
            headers = {**source, **kept, "x-amz-metadata-directive": "REPLACE"}
            copied = self._client.request("copy", "PUT", key, headers=headers, read_timeout_s=COPY_TIMEOUT_S)
            if copied is None:
                return self._head(key) is not None  # replaced a moment ago, or gone
            if _is_renewed(found, copied):
                return True
            log.info("this store leaves a copied object as old as it was: objects are copied in parts")
            self._copies_in_parts = True
        if not size:
            return self._client.request("put again", "PUT", key, headers=kept) is not None
        return copy_parts(self._client, key, source, kept, size, self._copy_part_bytes)

    def check(self) -> list[str]:
        """What is wrong with the bucket and our rights: one sentence each, with what to change."""
        return check_bucket(self._client, self._settings)

    def retry_aborts(self) -> None:
        """Abort the uploads that could not be aborted when they failed. Raises S3Error."""
        while self._client.unaborted_uploads:
            key, upload_id = self._client.unaborted_uploads[-1]
            abort_upload(self._client, key, upload_id)
            self._client.unaborted_uploads.pop()

    def abort_stale_uploads(self, older_than_s: float) -> int:
        """Abort the uploads below our prefix that began so long ago; how many. Raises S3Error."""
        aborted = 0
        marker: dict[str, str] = {}
        for _ in range(MAX_UPLOAD_PAGES):
            # MinIO takes a prefix for the key of an object here, so ours is looked for among all.
            answer = self._client.request("list uploads", "GET", query={"uploads": "", **marker})
            if answer is None:
                break
            for upload in re.findall(rb"<Upload>(.*?)</Upload>", answer.body, re.DOTALL):
                key, begun = find_text(upload, "Key"), _instant(find_text(upload, "Initiated"))
                if key.startswith(self._prefix) and answer.date + 1 - begun >= older_than_s:
                    abort_upload(self._client, key, find_text(upload, "UploadId"))
                    aborted += 1
            if answer.find("IsTruncated") != "true":
                break
            marker = {
                "key-marker": answer.find("NextKeyMarker"),
                "upload-id-marker": answer.find("NextUploadIdMarker"),
            }
        return aborted

    # Together

    def _head(self, key: str) -> S3Response | None:
        return self._client.request("head", "HEAD", key)

    def _read(self, operation: str, key: str, max_bytes: int) -> S3Object | None:
        try:
            answer = self._client.request(operation, "GET", key, max_bytes=max_bytes)
        except S3Error as fault:
            if fault.code != "oversize":
                raise
            log.warning("an object in S3 is too large and is not used", key=key)
            return None
        return S3Object(answer.body, answer.age_s) if answer else None

    def _write(self, operation: str, key: str, body: bytes, media_type: str) -> None:
        if self._client.request(operation, "PUT", key, headers={"Content-Type": media_type}, body=body) is None:
            raise S3Error(f"the store answered nonsense to {operation}", "garbage")


def _is_renewed(before: S3Response, copied: S3Response) -> bool:
    """Whether the object is newer now. Headers tell whole seconds."""
    now = int(_instant(copied.find("LastModified")) or copied.date)
    return now > int(before.last_modified) or now >= int(copied.date) - 1


def _length(answer: S3Response) -> int:
    try:
        return int(answer.headers["Content-Length"])
    except (KeyError, ValueError) as exc:
        raise S3Error("the store did not tell the size of an object", "garbage") from exc


def _instant(text: str) -> float:
    """A time as S3 writes it in XML; 0 when it is none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return parse_date(text) or 0.0

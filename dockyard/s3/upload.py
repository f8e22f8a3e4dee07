"""Uploads of blobs: one PUT that streams, or a multipart upload where one PUT is not possible. Blocking.

The signed payload hash of a PUT is the digest of the blob. The service compares it, so that wrong or missing bytes do
not become an object, and no byte is hashed twice. Closing the connection early would not be enough: without a hash,
some services store the bytes that arrived (versitygw).

A blob that is larger than a PUT may be, or whose digest is not a SHA-256, is sent in parts. Each part is read twice:
its hash must be known before it is sent. The last part is sent only when the digest of the whole is right, and an
upload that is not completed is aborted.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Self
from xml.sax.saxutils import escape

import attrs
import structlog

from dockyard.oci.reference import Digest, Hasher
from dockyard.s3.client import S3Client, encode_checksum
from dockyard.s3.errors import S3Error
from dockyard.s3.responses import S3Response, parse_time, xml_text

GIB = 2**30
MAX_PUT_BYTES = 5 * GIB
PART_BYTES = GIB // 2
MAX_PARTS = 10_000
MAX_UPLOAD_PAGES = 100
XML_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
BLOB_TYPE = "application/octet-stream"
# A service may verify and copy what it received before it responds.
STORE_TIMEOUT_S = 60.0
COPY_TIMEOUT_S = 300.0

Chunks = Callable[[int], Iterator[bytes]]
"""Yields the bytes of a blob from an offset on; may be called several times."""

log = structlog.get_logger()


@attrs.frozen
class UnfinishedUpload:
    """A multipart upload that was neither completed nor aborted. `age_s` is by the clock of the service."""

    key: str
    upload_id: str
    age_s: float


def fits_one_put(digest: Digest, size: int, max_put_bytes: int) -> bool:
    """Whether a blob can be sent in one PUT that the service verifies."""
    return size <= max_put_bytes and (digest.algorithm == "sha256" or not size)


def put_blob(client: S3Client, key: str, digest: Digest, size: int, chunks: Chunks) -> None:
    """Send a blob in one PUT. Raises S3Error, and the exceptions of `chunks`; then no object was created."""
    payload_hash = digest.encoded if size else sha256().hexdigest()
    headers = {"Content-Type": BLOB_TYPE}
    _put(client, "put blob", key, {}, headers, payload_hash, size, _hold_last_chunk(chunks(0), size))


def put_parts(client: S3Client, key: str, digest: Digest, size: int, chunks: Chunks, part_bytes: int) -> None:
    """Send a blob in parts of `part_bytes`, the last one smaller. Raises what `put_blob` raises."""
    hasher = digest.hasher()
    headers = {"Content-Type": BLOB_TYPE}
    if client.sends_checksums:  # must be announced, or the service rejects the checksums of the parts
        headers["x-amz-checksum-algorithm"] = "SHA256"
    try:
        with _MultipartUpload(client, key, headers) as upload:
            for number, (start, length) in enumerate(_part_ranges(size, part_bytes), 1):
                part_hash = _hash_part(_take(chunks(start), size, length), hasher)
                if start + length == size:
                    _check_digest(digest, hasher)
                query = upload.query | {"partNumber": str(number)}
                body = _take(chunks(start), size, length)
                response = _put(client, "put part", key, query, {}, part_hash, length, body)
                upload.add(number, response.headers.get("ETag", ""), part_hash)
            upload.complete()
    except S3Error as exc:
        if exc.code != "NoSuchUpload":  # completed already: the response to the first attempt was lost
            raise
    _check_size(client, key, size)


def copy_parts(
    client: S3Client, key: str, source: Mapping[str, str], headers: Mapping[str, str], size: int, part_bytes: int
) -> bool:
    """Copy an object onto itself in parts; False when it was deleted or replaced meanwhile. Raises S3Error."""
    with _MultipartUpload(client, key, headers) as upload:
        for number, (start, length) in enumerate(_part_ranges(size, part_bytes), 1):
            response = client.request(
                "copy part",
                "PUT",
                key,
                query=upload.query | {"partNumber": str(number)},
                headers={**source, "x-amz-copy-source-range": f"bytes={start}-{start + length - 1}"},
                read_timeout_s=COPY_TIMEOUT_S,
            )
            if response is None:
                return False
            upload.add(number, response.xml_text("ETag"))
        upload.complete()
    return True


def list_unfinished_uploads(client: S3Client) -> Iterator[UnfinishedUpload]:
    """Yield the unfinished multipart uploads of the bucket, whatever their keys. Raises S3Error."""
    marker: dict[str, str] = {}
    for _ in range(MAX_UPLOAD_PAGES):
        # Without `prefix`: MinIO interprets it as the key of an object.
        response = client.request("list uploads", "GET", query={"uploads": "", **marker})
        if response is None:
            return
        for upload in re.findall(rb"<Upload>(.*?)</Upload>", response.body, re.DOTALL):
            started_at = parse_time(xml_text(upload, "Initiated"))
            # Both times are in whole seconds, so that the age may be one second more.
            age_s = response.date + 1 - started_at
            yield UnfinishedUpload(xml_text(upload, "Key"), xml_text(upload, "UploadId"), age_s)
        if response.xml_text("IsTruncated") != "true":
            return
        marker = {
            "key-marker": response.xml_text("NextKeyMarker"),
            "upload-id-marker": response.xml_text("NextUploadIdMarker"),
        }


def abort_upload(client: S3Client, key: str, upload_id: str) -> None:
    """Abort a multipart upload, so that its parts are deleted. One that does not exist is no error. Raises S3Error."""
    try:
        client.request("abort upload", "DELETE", key, query={"uploadId": upload_id})
    except S3Error as exc:
        if exc.code != "NoSuchUpload":
            raise


class _MultipartUpload:
    """A multipart upload. Leaving the block without `complete` aborts it.

    One whose creation had no response has no parts, so that it takes no space; `abort_stale_uploads` finds it later.
    """

    def __init__(self, client: S3Client, key: str, headers: Mapping[str, str]) -> None:
        self._client = client
        self._key = key
        self._headers = headers
        self._parts: list[str] = []
        self._is_complete = False
        self.query: dict[str, str] = {}

    def __enter__(self) -> Self:
        response = self._client.request("begin upload", "POST", self._key, query={"uploads": ""}, headers=self._headers)
        upload_id = response.xml_text("UploadId") if response else ""
        if not upload_id:
            raise S3Error("the S3 service did not create a multipart upload", "garbage")
        self.query = {"uploadId": upload_id}
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_complete:
            return
        try:
            abort_upload(self._client, self._key, self.query["uploadId"])
        except S3Error as exc:
            self._client.unaborted_uploads.append((self._key, self.query["uploadId"]))
            log.warning("an upload could not be aborted, trying again later", key=self._key, error=str(exc))

    def add(self, number: int, etag: str, part_hash: str = "") -> None:
        """Record the ETag of a part that was sent or copied, and its SHA-256 in hex if it was sent."""
        if not etag:
            raise S3Error("the S3 service responded without the ETag of a part", "garbage")
        part = f"<PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag>"
        if "x-amz-checksum-algorithm" in self._headers:
            part += f"<ChecksumSHA256>{encode_checksum(part_hash)}</ChecksumSHA256>"
        self._parts.append(f"<Part>{part}</Part>")

    def complete(self) -> None:
        """Turn the parts into an object."""
        body = f'<CompleteMultipartUpload xmlns="{XML_NAMESPACE}">{"".join(self._parts)}</CompleteMultipartUpload>'
        response = self._client.request(
            "complete upload", "POST", self._key, query=self.query, body=body.encode(), read_timeout_s=COPY_TIMEOUT_S
        )
        if response is None or not response.xml_text("ETag"):
            raise S3Error("the S3 service did not complete a multipart upload", "garbage")
        self._is_complete = True


class _ChunksFailed(Exception):
    """The iterator of a body raised. Hides its exception from urllib3, which would handle some kinds of OSError."""


def _take(chunks: Iterator[bytes], size: int, length: int) -> Iterator[bytes]:
    """Yield the first `length` bytes. Raises S3Error when there are fewer: the blob has less than `size` bytes."""
    for chunk in chunks:
        piece = chunk[:length]
        length -= len(piece)
        yield piece
        if not length:
            return
    raise _wrong_size(size)


def _hash_part(pieces: Iterator[bytes], hasher: Hasher) -> str:
    """Update the hash of the whole blob with a part, and return the SHA-256 of the part in hex."""
    part_hasher = sha256()
    for piece in pieces:
        hasher.update(piece)
        part_hasher.update(piece)
    return part_hasher.hexdigest()


def _check_digest(digest: Digest, hasher: Hasher) -> None:
    if not digest.matches(hasher):
        raise S3Error(f"not published: the bytes do not have the digest {digest}", "mismatch")


def _hold_last_chunk(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Yield the chunks, the last one only when the size is right. Raises S3Error."""
    received_bytes = 0
    held = b""
    for chunk in chunks:
        if held:
            yield held
        held = chunk
        received_bytes += len(chunk)
        if received_bytes > size:
            break
    if received_bytes != size:
        raise _wrong_size(size)
    if held:
        yield held


def _wrong_size(size: int) -> S3Error:
    return S3Error(f"not published: the blob does not have the announced size of {size} bytes", "mismatch")


def _put(
    client: S3Client,
    operation: str,
    key: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    payload_hash: str,
    size: int,
    chunks: Iterator[bytes],
) -> S3Response:
    """Stream a body. Raises S3Error, and the exceptions of `chunks`."""
    failure: list[BaseException] = []

    def guarded() -> Iterator[bytes]:
        try:
            yield from chunks
        except GeneratorExit:
            raise
        except BaseException as exc:
            failure.append(exc)
            raise _ChunksFailed from exc

    try:
        response = client.open_response(
            operation,
            "PUT",
            key,
            query=query,
            headers={**headers, "Content-Length": str(size)},
            body=guarded(),
            payload_hash=payload_hash,
            read_timeout_s=STORE_TIMEOUT_S,
        )
    except _ChunksFailed:
        raise failure[0] from None
    if response is None:
        raise S3Error(f"unexpected response of the S3 service to {operation}", "garbage")
    return S3Response(response.headers, response.read_all(64 * 1024))


def _check_size(client: S3Client, key: str, size: int) -> None:
    """Check an object made of parts: a service may respond with 200 and store something else. Raises S3Error."""
    response = client.request("head", "HEAD", key)
    stored_size = response.headers.get("Content-Length") if response else None
    if stored_size != str(size):
        raise S3Error(f"the S3 service stored {stored_size} instead of {size} bytes of {key}", "mismatch")


def _part_ranges(size: int, part_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the start and length of each part. All but the last have the same length, as Cloudflare R2 requires."""
    part_bytes = max(part_bytes, -(-size // MAX_PARTS))
    for start in range(0, size, part_bytes):
        yield start, min(part_bytes, size - start)

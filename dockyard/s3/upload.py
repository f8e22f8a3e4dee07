"""How blobs get into the store: one PUT that streams, or equal parts where one PUT will not do.

The signed payload hash of a PUT is the blob's own digest: the store compares, so that wrong or missing bytes never
become an object, and nothing is hashed twice. Cutting the request would not be enough: without a hash some stores keep
what came (versitygw).

What is larger than a PUT may be, or has a digest that is no SHA-256, goes in parts. They are hashed here as they pass,
the last bytes are sent only when the digest is right, and an upload that is not completed is aborted.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Self
from xml.sax.saxutils import escape

import structlog

from dockyard.oci.reference import Digest
from dockyard.s3.client import UNSIGNED, S3Client
from dockyard.s3.errors import S3Error
from dockyard.s3.responses import S3Response

GIB = 2**30
MAX_PUT_BYTES = 5 * GIB
PART_BYTES = GIB // 2
MAX_PARTS = 10_000
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
BLOB_TYPE = "application/octet-stream"
# A store may check and copy what it has received before it answers.
STORE_TIMEOUT_S = 60.0
COPY_TIMEOUT_S = 300.0

log = structlog.get_logger()


def fits_one_put(digest: Digest, size: int, max_put_bytes: int) -> bool:
    """Whether a blob can go in one PUT that the store verifies."""
    return size <= max_put_bytes and (digest.algorithm == "sha256" or not size)


def put_blob(client: S3Client, key: str, digest: Digest, size: int, chunks: Iterator[bytes]) -> None:
    """Send a blob in one PUT. Raises S3Error, and what `chunks` raises; then there is no object."""
    payload = digest.encoded if size else sha256().hexdigest()
    _put(client, "put blob", key, {}, {"Content-Type": BLOB_TYPE}, payload, size, _whole(chunks, size, None))


def put_parts(client: S3Client, key: str, digest: Digest, size: int, chunks: Iterator[bytes], part_bytes: int) -> None:
    """Send a blob in parts of `part_bytes` bytes, the last one smaller. Raises as `put_blob`."""
    cutter = _Cutter(_whole(chunks, size, digest))
    try:
        with _Upload(client, key, {"Content-Type": BLOB_TYPE}) as upload:
            for number, (_, length) in enumerate(_ranges(size, part_bytes), 1):
                query = upload.query | {"partNumber": str(number)}
                answer = _put(client, "put part", key, query, {}, UNSIGNED, length, cutter.take(length))
                upload.add(number, answer.headers.get("ETag", ""))
            upload.complete()
    except S3Error as fault:
        if fault.code != "NoSuchUpload":  # completed already, when the answer to that got lost
            raise
    _check_size(client, key, size)


def copy_parts(
    client: S3Client, key: str, source: Mapping[str, str], headers: Mapping[str, str], size: int, part_bytes: int
) -> bool:
    """Copy an object onto itself in parts; False when it vanished or changed. Raises S3Error."""
    with _Upload(client, key, headers) as upload:
        for number, (start, length) in enumerate(_ranges(size, part_bytes), 1):
            answer = client.request(
                "copy part",
                "PUT",
                key,
                query=upload.query | {"partNumber": str(number)},
                headers={**source, "x-amz-copy-source-range": f"bytes={start}-{start + length - 1}"},
                read_timeout_s=COPY_TIMEOUT_S,
            )
            if answer is None:
                return False
            upload.add(number, answer.find("ETag"))
        upload.complete()
    return True


def abort_upload(client: S3Client, key: str, upload_id: str) -> None:
    """Give an upload up; the store drops its parts. Raises S3Error, but not when it is gone already."""
    try:
        client.request("abort upload", "DELETE", key, query={"uploadId": upload_id})
    except S3Error as fault:
        if fault.code != "NoSuchUpload":
            raise


class _Upload:
    """One multipart upload. Leaving the block without `complete` aborts it.

    One whose beginning was not answered has no parts, so that it holds no room, and is left to `abort_stale_uploads`.
    """

    def __init__(self, client: S3Client, key: str, headers: Mapping[str, str]) -> None:
        self._client = client
        self._key = key
        self._headers = headers
        self._etags: list[tuple[int, str]] = []
        self._is_complete = False
        self.query: dict[str, str] = {}

    def __enter__(self) -> Self:
        answer = self._client.request("begin upload", "POST", self._key, query={"uploads": ""}, headers=self._headers)
        upload_id = answer.find("UploadId") if answer else ""
        if not upload_id:
            raise S3Error("the store began no upload", "garbage")
        self.query = {"uploadId": upload_id}
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_complete:
            return
        try:
            abort_upload(self._client, self._key, self.query["uploadId"])
        except S3Error as fault:
            self._client.unaborted_uploads.append((self._key, self.query["uploadId"]))
            log.warning("an upload could not be aborted, trying again later", key=self._key, error=str(fault))

    def add(self, number: int, etag: str) -> None:
        if not etag:
            raise S3Error("the store took a part and did not name it", "garbage")
        self._etags.append((number, etag))

    def complete(self) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(etag)}</ETag></Part>" for number, etag in self._etags
        )
        body = f'<CompleteMultipartUpload xmlns="{NAMESPACE}">{parts}</CompleteMultipartUpload>'
        answer = self._client.request(
            "complete upload", "POST", self._key, query=self.query, body=body.encode(), read_timeout_s=COPY_TIMEOUT_S
        )
        if answer is None or not answer.find("ETag"):
            raise S3Error("the store did not complete an upload", "garbage")
        self._is_complete = True


class _ChunksFailed(Exception):
    """What the iterator raised, kept from urllib3: it takes some kinds of OSError for its own, and goes on."""


class _Cutter:
    """Cuts a stream of chunks at other places."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def take(self, length: int) -> Iterator[bytes]:
        """The next `length` bytes."""
        while length:
            if not self._rest:
                self._rest = memoryview(next(self._chunks))
            piece, self._rest = self._rest[:length], self._rest[length:]
            length -= len(piece)
            yield bytes(piece)


def _whole(chunks: Iterator[bytes], size: int, digest: Digest | None) -> Iterator[bytes]:
    """The chunks, the last one only when all are there and have the digest (None: somebody else looks at that).

    Raises S3Error.
    """
    hasher = digest.hasher() if digest else None
    received_bytes = 0
    held = b""
    for chunk in chunks:
        if held:
            yield held
        held = chunk
        received_bytes += len(chunk)
        if received_bytes > size:
            break
        if hasher:
            hasher.update(chunk)
    if received_bytes != size:
        raise S3Error(f"not published: there are other than the announced {size} bytes", "mismatch")
    if digest and hasher and not digest.matches(hasher):
        raise S3Error(f"not published: the bytes are not those of {digest}", "mismatch")
    if held:
        yield held


def _put(
    client: S3Client,
    operation: str,
    key: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    payload: str,
    size: int,
    pieces: Iterator[bytes],
) -> S3Response:
    failure: list[BaseException] = []

    def guarded() -> Iterator[bytes]:
        try:
            yield from pieces
        except GeneratorExit:
            raise
        except BaseException as exc:
            failure.append(exc)
            raise _ChunksFailed from exc

    try:
        opened = client.open_response(
            operation,
            "PUT",
            key,
            query=query,
            headers={**headers, "Content-Length": str(size)},
            body=guarded(),
            payload=payload,
            read_timeout_s=STORE_TIMEOUT_S,
        )
    except _ChunksFailed:
        raise failure[0] from None
    if opened is None:
        raise S3Error(f"the store answered nonsense to {operation}", "garbage")
    return S3Response(opened.headers, opened.read_all(64 * 1024))


def _check_size(client: S3Client, key: str, size: int) -> None:
    """A store that answers 200 may have stored something else: an object made of parts is looked at once."""
    answer = client.request("head", "HEAD", key)
    found = answer.headers.get("Content-Length") if answer else None
    if found != str(size):
        raise S3Error(f"the store has {found} bytes and not {size} of {key}", "mismatch")


def _ranges(size: int, part_bytes: int) -> Iterator[tuple[int, int]]:
    """Starts and lengths, all alike but the last one: R2 wants that."""
    part_bytes = max(part_bytes, -(-size // MAX_PARTS))
    for start in range(0, size, part_bytes):
        yield start, min(part_bytes, size - start)

"""The endpoints for manifests, blobs and versions. ops/REQUESTS.md describes them.

A handler has the request admitted by the gate, which returns the target, gets the content from `cache`, and sets the
response. It decides nothing about access or caching.
"""

import json
import secrets
from collections.abc import Sequence

import falcon.asgi

from dockyard import __version__, metrics
from dockyard.cache.blobs import Blobs, RedirectedBlob
from dockyard.cache.manifests import Manifests
from dockyard.cache.tags import Tags
from dockyard.errors import ManifestUnknown
from dockyard.oci.ranges import ByteRange, has_open_end
from dockyard.oci.reference import Digest, parse_reference
from dockyard.web.bodies import ActiveBodies, MultipartBody, ResponseBody
from dockyard.web.gate import Gate
from dockyard.web.headers import (
    content_headers,
    find_ranges,
    is_not_modified,
    location_headers,
    redirect_headers,
    unverified_headers,
)
from dockyard.web.request_record import SCOPE_KEY, RequestRecord
from dockyard.web.zero_copy import ZeroCopy

BLOB_TYPE = "application/octet-stream"
HIDDEN = "an upstream responds to every name"


class ApiVersionEndpoint:
    """`GET /v2/`: this is a registry (OCI distribution specification, end-1)."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, path_prefix: str) -> None:
        """200 with an empty JSON object, also below the path of a mirror. Raises RegistryError."""
        await self._gate.check_api(req, resp, req.scope[SCOPE_KEY], path_prefix)
        resp.set_header("docker-distribution-api-version", "registry/2.0")
        resp.content_type = "application/json"
        resp.data = b"{}"

    on_head = on_get


class VersionEndpoint:
    """`GET /version`: the version of Dockyard."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200 with `{"version": ...}`. Raises RegistryError."""
        await self._gate.check_status(req, resp, req.scope[SCOPE_KEY])
        resp.content_type = "application/json"
        resp.data = json.dumps({"version": __version__}).encode()

    on_head = on_get


class ManifestEndpoint:
    """`GET`, `HEAD /v2/<name>/manifests/<reference>` (end-3)."""

    def __init__(self, gate: Gate, tags: Tags, manifests: Manifests, active_bodies: ActiveBodies) -> None:
        self._gate = gate
        self._tags = tags
        self._manifests = manifests
        self._active_bodies = active_bodies

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, path_prefix: str, name: str, reference: str
    ) -> None:
        """200, 206 or 304. Raises RegistryError."""
        record = start_record(req, "manifest", name, reference)
        target, parsed = await self._gate.admit(req, resp, record, path_prefix, reference, parse_reference)
        find = self._manifests.get(target, parsed) if isinstance(parsed, Digest) else self._tags.get(target, parsed)
        found = await find
        if record.is_hidden:
            raise ManifestUnknown(HIDDEN)
        record.how, record.error = found.how, found.error
        manifest = found.manifest
        is_public = self._gate.is_public(target)
        resp.set_headers(content_headers(found, manifest.digest, manifest.media_type, is_public=is_public))
        if is_not_modified(req, manifest.digest):
            resp.status = falcon.HTTP_304
            return
        if req.method == "HEAD":
            resp.content_length = manifest.size
            return
        ranges = find_ranges(req, manifest.digest, manifest.size)
        if not ranges:
            resp.data = manifest.body
            return
        parts = _set_range_headers(resp, ranges, manifest.size, manifest.media_type)
        resp.stream = ResponseBody(ManifestReader(manifest.body), parts, self._active_bodies)

    on_head = on_get


class BlobEndpoint:
    """`GET`, `HEAD /v2/<name>/blobs/<digest>` (end-2)."""

    def __init__(self, gate: Gate, blobs: Blobs, active_bodies: ActiveBodies, zero_copy: ZeroCopy) -> None:
        self._gate = gate
        self._blobs = blobs
        self._active_bodies = active_bodies
        self._zero_copy = zero_copy

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, path_prefix: str, name: str, reference: str
    ) -> None:
        """200, 206, 304, or 307 to the bucket. Raises RegistryError."""
        record = start_record(req, "blob", name, reference)
        target, digest = await self._gate.admit(req, resp, record, path_prefix, reference, Digest.parse)
        is_range = req.get_header("Range") is not None
        opened = await self._blobs.open(target, digest, is_range=is_range, client=record.client if is_range else "")
        if isinstance(opened, RedirectedBlob):
            record.how = "redirected"
            resp.status = falcon.HTTP_307
            resp.set_headers(redirect_headers(opened.url))
            return
        record.how = opened.how
        reader = opened.reader
        try:
            is_public = self._gate.is_public(target)
            resp.set_headers(content_headers(opened, digest, BLOB_TYPE, is_public=is_public))
            if is_not_modified(req, digest):
                resp.status = falcon.HTTP_304
                reader.close()
                return
            ranges = find_ranges(req, digest, reader.size)
            if reader.begin(ranges):
                resp.set_headers(unverified_headers(resp.headers))
                metrics.unverified_bytes.inc(sum(part.length for part in ranges or ()))
            parts: Sequence[bytes | ByteRange]
            if ranges:
                await reader.find(ranges[0].start)  # until the first byte is there, a failure gets an error response
                parts = _set_range_headers(resp, ranges, reader.size, BLOB_TYPE)
                record.has_open_range = has_open_end(req.get_header("Range"))
            else:
                data = reader.read_small()
                if data is None and reader.size:
                    await reader.find(0)
                parts = ranges = (ByteRange(0, reader.size),)
                resp.content_length = reader.size
                resp.set_headers(location_headers(req, digest))
                if data is not None:
                    resp.data = data  # type: ignore[assignment]  # Granian accepts a bytearray; bytes() would copy it
                    reader.close()
                    return
            if connection := self._zero_copy.find_connection(req.scope, ranges):
                await self._zero_copy.send(connection, req.scope, resp, record, reader, ranges[0])
            else:
                resp.stream = ResponseBody(reader, parts, self._active_bodies, are_chunks_small=record.has_open_range)
        except BaseException:
            reader.close()
            raise

    async def on_head(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, path_prefix: str, name: str, reference: str
    ) -> None:
        """200 or 304. Never downloads the blob. Raises RegistryError."""
        record = start_record(req, "blob", name, reference)
        target, digest = await self._gate.admit(req, resp, record, path_prefix, reference, Digest.parse)
        found = await self._blobs.find_size(target, digest)
        record.how = found.how
        is_public = self._gate.is_public(target)
        resp.set_headers(content_headers(found, digest, BLOB_TYPE, is_public=is_public))
        if is_not_modified(req, digest):
            resp.status = falcon.HTTP_304
            return
        resp.content_length = found.size


class ManifestReader:
    """A Reader of a manifest, for requests with ranges of one."""

    def __init__(self, body: bytes) -> None:
        self.size = len(body)
        self._body = body

    async def find(self, position: int) -> tuple[int | None, int]:
        """See Reader."""
        return None, self.size - position

    async def read_into(self, buffer: bytearray, position: int, amount: int) -> int:
        """See Reader."""
        chunk = self._body[position : position + amount]
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        """See Reader."""


def start_record(req: falcon.asgi.Request, kind: str, name: str, reference: str) -> RequestRecord:
    """Return the record of a request, with what it is about."""
    record: RequestRecord = req.scope[SCOPE_KEY]
    record.kind, record.name, record.reference = kind, name, reference
    record.range = req.get_header("Range", default="")
    return record


def _set_range_headers(
    resp: falcon.asgi.Response, ranges: Sequence[ByteRange], size: int, content_type: str
) -> Sequence[bytes | ByteRange]:
    """Set status and headers of a response with ranges of `size` bytes. Returns the parts of its body."""
    resp.status = falcon.HTTP_206
    if len(ranges) == 1:
        resp.set_header("content-range", ranges[0].content_range(size))
        resp.content_length = ranges[0].length
        return ranges
    multipart = MultipartBody(ranges, size, content_type, secrets.token_hex(16))
    resp.content_type = multipart.content_type
    resp.content_length = multipart.length
    return multipart.parts

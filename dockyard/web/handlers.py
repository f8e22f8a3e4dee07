"""The endpoints, in the order in which ops/REQUESTS.md tells them. Each branch answers and returns.

Handlers parse, route, ask `cache`, and answer; they decide nothing about caching.
"""

import json
import re
import secrets
from collections.abc import Sequence
from urllib.parse import parse_qs

import falcon.asgi

from dockyard import __version__
from dockyard.cache.blobs import Blobs, RedirectedBlob
from dockyard.cache.manifests import Manifests
from dockyard.cache.readers import Reader
from dockyard.cache.tags import Tags
from dockyard.errors import RequestInvalid
from dockyard.oci.ranges import ByteRange, parse_ranges
from dockyard.oci.reference import Digest, parse_reference
from dockyard.routing import Router, Target
from dockyard.web.bodies import BlobBody, Load, Multipart
from dockyard.web.exchange import Exchange
from dockyard.web.headers import content_headers, freshness_headers, is_not_modified, range_applies, redirect_headers

BLOB_TYPE = "application/octet-stream"
_HOST = re.compile(r"[A-Za-z0-9.:_\[\]-]{1,255}", re.ASCII)


class Base:
    """`GET /v2/`: this is a registry, and nobody need log in (OCI distribution specification, end-1)."""

    async def on_get(self, _: falcon.asgi.Request, resp: falcon.asgi.Response, path_prefix: str) -> None:
        """200 with an empty document, behind a mirror's path too."""
        resp.set_header("docker-distribution-api-version", "registry/2.0")
        resp.content_type = "application/json"
        resp.data = b"{}"

    on_head = on_get


class Version:
    """`GET /version`: which Dockyard this is."""

    async def on_get(self, _: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """200 with `{"version": ...}`."""
        resp.content_type = "application/json"
        resp.data = json.dumps({"version": __version__}).encode()

    on_head = on_get


class ManifestEndpoint:
    """`GET`, `HEAD /v2/<name>/manifests/<reference>` (end-3)."""

    def __init__(self, router: Router, tags: Tags, manifests: Manifests, load: Load) -> None:
        self._router = router
        self._tags = tags
        self._manifests = manifests
        self._load = load

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, path_prefix: str, name: str, reference: str
    ) -> None:
        """Parse, route, find; 304, 206 or 200. Raises RegistryError."""
        exchange = note_request(req, "manifest", name, reference)
        parsed = parse_reference(reference)
        target = route_request(req, resp, self._router, path_prefix, name)
        find = self._manifests.get(target, parsed) if isinstance(parsed, Digest) else self._tags.get(target, parsed)
        found = await find
        exchange.how = found.how
        manifest = found.manifest
        resp.set_headers(content_headers(manifest.digest, manifest.media_type))
        resp.set_headers(freshness_headers(found, is_public=target.upstream.is_anonymous))
        if is_not_modified(req, manifest.digest):
            resp.status = falcon.HTTP_304
            return
        if req.method == "HEAD":
            resp.content_length = manifest.size
            return
        ranges = parse_ranges(req.get_header("Range"), manifest.size) if range_applies(req, manifest.digest) else None
        if ranges:
            reader = MemoryReader(manifest.body)
            exchange.body = _send_ranges(resp, reader, ranges, manifest.media_type, self._load)
            return
        resp.data = manifest.body

    on_head = on_get


class BlobEndpoint:
    """`GET`, `HEAD /v2/<name>/blobs/<digest>` (end-2)."""

    def __init__(self, router: Router, blobs: Blobs, load: Load) -> None:
        self._router = router
        self._blobs = blobs
        self._load = load

    async def on_get(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, path_prefix: str, name: str, reference: str
    ) -> None:
        """Parse, route, open; 307, 304, 206 or 200. Raises RegistryError."""
        exchange = note_request(req, "blob", name, reference)
        digest = Digest.parse(reference)
        target = route_request(req, resp, self._router, path_prefix, name)
        opened = await self._blobs.open(target, digest)
        if isinstance(opened, RedirectedBlob):
            exchange.how = "redirected"
            resp.status = falcon.HTTP_307
            resp.set_headers(redirect_headers(opened.url))
            return
        exchange.how = opened.how
        reader = opened.reader
        try:
            resp.set_headers(content_headers(digest, BLOB_TYPE))
            resp.set_headers(freshness_headers(opened, is_public=target.upstream.is_anonymous))
            if is_not_modified(req, digest):
                resp.status = falcon.HTTP_304
                reader.close()
                return
            ranges = parse_ranges(req.get_header("Range"), reader.size) if range_applies(req, digest) else None
            if reader.size:  # until there is a first byte to send, a failure can be told as what it is
                await reader.find(ranges[0].start if ranges else 0)
        except BaseException:
            reader.close()
            raise
        if ranges:
            exchange.body = _send_ranges(resp, reader, ranges, BLOB_TYPE, self._load)
            return
        resp.content_length = reader.size
        resp.stream = exchange.body = BlobBody(reader, [ByteRange(0, reader.size)], self._load)

    async def on_head(
        self, req: falcon.asgi.Request, resp: falcon.asgi.Response, path_prefix: str, name: str, reference: str
    ) -> None:
        """Parse, route, find the size; 304 or 200. Never fetches the blob. Raises RegistryError."""
        exchange = note_request(req, "blob", name, reference)
        digest = Digest.parse(reference)
        target = route_request(req, resp, self._router, path_prefix, name)
        found = await self._blobs.find_size(target, digest)
        exchange.how = found.how
        resp.set_headers(content_headers(digest, BLOB_TYPE))
        resp.set_headers(freshness_headers(found, is_public=target.upstream.is_anonymous))
        if is_not_modified(req, digest):
            resp.status = falcon.HTTP_304
            return
        resp.content_length = found.size


class MemoryReader:
    """A manifest as a Reader, for the clients that ask for ranges of one."""

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


def note_request(req: falcon.asgi.Request, kind: str, name: str, reference: str) -> Exchange:
    """Tell the log and the counters what is asked."""
    exchange: Exchange = req.scope["dockyard"]
    exchange.kind, exchange.name, exchange.reference = kind, name, reference
    return exchange


def route_request(
    req: falcon.asgi.Request, resp: falcon.asgi.Response, router: Router, path_prefix: str, name: str
) -> Target:
    """Find whom a name means, and echo `ns`. Raises RegistryError."""
    namespaces = set(parse_qs(req.query_string).get("ns", ())) if req.query_string else set()
    if len(namespaces) > 1:
        raise RequestInvalid("the query names more than one ns")
    namespace = namespaces.pop() if namespaces else None
    target = router.route(name, ns=namespace, path_prefix=path_prefix or None)
    if namespace and _HOST.fullmatch(namespace):
        resp.set_header("oci-namespace", namespace)
    return target


def _send_ranges(
    resp: falcon.asgi.Response, reader: Reader, ranges: Sequence[ByteRange], content_type: str, load: Load
) -> BlobBody:
    resp.status = falcon.HTTP_206
    if len(ranges) == 1:
        resp.set_header("content-range", ranges[0].content_range(reader.size))
        resp.content_length = ranges[0].length
        resp.stream = body = BlobBody(reader, ranges, load)
        return body
    multipart = Multipart(ranges, reader.size, content_type, secrets.token_hex(16))
    resp.content_type = multipart.content_type
    resp.content_length = multipart.length
    resp.stream = body = BlobBody(reader, multipart.parts, load)
    return body

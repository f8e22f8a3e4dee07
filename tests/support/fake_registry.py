"""A fake upstream: registry, token service and CDN over raw sockets, with scripted faults.

A `FakeRegistry` has one or more listeners (each with its own port, on any loopback address, with TLS if wanted). Every
listener serves every path: `/v2/…` is the registry, `/token` the token service, `/cdn/…` presigned downloads. For each
request the correct response is made from the content that was added; then each matching rule may change that response
(`tests/support/faults.py` has the changes). All requests are recorded in `exchanges`, where tests count them.

Threads: one per listener and one per connection, all daemons. Every wait ends when the fake registry is closed or the
client disconnects.
"""

import base64
import itertools
import json
import re
import secrets
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import attrs

from tests.support.bodies import Body, Bytes, digest_of
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.raw_http import (
    TICK_S,
    ClientGoneError,
    Exchange,
    Listener,
    RegistryClosedError,
    Request,
    ScriptedResponse,
    Sender,
)

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

Change = Callable[[Request, ScriptedResponse], ScriptedResponse]


@attrs.define(eq=False)
class Rule:
    """A change to the responses of matching requests; `times` is how often it applies (None: always)."""

    change: Change
    kind: str | None
    reference: str | None
    repo: str | None
    method: str | None
    listener: str | None
    when: Callable[[Request], bool] | None
    times: int | None
    applied: int = 0

    def matches(self, request: Request) -> bool:
        if self.times is not None and self.applied >= self.times:
            return False
        wanted = (
            (self.kind, request.kind),
            (self.reference, request.reference),
            (self.repo, request.repo),
            (self.method, request.method),
            (self.listener, request.listener),
        )
        if any(want is not None and want != is_ for want, is_ in wanted):
            return False
        return self.when is None or self.when(request)


@attrs.frozen
class Image:
    """An image that was added: its manifest and the digests of its blobs."""

    repo: str
    tag: str
    digest: str
    body: bytes
    media_type: str
    config: str
    layers: tuple[str, ...]


@attrs.frozen
class _Manifest:
    body: bytes
    media_type: str
    digest: str


def _client_port(connection: socket.socket) -> int:
    """The port of the client; 0 if it has gone."""
    try:
        return int(connection.getpeername()[1])
    except OSError:
        return 0


def max_concurrent(exchanges: Iterable[Exchange]) -> int:
    """The highest number of these requests that were in progress at the same time."""
    exchanges = list(exchanges)
    events = sorted([(each.ended_at, -1) for each in exchanges] + [(each.began_at, 1) for each in exchanges])
    return max(itertools.accumulate(step for _, step in events), default=0)


class FakeRegistry:
    """The upstream of a test: content, rules, listeners, and the record of all requests."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.listeners: dict[str, Listener] = {}
        self.rules: list[Rule] = []
        self.closing = threading.Event()
        self._changed = threading.Condition()
        self._manifests: dict[tuple[str, str], _Manifest] = {}
        self._blobs: dict[str, tuple[Body, frozenset[str] | None]] = {}
        self._presigned: dict[str, _Presigned] = {}
        self.listener = self.listen("registry")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for listener in self.listeners.values():
            listener.end()

    # Listeners

    def listen(
        self,
        name: str,
        host: str = "127.0.0.1",
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        tunnel: ssl.SSLContext | None = None,
    ) -> Listener:
        """Open another port (0: a free one); its requests are recorded under `name`."""
        self.listeners[name] = Listener(name, host, port, tls, tunnel, self._handle)
        return self.listeners[name]

    @property
    def authority(self) -> str:
        """`host:port` of the registry."""
        return self.listener.authority

    @property
    def url(self) -> str:
        """The value of `registry:` in the settings of an upstream."""
        return self.listener.url

    # Content

    def add_blob(self, content: bytes | Body, *, repos: Iterable[str] | None = None, algorithm: str = "sha256") -> str:
        """Serve a blob in some repositories or in all; return its digest."""
        body = Bytes(content) if isinstance(content, bytes) else content
        digest = digest_of(content, algorithm) if isinstance(content, bytes) else body.digest
        self._blobs[digest] = (body, None if repos is None else frozenset(repos))
        return digest

    def add_manifest(
        self, repo: str, tag: str | None, document: Any, media_type: str, *, algorithm: str = "sha256"
    ) -> str:
        """Serve a manifest (bytes, or a document that is written as JSON) under its digest and the tag, if given."""
        body = document if isinstance(document, bytes) else json.dumps(document, indent=3).encode()
        manifest = _Manifest(body, media_type, digest_of(body, algorithm))
        self._manifests[repo, manifest.digest] = manifest
        if tag is not None:
            self._manifests[repo, tag] = manifest
        return manifest.digest

    def manifest_body(self, repo: str, reference: str) -> bytes:
        """The bytes of a manifest that was added."""
        return self._manifests[repo, reference].body

    def remove(self, repo: str, reference: str) -> None:
        """Remove a tag or a manifest."""
        del self._manifests[repo, reference]

    def add_image(
        self, repo: str, tag: str | None, layers: Sequence[bytes | Body] = (b"a layer",), *, docker: bool = False
    ) -> Image:
        """Serve an image: configuration, layers and manifest, with OCI or Docker media types."""
        config = json.dumps({"architecture": "amd64", "os": "linux", "in": repo, "tag": tag}).encode()
        config_digest = self.add_blob(config)
        digests = tuple(self.add_blob(layer) for layer in layers)
        sizes = [len(layer) if isinstance(layer, bytes) else layer.size for layer in layers]
        media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
        document = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": {
                "mediaType": DOCKER_CONFIG if docker else OCI_CONFIG,
                "digest": config_digest,
                "size": len(config),
            },
            "layers": [
                {"mediaType": DOCKER_LAYER if docker else OCI_LAYER, "digest": digest, "size": size}
                for digest, size in zip(digests, sizes, strict=True)
            ],
        }
        digest = self.add_manifest(repo, tag, document, media_type)
        body = self._manifests[repo, digest].body
        return Image(repo, tag or "", digest, body, media_type, config_digest, digests)

    def add_index(self, repo: str, tag: str | None, images: Sequence[Image], *, docker: bool = False) -> Image:
        """Serve an index (or a Docker manifest list) of images that were added before."""
        media_type = DOCKER_LIST if docker else OCI_INDEX
        document = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": [
                {
                    "mediaType": image.media_type,
                    "digest": image.digest,
                    "size": len(image.body),
                    "platform": {"architecture": architecture, "os": "linux"},
                }
                for image, architecture in zip(images, ("amd64", "arm64", "riscv64", "s390x"), strict=False)
            ],
        }
        digest = self.add_manifest(repo, tag, document, media_type)
        return Image(repo, tag or "", digest, self._manifests[repo, digest].body, media_type, "", ())

    # Presigned downloads

    def presign(self, digest: str, *, method: str = "GET", listener: str = "registry", uses: int | None = None) -> str:
        """A URL for one blob and one method, valid for `uses` requests (None: until `expire_presigned`)."""
        signature = secrets.token_hex(16)
        self._presigned[signature] = _Presigned(digest, method, uses)
        return f"{self.listeners[listener].url}/cdn/{digest}?X-Amz-Expires=60&X-Amz-Signature={signature}"

    def expire_presigned(self) -> None:
        """Answer 403 to every URL that was presigned so far."""
        for presigned in self._presigned.values():
            presigned.uses = 0

    # Rules

    def on(
        self,
        kind: str | None,
        change: Change,
        *,
        reference: str | None = None,
        repo: str | None = None,
        method: str | None = None,
        listener: str | None = None,
        when: Callable[[Request], bool] | None = None,
        times: int | None = None,
    ) -> Rule:
        """Change the responses to matching requests; rules apply in the order in which they were added."""
        rule = Rule(change, kind, reference, repo, method, listener, when, times)
        with self._changed:
            self.rules.append(rule)
        return rule

    def remove_rules(self, *rules: Rule) -> None:
        """Remove these rules, or all of them when none is given."""
        with self._changed:
            self.rules = [rule for rule in self.rules if rules and rule not in rules]

    # Recorded requests

    def received(self, kind: str | None = None, method: str | None = None, **fields: str) -> list[Exchange]:
        """The exchanges of one kind and method whose request has these field values."""
        with self._changed:
            exchanges = list(self.exchanges)
        return [
            exchange
            for exchange in exchanges
            if (kind is None or exchange.request.kind == kind)
            and (method is None or exchange.request.method == method)
            and all(getattr(exchange.request, name) == value for name, value in fields.items())
        ]

    def count(self, kind: str | None = None, method: str | None = None, **fields: str) -> int:
        """The number of such requests."""
        return len(self.received(kind, method, **fields))

    def sent_bytes(self, kind: str | None = None, **fields: str) -> int:
        """The number of body bytes that were sent in response to such requests."""
        return sum(exchange.sent_bytes for exchange in self.received(kind, **fields))

    def max_concurrent(self, kind: str | None = None, method: str | None = None, **fields: str) -> int:
        """The highest number of such requests that were in progress at the same time."""
        return max_concurrent(self.received(kind, method, **fields))

    def clear_exchanges(self) -> None:
        """Forget the recorded exchanges: counting starts again."""
        with self._changed:
            self.exchanges.clear()

    def wait_for(self, condition: Callable[[], bool], what: str, within_s: float = EVENT_TIMEOUT_S) -> None:
        """Wait until the condition holds, checking it after each request; `what` describes it in the error."""
        deadline = time.monotonic() + within_s
        while not condition():
            with self._changed:
                self._changed.wait(TICK_S)
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s} s: {what}")

    # Responses

    def _handle(self, connection: socket.socket, request: Request) -> bool:
        """Answer one request; return True when the connection can be used again."""
        exchange = Exchange(request, time.monotonic(), _client_port(connection))
        with self._changed:
            self.exchanges.append(exchange)
            rules = self._find_rules(request)  # before a test learns of the request: later changes are for later ones
            self._changed.notify_all()
        response = self._correct_response(request)
        for rule in rules:
            response = rule.change(request, response)
        exchange.status = response.status
        try:
            exchange.ended = Sender(connection, self.closing, exchange).send(request, response)
        except (OSError, ClientGoneError):
            exchange.ended = "gone"
        except RegistryClosedError:
            exchange.ended = "closed"
        finally:
            with self._changed:
                exchange.ended_at = min(exchange.ended_at, time.monotonic())
                self._changed.notify_all()
        return exchange.ended == "whole" and request.header("Connection") != "close"

    def _find_rules(self, request: Request) -> list[Rule]:
        """The rules that apply to a request, of which each is used once now. The lock is held."""
        rules = [rule for rule in self.rules if rule.matches(request)]
        for rule in rules:
            rule.applied += 1
        return rules

    def _correct_response(self, request: Request) -> ScriptedResponse:
        match request.kind:
            case "ping":
                return ScriptedResponse.of(200, b"{}", ("Content-Type", "application/json"))
            case "token":
                token = {"token": "an-anonymous-token", "expires_in": 300}
                return ScriptedResponse.of(200, json.dumps(token).encode(), ("Content-Type", "application/json"))
            case "manifest":
                return self._manifest(request)
            case "blob":
                return self._blob(request)
            case "cdn":
                return self._download(request)
            case "connect":
                return ScriptedResponse.of(200)
            case _:
                return _error(404, "NAME_UNKNOWN")

    def _manifest(self, request: Request) -> ScriptedResponse:
        manifest = self._manifests.get((request.repo, request.reference))
        if manifest is None:
            return _error(404, "MANIFEST_UNKNOWN")
        return ScriptedResponse.of(
            200,
            manifest.body,
            ("Content-Type", manifest.media_type),
            ("Docker-Content-Digest", manifest.digest),
            ("ETag", f'"{manifest.digest}"'),
        )

    def _blob(self, request: Request) -> ScriptedResponse:
        body, repos = self._blobs.get(request.reference, (None, None))
        if body is None or (repos is not None and request.repo not in repos):
            return _error(404, "BLOB_UNKNOWN")
        return _ranged(request, body).with_header("Docker-Content-Digest", request.reference)

    def _download(self, request: Request) -> ScriptedResponse:
        presigned = self._presigned.get(request.query.get("X-Amz-Signature", ""))
        if presigned is None or presigned.uses == 0 or presigned.method != request.method:
            return ScriptedResponse.of(
                403, b"<Error><Code>AccessDenied</Code></Error>", ("Content-Type", "application/xml")
            )
        if request.header("Authorization"):
            return ScriptedResponse.of(
                400, b"<Error>Only one auth mechanism</Error>", ("Content-Type", "application/xml")
            )
        if presigned.uses is not None:
            presigned.uses -= 1
        return _ranged(request, self._blobs[presigned.digest][0])


@attrs.define
class _Presigned:
    digest: str
    method: str
    uses: int | None


def _ranged(request: Request, body: Body) -> ScriptedResponse:
    """A response of status 200, 206 or 416, for a request with at most one range."""
    base = ScriptedResponse.of(200, body, ("Content-Type", "application/octet-stream"), ("Accept-Ranges", "bytes"))
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.header("Range") or "")
    if match is None or match.group() == "bytes=-":
        return base
    first, last = match.groups()
    start = int(first) if first else max(0, body.size - int(last))
    stop = min(body.size, int(last) + 1) if first and last else body.size
    if start >= stop:
        return ScriptedResponse.of(416).with_header("Content-Range", f"bytes */{body.size}")
    part = attrs.evolve(base, status=206, start=start, stop=stop)
    return part.with_header("Content-Range", f"bytes {start}-{stop - 1}/{body.size}")


def _error(status: int, code: str) -> ScriptedResponse:
    body = json.dumps({"errors": [{"code": code, "message": "message from the upstream"}]}).encode()
    return ScriptedResponse.of(status, body, ("Content-Type", "application/json"))


def basic(username: str, password: str) -> str:
    """The value of an Authorization header with Basic credentials."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()

"""Signed schema 1 manifests, as Docker registries made them."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from tests.support.bodies import digest_of

SCHEMA1_SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
PAYLOAD: Mapping[str, Any] = {
    "schemaVersion": 1,
    "name": "org/old",
    "tag": "v1",
    "architecture": "amd64",
    "fsLayers": [{"blobSum": digest_of(b"a layer")}],
    "history": [{"v1Compatibility": '{"id": "\u00e9"}'}],
}


@attrs.frozen
class SignedManifest:
    """The body of a manifest, and what is signed of it."""

    body: bytes
    payload: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.payload)


def encode_base64url(data: bytes) -> str:
    """Encode without padding."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signature(length: int, tail: bytes, **header: Any) -> dict[str, Any]:
    """A signature (of no key) over a payload of `length` bytes in common with the body, and a tail."""
    protected = {"formatLength": length, "formatTail": encode_base64url(tail), "time": "2015-01-01T00:00:00Z"} | header
    protected = {key: value for key, value in protected.items() if value is not None}
    return {
        "header": {"alg": "ES256", "jwk": {"kty": "EC"}},
        "signature": "c2ln",
        "protected": encode_base64url(json.dumps(protected).encode()),
    }


def payload_of(body: bytes) -> bytes:
    """The signed part of a body, as its first signature describes it; the body itself if it has no signatures."""
    try:
        protected = json.loads(body)["signatures"][0]["protected"]
    except (ValueError, LookupError, TypeError):
        return body
    header = json.loads(base64.urlsafe_b64decode(protected + "=="))
    return body[: header["formatLength"]] + base64.urlsafe_b64decode(header["formatTail"] + "==")


def sign(
    document: Mapping[str, Any] = PAYLOAD,
    *,
    indent: int | None = 3,
    signatures: int = 1,
    more: Sequence[Any] = (),
    before: str = "",
    after: str = "",
) -> SignedManifest:
    """Sign a document. `more` are further signatures, `before` and `after` text around the member `signatures`."""
    payload = json.dumps(document, indent=indent).encode()
    tail = b"\n}" if indent else b"}"
    length = len(payload) - len(tail)
    entries = [signature(length, tail)] * signatures + list(more)
    start = f",\n   {before}" if indent else f",{before}"
    body = payload[:length] + f'{start}"signatures": {json.dumps(entries)}{after}\n}}'.encode()
    return SignedManifest(body, payload)

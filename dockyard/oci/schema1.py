"""Signed image manifests of Docker, schema 1: the payload, whose digest is the digest of the manifest.

Such a manifest is its payload with a member `signatures` added at the end. The signatures are not covered by the
digest, because registries signed a manifest anew whenever they sent it. Each has a `protected` header that says how to
get the payload back: the first `formatLength` bytes, then `formatTail`.

Source: "Image Manifest Version 2, Schema 1", section "Signed Manifests", and the format of libtrust that it refers to.
"""

import base64
import re
from typing import Any, Final

from dockyard.errors import BadUpstream
from dockyard.oci.documents import parse_document

_END: Final = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*")
_COMMA: Final = re.compile(rb"[ \t\r\n]*,")


def find_payload(body: bytes) -> bytes | None:
    """Return the payload of a signed schema 1 manifest; None for anything else.

    The body is the payload and the signatures, and nothing more: the digest covers all but the signatures.
    """
    if b'"signatures"' not in body:
        return None
    try:
        document = parse_document(body)
        if document.get("schemaVersion") != 1 or "fsLayers" not in document:
            return None
        length, tail = _find_format(document.get("signatures"), len(body))
        payload = body[:length] + tail
        comma = _COMMA.match(body, length)
        if not comma or not _END.fullmatch(tail):
            return None
        # The payload and the added part are complete objects by themselves, so the body has no other members.
        parse_document(payload)
        added = parse_document(b"{" + body[comma.end() :])
    except (BadUpstream, ValueError):
        return None
    return payload if added.keys() == {"signatures"} else None


def _find_format(signatures: Any, size: int) -> tuple[int, bytes]:
    """Return the length of the common part of body and payload, and the rest of the payload. Raises ValueError."""
    if not isinstance(signatures, list) or not signatures:
        raise ValueError("no signatures")
    formats = {_parse_format(signature) for signature in signatures}
    if len(formats) > 1:
        raise ValueError("the signatures are of different payloads")
    length, tail = formats.pop()
    if not 0 < length < size:
        raise ValueError("formatLength is outside the body")
    return length, tail


def _parse_format(signature: Any) -> tuple[int, bytes]:
    if not isinstance(signature, dict):
        raise ValueError("not a signature")  # noqa: TRY004  one exception for all malformed input
    header = parse_document(_decode(signature.get("protected")))
    length = header.get("formatLength")
    if type(length) is not int:
        raise ValueError("no formatLength")
    return length, _decode(header.get("formatTail"))


def _decode(text: Any) -> bytes:
    """Decode base64url without padding (RFC 7515 section 2). Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError("not base64url")  # noqa: TRY004  as above
    return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True)

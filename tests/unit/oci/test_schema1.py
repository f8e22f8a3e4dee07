"""Signed schema 1 manifests: the digest is that of the payload, and the body has nothing that is not in it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.errors import BadUpstream
from dockyard.oci.manifest import SCHEMA1, SCHEMA1_SIGNED, Manifest
from dockyard.oci.reference import Digest
from dockyard.oci.schema1 import find_payload
from tests.support.schema1 import PAYLOAD, encode_base64url, sign, signature

# From the section "Signed Manifests" of Docker's specification, with short values: tabs, and a line break at the end.
HAND_WRITTEN = sign(indent=None).payload.replace(b"{", b"{\n\t", 1)[:-1]


@pytest.mark.parametrize("indent", [None, 1, 3, 4])
@pytest.mark.parametrize("signatures", [1, 3])
def test_the_payload_is_what_was_signed(indent: int | None, signatures: int) -> None:
    """With its whitespace, for one signature or several."""
    signed = sign(indent=indent, signatures=signatures)
    assert find_payload(signed.body) == signed.payload
    assert set(json.loads(signed.body)) - set(json.loads(signed.payload)) == {"signatures"}


@pytest.mark.parametrize("tail", [b"}", b"\n}", b"\r\n\t}\n", b" } "])
def test_any_whitespace_around_the_end_is_a_part_of_the_payload(tail: bytes) -> None:
    """As libtrust cut it off: the closing brace and the whitespace around it."""
    added = b',"signatures":[' + json.dumps(signature(len(HAND_WRITTEN), tail)).encode() + b"]}\n"
    assert find_payload(HAND_WRITTEN + added) == HAND_WRITTEN + tail


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("content_type", [SCHEMA1_SIGNED, SCHEMA1, "application/json", None])
def test_a_signed_manifest_has_the_digest_of_its_payload(content_type: str | None, algorithm: str) -> None:
    """By tag and by digest, whatever its Content-Type is; the body is unchanged."""
    signed = sign()
    expected = Digest.of(signed.payload, algorithm)
    manifest = Manifest.parse(signed.body, content_type, expected)
    assert (manifest.body, manifest.digest) == (signed.body, expected)
    assert Manifest.parse(signed.body, content_type, None).digest == Digest.of(signed.payload)
    assert Manifest.stored(signed.body, expected, manifest.media_type) == manifest


def test_a_registry_may_use_the_digest_of_the_body() -> None:
    """It covers all bytes."""
    signed = sign()
    assert Manifest.parse(signed.body, SCHEMA1_SIGNED, Digest.of(signed.body)).digest == Digest.of(signed.body)


def test_another_digest_is_rejected() -> None:
    """Of another payload, or of a payload that was changed."""
    signed, other = sign(), sign({**PAYLOAD, "tag": "v2"})
    for body, payload in ((signed.body, other.payload), (signed.body.replace(b"amd64", b"arm64"), signed.payload)):
        with pytest.raises(BadUpstream):
            Manifest.parse(body, SCHEMA1_SIGNED, Digest.of(payload))


LENGTH = len(sign().payload) - 2
NOT_SIGNED: dict[str, bytes] = {
    "no signatures": sign().payload,
    "an empty list": sign(signatures=0).body,
    "not a list": sign().payload[:-2] + b', "signatures": {}}',
    "not an object": sign(signatures=0, more=["x"]).body,
    "null": sign(signatures=0, more=[None]).body,
    "no protected header": sign(signatures=0, more=[{"signature": "c2ln"}]).body,
    "a protected header that is no text": sign(signatures=0, more=[{"protected": 1}]).body,
    "a protected header that is not base64url": sign(signatures=0, more=[{"protected": "?"}]).body,
    "a protected header that is not JSON": sign(signatures=0, more=[{"protected": encode_base64url(b"x")}]).body,
    "no length": sign(signatures=0, more=[signature(LENGTH, b"\n}", formatLength=None)]).body,
    "no tail": sign(signatures=0, more=[signature(LENGTH, b"\n}", formatTail=None)]).body,
    "a length in a text": sign(signatures=0, more=[signature(LENGTH, b"\n}", formatLength=str(LENGTH))]).body,
    "a length that is true": sign(signatures=0, more=[signature(LENGTH, b"\n}", formatLength=True)]).body,
    "length 0": sign(signatures=0, more=[signature(0, sign().payload)]).body,
    "a negative length": sign(signatures=0, more=[signature(-2, b"\n}")]).body,
    "a length after the end": sign(signatures=0, more=[signature(10**9, b"\n}")]).body,
    "a huge length": sign(signatures=0, more=[signature(10**400, b"\n}")]).body,
    "two lengths": sign(more=[signature(LENGTH - 1, b"\n}")]).body,
    "two tails": sign(more=[signature(LENGTH, b"}")]).body,
    "a tail with another member": sign(signatures=0, more=[signature(LENGTH, b',"tag2":1}')]).body,
    "a tail with two ends": sign(signatures=0, more=[signature(LENGTH, b"}}")]).body,
    "an empty tail": sign(signatures=0, more=[signature(LENGTH, b"")]).body,
    "a member before the signatures": sign(before='"x": 1, ').body,
    "a member after the signatures": sign(after=', "x": 1').body,
    "a key twice": sign(after=', "tag": "v2"').body,
    "signatures twice": sign(after=', "signatures": []').body,
    "schema 2": sign({**PAYLOAD, "schemaVersion": 2}).body,
    "no layers": sign({"schemaVersion": 1}).body,
    "nothing": b"",
    "a word": b'"signatures"',
}


@pytest.mark.parametrize("name", NOT_SIGNED)
def test_anything_else_has_no_payload(name: str) -> None:
    """A body with a member that is not signed could be read differently from what the digest covers."""
    assert find_payload(NOT_SIGNED[name]) is None


def test_a_signed_part_in_the_middle_of_a_member_is_no_payload() -> None:
    """The length must end at a member of the document itself, not inside another one."""
    inner = json.dumps(PAYLOAD)[:-1]
    for body in (f'{{"schemaVersion": 1, "fsLayers": [], "x": {inner}', f'{{"x": "{inner[:5]}'):
        start = body.encode()
        entry = json.dumps([signature(len(start), b"}")])
        assert find_payload(start + f', "signatures": {entry}}}'.encode()) is None
        assert find_payload(start + f', "signatures": {entry}}}}}'.encode()) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), values, max_size=4), st.sampled_from([None, 1, 3]))
def test_any_document_can_be_signed(document: dict[str, Any], indent: int | None) -> None:
    """The payload is found again, byte for byte."""
    document = {key: value for key, value in document.items() if key != "signatures"} | {
        "schemaVersion": 1,
        "fsLayers": [],
    }
    signed = sign(document, indent=indent)
    assert find_payload(signed.body) == signed.payload


@given(st.data())
def test_a_changed_byte_is_noticed_or_is_in_the_signatures(data: st.DataObject) -> None:
    """A body with the digest of the payload has the members of the payload."""
    signed = sign()
    at = data.draw(st.integers(0, len(signed.body) - 1))
    body = bytearray(signed.body)
    body[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        manifest = Manifest.parse(bytes(body), SCHEMA1_SIGNED, Digest.of(signed.payload))
    except BadUpstream:
        return
    document = json.loads(manifest.body)
    del document["signatures"]
    assert document == json.loads(signed.payload)

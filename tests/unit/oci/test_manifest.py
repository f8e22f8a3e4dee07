"""Manifests: which bodies are accepted, with which media type, and that only BadUpstream is raised."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dockyard.errors import BadUpstream
from dockyard.oci.manifest import (
    ACCEPT,
    DOCKER_IMAGE,
    DOCKER_LIST,
    MAX_MANIFEST_BYTES,
    OCI_ARTIFACT,
    OCI_IMAGE,
    OCI_INDEX,
    ORAS_ARTIFACT,
    SCHEMA1,
    SCHEMA1_SIGNED,
    Descriptor,
    Manifest,
)
from dockyard.oci.reference import Digest
from tests.support.busy_machine import SLACK_S

CHILD = {"mediaType": OCI_IMAGE, "digest": str(Digest.of(b"x")), "size": 1}
INDEX: dict[str, Any] = {"schemaVersion": 2, "manifests": [CHILD]}
IMAGE: dict[str, Any] = {"schemaVersion": 2, "config": CHILD, "layers": [CHILD]}
OLD_IMAGE: dict[str, Any] = {"schemaVersion": 1, "name": "x", "tag": "y", "fsLayers": [{"blobSum": "z"}]}
NO_LAYERS: dict[str, Any] = {"schemaVersion": 2, "artifactType": "a/b", "config": CHILD}
ORAS_BODY: dict[str, Any] = {"artifactType": "a/b", "blobs": [CHILD], "subject": CHILD}
ARTIFACT: dict[str, Any] = {"mediaType": OCI_ARTIFACT, "artifactType": "a/b", "blobs": [CHILD]}


def encode(document: object) -> bytes:
    """Encode a document as registries do."""
    return json.dumps(document).encode()


def parse(document: object, content_type: str | None = None) -> Manifest:
    """Parse a document without an expected digest."""
    return Manifest.parse(encode(document), content_type, None)


def check_rejected(body: bytes, content_type: str | None = None) -> None:
    """Check that a body is rejected quickly."""
    start = time.thread_time()
    with pytest.raises(BadUpstream):
        Manifest.parse(body, content_type, None)
    assert time.thread_time() - start < SLACK_S


@pytest.mark.parametrize(
    ("document", "content_type", "media_type"),
    [
        (INDEX | {"mediaType": OCI_INDEX}, OCI_INDEX, OCI_INDEX),
        (INDEX | {"mediaType": DOCKER_LIST}, DOCKER_LIST, DOCKER_LIST),
        (IMAGE | {"mediaType": OCI_IMAGE}, OCI_IMAGE, OCI_IMAGE),
        (IMAGE | {"mediaType": DOCKER_IMAGE}, DOCKER_IMAGE, DOCKER_IMAGE),
        (ARTIFACT, OCI_ARTIFACT, OCI_ARTIFACT),
        (IMAGE | {"mediaType": "application/vnd.other+json"}, OCI_IMAGE, OCI_IMAGE),
        # the header, even if mediaType is another type of an index
        (INDEX | {"mediaType": OCI_INDEX}, DOCKER_LIST, DOCKER_LIST),
        (INDEX | {"mediaType": DOCKER_LIST}, OCI_INDEX, OCI_INDEX),
        # mediaType, if the header is not a manifest type
        (IMAGE | {"mediaType": OCI_IMAGE}, "application/vnd.other+json", OCI_IMAGE),
        (INDEX | {"mediaType": DOCKER_LIST}, None, DOCKER_LIST),
        (INDEX | {"mediaType": DOCKER_LIST}, "text/plain", DOCKER_LIST),
        (IMAGE | {"mediaType": OCI_IMAGE}, "application/json; charset=utf-8", OCI_IMAGE),
        (IMAGE | {"mediaType": "application/vnd.other+json"}, "text/plain", "application/vnd.other+json"),
        # the header, if there is no mediaType
        (INDEX, DOCKER_LIST, DOCKER_LIST),
        (IMAGE, f"{DOCKER_IMAGE}; charset=utf-8", DOCKER_IMAGE),
        (IMAGE, f"  {OCI_IMAGE.upper()} ", OCI_IMAGE),
        (IMAGE | {"mediaType": ""}, DOCKER_IMAGE, DOCKER_IMAGE),
        (IMAGE | {"mediaType": None}, DOCKER_IMAGE, DOCKER_IMAGE),
        (IMAGE, "application/vnd.example.image+json", "application/vnd.example.image+json"),
        (OLD_IMAGE, SCHEMA1_SIGNED, SCHEMA1_SIGNED),
        (ORAS_BODY, ORAS_ARTIFACT, ORAS_ARTIFACT),
        # inferred, if the header is for another kind
        (INDEX, OCI_IMAGE, OCI_INDEX),
        (IMAGE, DOCKER_LIST, OCI_IMAGE),
        (IMAGE, None, OCI_IMAGE),
        (INDEX, "", OCI_INDEX),
        (OLD_IMAGE, None, SCHEMA1),
        (OLD_IMAGE | {"signatures": [{}]}, "application/json", SCHEMA1_SIGNED),
        # empty lists as Go programs encode them
        (INDEX | {"manifests": []}, None, OCI_INDEX),
        (INDEX | {"manifests": None}, None, OCI_INDEX),
        (IMAGE | {"layers": None}, None, OCI_IMAGE),
        # no lists at all, if the kind is stated
        (NO_LAYERS | {"mediaType": OCI_IMAGE}, OCI_IMAGE, OCI_IMAGE),
        (NO_LAYERS | {"mediaType": OCI_IMAGE}, None, OCI_IMAGE),
        (NO_LAYERS, DOCKER_IMAGE, DOCKER_IMAGE),
        ({"schemaVersion": 2, "mediaType": OCI_INDEX}, None, OCI_INDEX),
        ({"schemaVersion": 2, "mediaType": DOCKER_LIST, "annotations": {}}, OCI_INDEX, OCI_INDEX),
        ({"schemaVersion": 2}, OCI_INDEX, OCI_INDEX),
        (ORAS_BODY | {"mediaType": ORAS_ARTIFACT}, "application/json", ORAS_ARTIFACT),
        ({"mediaType": ORAS_ARTIFACT}, ORAS_ARTIFACT, ORAS_ARTIFACT),
        ({"mediaType": OCI_ARTIFACT}, None, OCI_ARTIFACT),
    ],
)
def test_the_media_type_is_in_the_header_or_declared_or_inferred(
    document: dict[str, Any], content_type: str | None, media_type: str
) -> None:
    """By the rules in the comments."""
    assert parse(document, content_type).media_type == media_type


@pytest.mark.parametrize(
    ("document", "content_type", "is_of_other_type"),
    [
        (IMAGE, OCI_IMAGE, False),
        (IMAGE, DOCKER_IMAGE, False),
        (IMAGE, None, False),
        (IMAGE, "application/json", False),
        (INDEX | {"mediaType": OCI_INDEX}, DOCKER_LIST, False),
        (IMAGE, OCI_INDEX, True),
        (IMAGE, ORAS_ARTIFACT, True),
        (INDEX, OCI_IMAGE, True),
        (IMAGE, "application/vnd.other+json", True),
        (IMAGE | {"mediaType": OCI_IMAGE}, "application/vnd.other+json", True),
    ],
)
def test_the_type_of_the_header_may_be_another_one(
    document: dict[str, Any], content_type: str | None, *, is_of_other_type: bool
) -> None:
    """It is what the registry has accepted the manifest as."""
    assert parse(document, content_type).is_of_other_type is is_of_other_type


def test_the_body_of_a_manifest_is_unchanged() -> None:
    """With its whitespace and the order of its keys."""
    body = b'  {"manifests" :\n[ ] }\n'
    manifest = Manifest.parse(body, OCI_INDEX, Digest.of(body))
    assert manifest.body == body
    assert manifest.size == len(body)
    assert manifest.descriptor == Descriptor(OCI_INDEX, Digest.of(body), len(body))


def test_the_repr_of_a_manifest_does_not_contain_its_body() -> None:
    """So that it is short in a log."""
    assert "fsLayers" not in repr(parse(OLD_IMAGE))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_the_digest_has_the_algorithm_of_the_expected_one(algorithm: str) -> None:
    """A manifest that was requested by sha512 has a sha512 digest."""
    digest = Digest.of(encode(IMAGE), algorithm)
    assert Manifest.parse(encode(IMAGE), None, digest).digest == digest


def test_the_digest_is_sha256_by_default() -> None:
    """For a manifest that was requested by tag."""
    assert parse(IMAGE).digest == Digest.of(encode(IMAGE))


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_wrong_digest_is_rejected(algorithm: str) -> None:
    """A body with another digest is not the requested manifest."""
    with pytest.raises(BadUpstream):
        Manifest.parse(encode(IMAGE), OCI_IMAGE, Digest.of(b"other", algorithm))


@pytest.mark.parametrize(
    "document",
    [
        IMAGE | {"manifests": []},
        INDEX | {"layers": []},
        INDEX | {"config": CHILD},
        INDEX | {"layers": None},
        INDEX | {"fsLayers": []},
        IMAGE | {"fsLayers": []},
        INDEX | {"mediaType": OCI_ARTIFACT},
        IMAGE | {"mediaType": OCI_ARTIFACT},
        IMAGE | {"mediaType": ORAS_ARTIFACT},
        NO_LAYERS | {"manifests": []},
        NO_LAYERS | {"fsLayers": []},
    ],
)
def test_a_document_of_two_kinds_is_rejected(document: dict[str, Any]) -> None:
    """Two clients could pull two images from one document (CVE-2021-41190)."""
    check_rejected(encode(document))


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        (INDEX | {"mediaType": OCI_INDEX}, OCI_IMAGE),
        (IMAGE | {"mediaType": DOCKER_IMAGE}, f"{OCI_IMAGE}; x=y"),
        (IMAGE | {"mediaType": OCI_IMAGE}, DOCKER_IMAGE),
        (IMAGE | {"mediaType": DOCKER_IMAGE}, OCI_INDEX),
        (NO_LAYERS | {"mediaType": OCI_IMAGE}, OCI_INDEX),
        (NO_LAYERS | {"mediaType": OCI_INDEX}, OCI_INDEX),
        (INDEX | {"mediaType": OCI_IMAGE}, None),
        (IMAGE | {"mediaType": OCI_INDEX}, OCI_INDEX),
        (OLD_IMAGE | {"mediaType": DOCKER_IMAGE}, None),
    ],
)
def test_a_document_that_contradicts_its_type_is_rejected(document: dict[str, Any], content_type: str | None) -> None:
    """Its keys, its mediaType and its Content-Type must agree, but for the two types of indexes."""
    check_rejected(encode(document), content_type)


@pytest.mark.parametrize("media_type", [1, [], {}, True, "x", "a/b\r\nX: 1", "a/b; c=d", "\u00e9/x", "a/" + "b" * 200])
def test_a_media_type_that_is_invalid_in_a_header_is_rejected(media_type: object) -> None:
    """The mediaType is sent as Content-Type."""
    check_rejected(encode(IMAGE | {"mediaType": media_type}))


@pytest.mark.parametrize(
    "document",
    [
        {},
        [],
        [INDEX],
        None,
        1,
        "x",
        {"errors": [{"code": "UNKNOWN"}]},
        {"schemaVersion": 2},
        {"schemaVersion": 2, "mediaType": OCI_IMAGE},
        {"mediaType": OCI_INDEX},
        {"schemaVersion": 2, "mediaType": "application/vnd.other+json"},
        {"schemaVersion": 2, "layers": []},
        {"manifests": {}},
        {"manifests": "x"},
        {"manifests": [1]},
        {"manifests": [[CHILD]]},
        {"layers": []},
        {"config": CHILD},
        {"config": None, "layers": []},
        {"config": "x", "layers": []},
        {"config": CHILD, "layers": {}},
        {"config": CHILD, "layers": ["x"]},
        {"fsLayers": []},
        {"schemaVersion": 2, "fsLayers": []},
        {"schemaVersion": "1", "fsLayers": []},
        {"schemaVersion": 1, "fsLayers": "x"},
        {"mediaType": OCI_ARTIFACT, "blobs": "x"},
    ],
)
def test_json_that_is_not_a_manifest_is_rejected(document: object) -> None:
    """Such as an error message."""
    check_rejected(encode(document), OCI_IMAGE)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html></html>",
        b'{"manifests":[]} x',
        b'{"manifests":[]',
        b'\xff{"manifests":[]}',
        b'\xef\xbb\xbf{"manifests":[]}',
        '{"manifests":[]}'.encode("utf-16"),
        '{"manifests":[]}'.encode("utf-32"),
        b'{"manifests":[],"a":"\xed\xa0\x80"}',  # an encoded lone surrogate
        b'{"manifests":[],"a":"\\ud800"}',
        b'{"manifests":[],"a":{"b":["\\uDFFF x"]}}',
        b'{"manifests":[],"\\ude00\\ud83d":1}',
        b'{"manifests":[],"a":NaN}',
        b'{"manifests":[],"a":[-Infinity]}',
        b'{"manifests":[],"a":Infinity}',
        b'{"manifests":[],"manifests":[]}',
        b'{"manifests":[],"a":1,"\\u0061":2}',
        b'{"manifests":[{"digest":1,"digest":2}]}',
        b'{"manifests":[],"a":' + b"1" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"manifests":[],"a":' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"manifests":[],"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"manifests":[' + b",".join([b"{}"] * 1_000_000) + b"]}",
    ],
)
def test_invalid_or_hostile_json_is_rejected(body: bytes) -> None:
    """Quickly, and with BadUpstream."""
    check_rejected(body)


@pytest.mark.parametrize("text", ["\\ud83d\\ude00", "\\\\ud800", "\u00e9\U0001f600", "1" * 1000])
def test_text_similar_to_hostile_text_is_accepted(text: str) -> None:
    """A surrogate pair, an escaped backslash and plain text."""
    assert Manifest.parse(f'{{"manifests":[],"a":"{text}"}}'.encode(), None, None).media_type == OCI_INDEX


@pytest.mark.parametrize("number", ["1e999999", "1." + "1" * 1_000_000, "-0.0", "12345678901234567890"])
def test_unused_numbers_are_ignored(number: str) -> None:
    """Those of unknown keys."""
    assert Manifest.parse(f'{{"manifests":[],"a":{number}}}'.encode(), None, None).media_type == OCI_INDEX


def test_a_manifest_may_be_as_large_as_clients_accept() -> None:
    """Up to 4 MiB."""
    body = encode(IMAGE)
    padded = body + b" " * (MAX_MANIFEST_BYTES - len(body))
    assert Manifest.parse(padded, None, None).size == MAX_MANIFEST_BYTES
    check_rejected(padded + b" ")


@pytest.mark.parametrize(
    ("document", "content_type", "declares_media_type"),
    [
        (IMAGE | {"mediaType": DOCKER_IMAGE}, DOCKER_IMAGE, True),
        (INDEX | {"mediaType": OCI_INDEX}, DOCKER_LIST, False),
        (IMAGE, DOCKER_IMAGE, False),
        (IMAGE, None, False),
        (INDEX, DOCKER_LIST, False),
        ({"schemaVersion": 2}, OCI_INDEX, False),
        (ORAS_BODY, ORAS_ARTIFACT, False),
    ],
)
def test_a_stored_manifest_is_as_it_was(
    document: dict[str, Any], content_type: str | None, *, declares_media_type: bool
) -> None:
    """With the type that is stored with it, if the body does not have the same one."""
    kept = parse(document, content_type)
    assert kept.declares_media_type == declares_media_type
    assert Manifest.stored(kept.body, kept.digest, None if declares_media_type else kept.media_type) == kept


@pytest.mark.parametrize("stored_type", [None, "", "binary/octet-stream", "application/json", OCI_INDEX, "x", "a/b\n"])
def test_a_stored_type_that_does_not_fit_is_ignored(stored_type: str | None) -> None:
    """Buckets may be filled by other programs."""
    for document in (IMAGE, IMAGE | {"mediaType": OCI_IMAGE}):
        body = encode(document)
        assert Manifest.stored(body, Digest.of(body), stored_type).media_type == OCI_IMAGE


def test_a_damaged_stored_manifest_is_rejected() -> None:
    """Even if one byte is changed."""
    kept = parse(IMAGE)
    with pytest.raises(BadUpstream):
        Manifest.stored(kept.body + b" ", kept.digest)


def test_all_known_types_are_accepted_from_upstreams() -> None:
    """A tag is cached once for all clients, so the Accept header has every type that any client accepts."""
    artifacts = {OCI_ARTIFACT, ORAS_ARTIFACT}
    assert {OCI_INDEX, OCI_IMAGE, DOCKER_LIST, DOCKER_IMAGE, *artifacts, SCHEMA1, SCHEMA1_SIGNED} == set(ACCEPT)


def test_the_blobs_of_a_manifest() -> None:
    """Those of an image are its config and layers; in schema 1 they have another name."""
    digest, other = Digest.of(b"x"), Digest.of(b"y")
    assert parse(IMAGE).blobs == (digest, digest)
    assert parse(NO_LAYERS, OCI_IMAGE).blobs == (digest,)
    assert parse(ARTIFACT).blobs == (digest,)
    assert parse(OLD_IMAGE | {"fsLayers": [{"blobSum": str(other)}, {"blobSum": "z"}]}).blobs == (other,)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["mediaType", "manifests", "config", "layers", "fsLayers", "blobs", "schemaVersion", "signatures"]
)
members = json_values | st.sampled_from([*ACCEPT, [], [{}], {}, 1, 2])


@given(st.dictionaries(keys, members), st.none() | st.sampled_from(ACCEPT) | st.text(max_size=10))
def test_any_document_is_a_manifest_or_bad_upstream(document: dict[str, Any], content_type: str | None) -> None:
    """An accepted document can be read from storage, and its media type fits its kind."""
    try:
        manifest = parse(document, content_type)
    except BadUpstream:
        return
    stored_type = None if manifest.declares_media_type else manifest.media_type
    assert Manifest.stored(manifest.body, manifest.digest, stored_type) == manifest
    marks = {"manifests", "fsLayers", "config"} & document.keys()
    artifacts_and_empty_indexes = {OCI_ARTIFACT, ORAS_ARTIFACT, OCI_INDEX, DOCKER_LIST}
    assert len(marks) == 1 or (not marks and manifest.media_type in artifacts_and_empty_indexes)


@given(st.binary() | st.text(alphabet='{}[]",:\\u0dn1e-. manifests').map(str.encode), st.none() | st.text(max_size=5))
def test_any_body_is_a_manifest_or_bad_upstream(body: bytes, content_type: str | None) -> None:
    """Parsing raises no other error."""
    with contextlib.suppress(BadUpstream):
        assert Manifest.parse(body, content_type, None).body == body

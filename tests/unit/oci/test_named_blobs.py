"""Which blobs a manifest names: those that a registry must have had when it accepted the manifest, and no others."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dockyard.errors import BadUpstream
from dockyard.oci.manifest import (
    DOCKER_IMAGE,
    DOCKER_LIST,
    OCI_ARTIFACT,
    OCI_IMAGE,
    OCI_INDEX,
    ORAS_ARTIFACT,
    SCHEMA1,
    Manifest,
)
from dockyard.oci.named_blobs import find_named_blobs
from dockyard.oci.reference import Digest
from tests.support.schema1 import sign

CONFIG, LAYER, OTHER = (Digest.of(body) for body in (b"config", b"layer", b"other"))
SHA512 = Digest.of(b"layer", "sha512")


def descriptor(digest: Digest, **more: Any) -> dict[str, Any]:
    """Make a descriptor."""
    return {"mediaType": "application/octet-stream", "digest": str(digest), "size": 1, **more}


def image(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Make an image manifest."""
    return {"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": descriptor(CONFIG), "layers": [*layers], **more}


def named(document: dict[str, Any], content_type: str | None = None) -> list[Digest]:
    """The blobs that a document names, as a manifest."""
    return list(Manifest.parse(json.dumps(document).encode(), content_type, None).named_blobs)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        (image(descriptor(LAYER), descriptor(SHA512), descriptor(LAYER)), [CONFIG, LAYER, SHA512]),
        (image(descriptor(LAYER)) | {"mediaType": DOCKER_IMAGE}, [CONFIG, LAYER]),
        (image() | {"layers": None}, [CONFIG]),
        ({"mediaType": OCI_ARTIFACT, "artifactType": "a/b", "blobs": [descriptor(LAYER)]}, [LAYER]),
        ({"mediaType": OCI_ARTIFACT, "artifactType": "a/b"}, []),
        ({"schemaVersion": 1, "mediaType": SCHEMA1, "fsLayers": [{"blobSum": str(LAYER)}]}, [LAYER]),
        (image({"digest": "sha256:ab"}, {"digest": 1}, {}, descriptor(LAYER)), [CONFIG, LAYER]),
        (image(descriptor(LAYER, urls=[])), [CONFIG, LAYER]),
    ],
)
def test_the_config_layers_and_blobs_are_named(document: dict[str, Any], expected: list[Digest]) -> None:
    """Each once, in the order of the manifest."""
    assert named(document) == expected


@pytest.mark.parametrize(
    "document",
    [
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(OTHER)]},
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "blobs": [descriptor(OTHER)]},
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "blobs": [descriptor(OTHER)]},
        {"schemaVersion": 2, "mediaType": DOCKER_LIST, "blobs": [descriptor(OTHER)]},
        {"schemaVersion": 2, "mediaType": OCI_IMAGE, "config": descriptor(CONFIG), "blobs": [descriptor(OTHER)]},
        image(descriptor(OTHER)) | {"mediaType": "application/vnd.example.image+json"},
        image(blobs=[descriptor(OTHER)]),
        image(subject=descriptor(OTHER)),
        image(annotations={"digest": str(OTHER)}),
        image(descriptor(LAYER, data="e30=", blobSum=str(OTHER))),
        image({"mediaType": "application/octet-stream", "blobSum": str(OTHER)}),
        {"schemaVersion": 1, "mediaType": SCHEMA1, "fsLayers": [{"blobSum": str(LAYER)}], "blobs": [descriptor(OTHER)]},
    ],
)
def test_what_a_registry_does_not_read_as_a_blob_is_not_named(document: dict[str, Any]) -> None:
    """Otherwise, who may push to one repository could read any blob whose digest is known."""
    assert OTHER not in named(document)


@pytest.mark.parametrize("content_type", [OCI_INDEX, DOCKER_LIST, ORAS_ARTIFACT])
def test_blobs_of_a_document_without_a_type_are_not_named(content_type: str) -> None:
    """A registry has accepted it as what the header says, which is not in the body."""
    assert named({"schemaVersion": 2, "blobs": [descriptor(OTHER)]}, content_type) == []


@pytest.mark.parametrize(
    "layer",
    [
        descriptor(OTHER, urls=["https://example.com/layer"]),
        descriptor(OTHER) | {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
        descriptor(OTHER) | {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"},
    ],
)
def test_a_layer_that_a_registry_need_not_have_is_not_named(layer: dict[str, Any]) -> None:
    """Registries accept such a layer without looking for it."""
    assert named(image(layer, descriptor(LAYER))) == [CONFIG, LAYER]


@pytest.mark.parametrize("key", ["Layers", "LAYERS", "layer\u017f", "Config", "Blobs", "Manifests"])
def test_a_document_that_go_may_read_in_another_way_names_nothing(key: str) -> None:
    """The JSON decoder of Go takes the last of the keys that are equal but for their case."""
    other = descriptor(CONFIG) if key == "Config" else [descriptor(LAYER)]
    assert named(image(descriptor(OTHER)) | {key: other}) == []


@pytest.mark.parametrize("key", ["Digest", "DIGEST", "URLs", "MediaType", "url\u017f"])
def test_a_descriptor_that_go_may_read_in_another_way_names_nothing(key: str) -> None:
    """The other descriptors of the manifest count."""
    assert named(image(descriptor(OTHER, **{key: str(LAYER)}), descriptor(LAYER))) == [CONFIG, LAYER]


def test_what_is_not_signed_in_a_schema_1_manifest_is_not_named() -> None:
    """Registries read the signed part only."""
    payload: dict[str, Any] = {"schemaVersion": 1, "name": "x", "tag": "y"}
    assert find_named_blobs(sign(payload | {"fsLayers": [{"blobSum": str(LAYER)}]}).body) == (LAYER,)
    unsigned = json.dumps([{"blobSum": str(OTHER)}])
    assert find_named_blobs(sign(payload, before=f'"fsLayers": {unsigned}, ').body) == ()


@pytest.mark.parametrize("declared", [{}, {"mediaType": OCI_INDEX}])
def test_what_may_be_an_index_without_manifests_names_nothing(declared: dict[str, str]) -> None:
    """Registries accept it, and do not look for the blobs that it names."""
    assert find_named_blobs(json.dumps({"schemaVersion": 2, "blobs": [descriptor(OTHER)], **declared}).encode()) == ()


# A model of a registry in Go: it reads the last of the keys that are equal but for their case, and looks for the blobs
# of the kind of manifest that it takes the document for.

INDEXES = [OCI_INDEX, DOCKER_LIST]
# Documents whose values have other types are rejected by both.
LISTS = ["layers", "blobs", "manifests", "fsLayers", "Layers", "layer\u017f", "BLOBS", "Manifests", "fslayers"]
TEXTS = ["digest", "Digest", "dige\u017ft", "blobSum", "blobsum", "mediaType", "MediaType", "size"]
texts = st.sampled_from([str(CONFIG), str(LAYER), str(OTHER), OCI_IMAGE, "application/x.foreign.y", "", "x"])


def one_of_these(values: dict[str, Any]) -> Any:
    """A dictionary with one of the keys, or empty: with more, nearly all would be named by nobody."""
    return st.one_of(st.just({}), *(st.fixed_dictionaries({key: value}) for key, value in values.items()))


urls = dict.fromkeys(["urls", "URLS"], st.lists(texts, max_size=1))
descriptors = st.builds(
    dict.__or__, st.fixed_dictionaries({"digest": texts}), one_of_these(dict.fromkeys(TEXTS, texts) | urls)
)
lists = st.lists(descriptors, max_size=2)
bodies = st.builds(
    dict.__or__,
    st.one_of(
        st.fixed_dictionaries({"config": descriptors, "layers": lists}),
        st.fixed_dictionaries({"fsLayers": lists}),
        st.fixed_dictionaries({"mediaType": st.sampled_from([OCI_ARTIFACT, *INDEXES]), "blobs": lists}),
    ),
    one_of_these(dict.fromkeys(LISTS, lists) | dict.fromkeys(["Config", "subject"], descriptors)),
)


def read_as_go(values: dict[str, Any], key: str) -> Any:
    """The value of a key as the JSON decoder of Go finds it."""
    found = [value for name, value in values.items() if name.casefold() == key.casefold()]
    return found[-1] if found else None


def checked_by_a_registry(document: dict[str, Any]) -> set[str]:
    """The digests of the blobs that a registry in Go looks for before it accepts a manifest."""
    if read_as_go(document, "manifests") is not None or read_as_go(document, "mediaType") in INDEXES:
        return set()
    if read_as_go(document, "fsLayers") is not None:
        return {str(read_as_go(entry, "blobSum")) for entry in read_as_go(document, "fsLayers")}
    config, layers = read_as_go(document, "config"), read_as_go(document, "layers")
    entries = [config, *(layers or [])] if config is not None else read_as_go(document, "blobs") or []
    return {
        str(read_as_go(entry, "digest"))
        for entry in entries
        if not read_as_go(entry, "urls") and ".foreign." not in str(read_as_go(entry, "mediaType"))
    }


@given(bodies, st.randoms(use_true_random=False))
@settings(max_examples=500)
def test_nothing_is_named_that_a_registry_does_not_look_for(document: dict[str, Any], random: random.Random) -> None:
    """Whatever keys a document has, if it is a manifest."""
    order = {key: document[key] for key in random.sample(sorted(document), len(document))}
    body = json.dumps({"schemaVersion": 1 if "fsLayers" in document else 2, **order}).encode()
    try:
        named = Manifest.parse(body, None, None).named_blobs
    except BadUpstream:
        return
    assert {str(digest) for digest in named} <= checked_by_a_registry(order)

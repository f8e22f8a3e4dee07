"""Which blobs a manifest names: those that a registry must have had when it accepted the manifest, and no others."""

import json
from typing import Any

import pytest

from dockyard.oci.manifest import DOCKER_IMAGE, OCI_ARTIFACT, OCI_IMAGE, OCI_INDEX, SCHEMA1, Manifest
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

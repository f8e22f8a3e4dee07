"""The content of the upstream, generated for a run: blobs of random bytes, and images."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import attrs

BLOCK_BYTES = 4 * 1024 * 1024
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ACCEPT = f"{OCI_INDEX}, {OCI_MANIFEST}"
REPOSITORY = "bench/app"


@attrs.frozen
class Blob:
    """One blob of the upstream."""

    digest: str
    size: int


@attrs.frozen
class Image:
    """An index, its one manifest, its config and its layers."""

    tag: str
    index: Blob
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def size(self) -> int:
        return sum(blob.size for blob in (self.index, self.manifest, self.config, *self.layers))


class UpstreamContent:
    """The directory that the upstream serves."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "blobs"
        self._manifests = directory / "manifests" / REPOSITORY
        self._blobs.mkdir(parents=True)
        self._manifests.mkdir(parents=True)

    def add_blob(self, size: int) -> Blob:
        """Generate a new blob."""
        hasher = hashlib.sha256()
        new = self._blobs / "new"
        with new.open("wb") as file:
            for start in range(0, size, BLOCK_BYTES):
                block = os.urandom(min(BLOCK_BYTES, size - start))
                hasher.update(block)
                file.write(block)
        return self._keep(new, hasher.hexdigest(), size)

    def add_image(self, tag: str, layer_sizes: tuple[int, ...]) -> Image:
        """Generate an image for linux/amd64 with a tag."""
        layers = tuple(self.add_blob(size) for size in layer_sizes)
        platform = {"architecture": "amd64", "os": "linux"}
        history = [{"created_by": tag} for _ in layers]
        rootfs = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
        config = self._add_document(self._blobs, {**platform, "config": {}, "rootfs": rootfs, "history": history})
        manifest = self._add_document(
            self._manifests,
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": _descriptor(config, OCI_CONFIG),
                "layers": [_descriptor(layer, OCI_LAYER) for layer in layers],
            },
        )
        entry = {**_descriptor(manifest, OCI_MANIFEST), "platform": platform}
        index = self._add_document(self._manifests, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]})
        os.link(self._manifests / index.digest, self._manifests / tag)
        return Image(tag, index, manifest, config, layers)

    def remove(self, blob: Blob) -> None:
        """Delete a blob."""
        (self._blobs / blob.digest).unlink()

    def _keep(self, new: Path, encoded: str, size: int) -> Blob:
        digest = f"sha256:{encoded}"
        new.rename(new.with_name(digest))
        return Blob(digest, size)

    def _add_document(self, directory: Path, document: dict[str, Any]) -> Blob:
        data = json.dumps(document).encode()
        (directory / "new").write_bytes(data)
        return self._keep(directory / "new", hashlib.sha256(data).hexdigest(), len(data))


def _descriptor(blob: Blob, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}

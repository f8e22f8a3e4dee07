"""Images for a real registry: small ones of every kind, and one with a layer of any size.

Layers are valid tar files, so that clients can unpack them. All content depends on `seed`: another seed gives other
digests for every part, so a test with a seed of its own always starts with a cold cache.
"""

import gzip
import hashlib
import io
import json
import platform
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.support.distribution import DistributionRegistry
from tests.support.fake_registry import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
)

IN_TOTO = "application/vnd.in-toto+json"
OCI_TAR_LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURES = ("amd64", "arm64")
THIS_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
BLOCK_BYTES = 1 << 20
PAGE_BYTES = 4096


@attrs.frozen
class Blob:
    """One blob of an image."""

    media_type: str
    digest: str
    size: int

    @property
    def descriptor(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@attrs.frozen
class PlatformImage:
    """The image of one platform."""

    digest: str
    media_type: str
    size: int
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def blobs(self) -> frozenset[str]:
        return frozenset(part.digest for part in (self.config, *self.layers))


@attrs.frozen
class PushedImage:
    """An image in the registry under `repository:tag`: its digest, and the image of each architecture."""

    repository: str
    tag: str
    digest: str
    media_type: str
    platforms: Mapping[str, PlatformImage]

    @property
    def this_platform(self) -> PlatformImage:
        """The image of this machine's platform."""
        return self.platforms[THIS_ARCHITECTURE]

    @property
    def blobs(self) -> frozenset[str]:
        return frozenset(digest for single in self.platforms.values() for digest in single.blobs)

    @property
    def manifests(self) -> frozenset[str]:
        return frozenset({self.digest, *(single.digest for single in self.platforms.values())})


def push_index(
    registry: DistributionRegistry, repository: str, seed: str, *, tag: str = "latest", common: str = ""
) -> PushedImage:
    """Push an OCI index for two platforms, each of two gzip layers; the first layer is common to both.

    With `common`, it is common to all images that have the same one.
    """
    platforms = {
        architecture: _push_single(
            registry,
            repository,
            architecture,
            (common or f"{seed} common", f"{seed} {architecture}"),
            (OCI_MANIFEST, OCI_CONFIG, OCI_LAYER),
        )
        for architecture in ARCHITECTURES
    }
    entries = [_entry(single, architecture) for architecture, single in platforms.items()]
    digest = _push_entries(registry, repository, tag, entries)
    return PushedImage(repository, tag, digest, OCI_INDEX, platforms)


def push_attested(
    registry: DistributionRegistry, repository: str, seed: str, *, tag: str = "latest", common: str = ""
) -> PushedImage:
    """Push an OCI index as BuildKit makes it: two platforms, and an attestation of the image of this one.

    The first layer is common to both platforms, and to all images with the same `common`. The attestation is the
    platform `unknown`.
    """
    image = push_index(registry, repository, seed, tag=tag, common=common)
    statement = json.dumps({"_type": "https://in-toto.io/Statement/v0.1", "subject": [], "seed": seed}).encode()
    layer = Blob(IN_TOTO, _digest(statement), len(statement))
    registry.put_blob(repository, layer.digest, statement)
    config_body = _config("unknown", [layer.digest], system="unknown")
    config = Blob(OCI_CONFIG, _digest(config_body), len(config_body))
    registry.put_blob(repository, config.digest, config_body)
    attestation = _push_manifest(registry, repository, OCI_MANIFEST, config, (layer,), None)
    marks = {
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image.this_platform.digest,
        }
    }
    entries = [_entry(single, architecture) for architecture, single in image.platforms.items()]
    entries.append(_entry(attestation, "unknown", "unknown") | marks)
    platforms = {**image.platforms, "unknown": attestation}
    return attrs.evolve(image, digest=_push_entries(registry, repository, tag, entries), platforms=platforms)


def push_docker(
    registry: DistributionRegistry, repository: str, seed: str, *, tag: str = "latest", common: str = ""
) -> PushedImage:
    """Push a Docker v2 schema 2 image for this machine's platform; `common` as in `push_index`."""
    types = (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER)
    seeds = (common or f"{seed} one", f"{seed} two")
    single = _push_single(registry, repository, THIS_ARCHITECTURE, seeds, types, tag=tag)
    return PushedImage(repository, tag, single.digest, DOCKER_MANIFEST, {THIS_ARCHITECTURE: single})


def push_large(
    registry: DistributionRegistry, repository: str, seed: str, size_bytes: int, *, tag: str = "latest"
) -> PushedImage:
    """Push an OCI image whose one layer is a plain tar holding one file of `size_bytes` that does not compress."""
    return push_layers(registry, repository, seed, [size_bytes], tag=tag)


def push_layers(
    registry: DistributionRegistry, repository: str, seed: str, sizes: Sequence[int], *, tag: str = "latest"
) -> PushedImage:
    """Push an OCI image with a layer for each size: a plain tar holding one file that does not compress."""
    layers = []
    for number, size_bytes in enumerate(sizes):
        source = registry.directory / f"layer-{_digest(f'{seed} {number}'.encode())[7:19]}"
        layers.append(_write_large_layer(source, f"{seed} {number}", size_bytes))
        registry.put_blob_file(repository, layers[-1].digest, source)
    config_body = _config(THIS_ARCHITECTURE, [layer.digest for layer in layers])
    config = Blob(OCI_CONFIG, _digest(config_body), len(config_body))
    registry.put_blob(repository, config.digest, config_body)
    single = _push_manifest(registry, repository, OCI_MANIFEST, config, tuple(layers), tag)
    return PushedImage(repository, tag, single.digest, OCI_MANIFEST, {THIS_ARCHITECTURE: single})


def _entry(single: PlatformImage, architecture: str, system: str = "linux") -> dict[str, Any]:
    return {
        "mediaType": single.media_type,
        "digest": single.digest,
        "size": single.size,
        "platform": {"architecture": architecture, "os": system},
    }


def _push_entries(registry: DistributionRegistry, repository: str, tag: str, entries: list[dict[str, Any]]) -> str:
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    registry.put_manifest(repository, tag, body, OCI_INDEX)
    return _digest(body)


def _push_single(
    registry: DistributionRegistry,
    repository: str,
    architecture: str,
    seeds: tuple[str, ...],
    types: tuple[str, str, str],
    tag: str | None = None,
) -> PlatformImage:
    manifest_type, config_type, layer_type = types
    tars = [_tar(f"{seed}.bin".replace(" ", "-"), random.Random(seed).randbytes(200_000)) for seed in seeds]
    layers = []
    for tar in tars:
        packed = gzip.compress(tar, compresslevel=1, mtime=0)
        layers.append(Blob(layer_type, _digest(packed), len(packed)))
        registry.put_blob(repository, layers[-1].digest, packed)
    config_body = _config(architecture, [_digest(tar) for tar in tars])
    config = Blob(config_type, _digest(config_body), len(config_body))
    registry.put_blob(repository, config.digest, config_body)
    return _push_manifest(registry, repository, manifest_type, config, tuple(layers), tag)


def _push_manifest(
    registry: DistributionRegistry,
    repository: str,
    media_type: str,
    config: Blob,
    layers: tuple[Blob, ...],
    tag: str | None,
) -> PlatformImage:
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in layers],
    }
    body = json.dumps(document).encode()
    digest = _digest(body)
    registry.put_manifest(repository, tag or digest, body, media_type)
    return PlatformImage(digest, media_type, len(body), config, layers)


def _config(architecture: str, diff_ids: list[str], system: str = "linux") -> bytes:
    document = {
        "created": "2026-01-01T00:00:00Z",
        "architecture": architecture,
        "os": system,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "test"} for _ in diff_ids],
    }
    return json.dumps(document).encode()


def _tar(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _write_large_layer(path: Path, seed: str, size_bytes: int) -> Blob:
    """Write a tar of one large file block by block; every page of it has its own number, so none equals another."""
    info = tarfile.TarInfo("large.bin")
    info.size = size_bytes
    block = bytearray(random.Random(seed).randbytes(BLOCK_BYTES))
    hasher = hashlib.sha256()
    with path.open("wb") as file:

        def put(data: bytes | bytearray) -> None:
            hasher.update(data)
            file.write(data)

        put(info.tobuf(tarfile.GNU_FORMAT))
        for start in range(0, size_bytes, BLOCK_BYTES):
            for page in range(0, BLOCK_BYTES, PAGE_BYTES):
                block[page : page + 8] = (start + page).to_bytes(8, "big")
            put(block[: size_bytes - start])
        put(bytes(-size_bytes % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE))
        size = file.tell()
    return Blob(OCI_TAR_LAYER, f"sha256:{hasher.hexdigest()}", size)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"

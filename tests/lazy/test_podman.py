"""Podman itself pulls zstd:chunked layers partially, through a Dockyard that has nothing; the newest library too."""

import contextlib
import io
import json
import random
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.bodies import digest_of
from tests.support.deployment import eventually, stays
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import ACCEPT_ANY_SIGNATURE, ImageLibrary, Podman, environment, run
from tests.support.programs import Programs

FILES = 300  # more than the ranges of one request
FILE_BYTES = 20_000
REPOSITORY = "library/chunked"
OCI = "application/vnd.oci.image"


@attrs.frozen
class ChunkedImage:
    """An image whose one layer is zstd:chunked, in the registry under `tag`."""

    tag: str
    layer: str
    size: int


@pytest.fixture(scope="module")
def podman(programs: Programs) -> Iterator[Podman]:
    """A podman without images that pulls partially."""
    with tempfile.TemporaryDirectory(prefix="podman-") as directory:
        podman = Podman(programs.need("podman", as_root=True), Path(directory), pulls_partially=True)
        yield podman
        podman.wipe()
        podman.unmount()


@pytest.fixture
def library(programs: Programs, tmp_path: Path) -> Iterator[ImageLibrary]:
    """The library of Podman and CRI-O in its newest version, without images."""
    with contextlib.closing(ImageLibrary(programs.need("image-library", as_root=True), tmp_path)) as library:
        yield library


@pytest.fixture(scope="module")
def dockyard(registry: DistributionRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockyard]:
    """Two workers."""
    with running(Dockyard(tmp_path_factory.mktemp("dockyard"), [docker_hub(registry)])) as dockyard:
        yield dockyard
        dockyard.stop()


def make_files(tag: str) -> dict[str, bytes]:
    """Files that do not compress; of `v2` every tenth is new."""
    seeds = [number + FILES * (tag == "v2" and number % 10 == 0) for number in range(FILES)]
    return {f"file-{number:04}": random.Random(seed).randbytes(FILE_BYTES) for number, seed in enumerate(seeds)}


def make_tar(files: dict[str, bytes]) -> bytes:
    """A layer with these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def write_layout(directory: Path, tar: bytes) -> None:
    """Write an image of one layer as an OCI layout, which Skopeo reads."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(content: bytes, media_type: str) -> dict[str, object]:
        digest = digest_of(content)
        (blobs / digest.partition(":")[2]).write_bytes(content)
        return {"mediaType": f"{OCI}.{media_type}", "digest": digest, "size": len(content)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(tar)]},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": add(json.dumps(config).encode(), "config.v1+json"),
        "layers": [add(tar, "layer.v1.tar")],
    }
    index = {"schemaVersion": 2, "manifests": [add(json.dumps(document).encode(), "manifest.v1+json")]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@pytest.fixture(scope="module")
def images(
    programs: Programs, registry: DistributionRegistry, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ChunkedImage]:
    """Two versions of an image that Skopeo converts; of the second every tenth file is new."""
    directory = tmp_path_factory.mktemp("layouts")
    policy = directory / "policy.json"
    policy.write_text(json.dumps(ACCEPT_ANY_SIGNATURE))
    skopeo = [programs.need("skopeo"), f"--policy={policy}", "copy", "--dest-tls-verify=false", "--dest-compress"]
    images = {}
    for tag in ("v1", "v2"):
        write_layout(directory / tag, make_tar(make_files(tag)))
        words = ["--dest-compress-format=zstd:chunked", f"oci:{directory / tag}"]
        run([*skopeo, *words, f"docker://127.0.0.1:{registry.port}/{REPOSITORY}:{tag}"], environment(directory))
        response = registry.storage / "docker/registry/v2/repositories" / REPOSITORY / "_manifests/tags" / tag
        digest = (response / "current/link").read_text().partition(":")[2]
        blob = registry.storage / "docker/registry/v2/blobs/sha256" / digest[:2] / digest / "data"
        (layer,) = json.loads(blob.read_bytes())["layers"]
        assert any(name.endswith("zstd-chunked.manifest-checksum") for name in layer["annotations"]), layer
        images[tag] = ChunkedImage(tag, layer["digest"], layer["size"])
    registry.clear_requests()
    return images


def test_podman_pulls_what_it_does_not_have(
    podman: Podman, dockyard: Dockyard, registry: DistributionRegistry, images: dict[str, ChunkedImage]
) -> None:
    """Of a cold layer, in parts; the layer comes from the registry once and is cached."""
    for image in images.values():
        registry.clear_requests()
        reference = f"{dockyard.host}/docker.io/{REPOSITORY}:{image.tag}"
        podman.pull(reference)
        assert podman.read_files(reference) == {
            name: digest_of(content) for name, content in make_files(image.tag).items()
        }
        # The table of contents, then the files. Podman 4 asks for too many ranges first, and after 400 for fewer.
        eventually(
            lambda layer=image.layer: re.fullmatch(r"206 ((206|400) )*206 ", _statuses(dockyard, layer)), "the requests"
        )
        assert [
            (request.method, request.status, request.sent)
            for request in registry.requests()
            if request.path.endswith(image.layer)
        ] == [("GET", 200, image.size)]


def _statuses(dockyard: Dockyard, layer: str) -> str:
    """The statuses of the requests for a layer in the log, each with a space."""
    served = [line for line in dockyard.read_log().splitlines() if layer in line and " request " in line]
    return "".join(line.partition("status=")[2].partition(" ")[0] + " " for line in served)


def test_the_newest_library_pulls_what_it_does_not_have(
    library: ImageLibrary, dockyard: Dockyard, registry: DistributionRegistry, tmp_path: Path
) -> None:
    """In ranges only; of the second image less than a half, because the storage has the rest from the first."""
    size = FILES * FILE_BYTES
    for tag, least, most in (("v1", size / 2, 1.1 * size), ("v2", 0, size / 2)):
        write_layout(tmp_path / tag, make_tar(make_files(tag)))
        name = f"{REPOSITORY}-new:{tag}"
        digest = library.push_chunked(tmp_path / tag, f"{registry.host}/{name}")
        logged = len(dockyard.read_log())
        reference = f"{dockyard.host}/docker.io/{name}"
        assert library.pull_into_storage(reference, f"localhost/{tag}", "--plain-http") == digest

        def sent_in_ranges(logged: int = logged) -> int:
            requests = re.findall(r" request .* status=206 .*bytes=(\d+)", dockyard.read_log()[logged:])
            return sum(map(int, requests))

        eventually(lambda least=least: sent_in_ranges() > least, "the requests")
        stays(lambda most=most: sent_in_ranges() < most, "not more", for_s=0.2)

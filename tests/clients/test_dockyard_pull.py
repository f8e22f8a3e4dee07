"""The `dockyard pull` command: a real registry, a real Dockyard, and the requests that reached the registry."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.fake_registry import OCI_INDEX
from tests.support.images import ARCHITECTURES, THIS_ARCHITECTURE, PushedImage, push_docker, push_index
from tests.support.paths import ROOT
from tests.support.processes import free_port
from tests.support.pull_image import pull_and_verify


@pytest.fixture(scope="module")
def dockyard(registry: DistributionRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dockyard]:
    """A Dockyard with two workers; the registry is its upstream as Docker Hub."""
    with running(Dockyard(tmp_path_factory.mktemp("dockyard"), [docker_hub(registry)])) as dockyard:
        yield dockyard


def pull(server: Dockyard | str, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command."""
    url = server if isinstance(server, str) else server.url
    return subprocess.run(
        [sys.executable, "-m", "dockyard", "pull", *words],
        env={"DOCKYARD_URL": url, "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=EVENT_TIMEOUT_S,
        check=False,
    )


def read_upstream(registry: DistributionRegistry) -> Counter[str]:
    """The digests and tags that were read from the registry, and how often; HEAD requests do not count."""
    return Counter(request.path.rpartition("/")[2] for request in registry.requests() if request.method == "GET")


def only(image: PushedImage, *architectures: str) -> PushedImage:
    """The image with these architectures only."""
    return attrs.evolve(image, platforms={name: image.platforms[name] for name in architectures})


@pytest.mark.parametrize(
    ("words", "architectures"),
    [
        ([], [THIS_ARCHITECTURE]),
        (["--platform", "linux/amd64"], ["amd64"]),
        (["--platform", "linux/arm64/v8"], ["arm64"]),
        (["--platform", "linux/amd64", "--platform", "linux/arm64"], ["amd64", "arm64"]),
        (["--all-platforms"], ["amd64", "arm64"]),
    ],
)
def test_an_index_warms_exactly_the_platforms_asked_for(
    registry: DistributionRegistry, dockyard: Dockyard, words: list[str], architectures: list[str]
) -> None:
    """Each of their manifests and blobs is read upstream once, nothing else; then a client's pull is all hits."""
    repository = f"pulled/{'-'.join(words).replace('--', '').replace('/', '-') or 'plain'}"
    image = push_index(registry, repository, repository)
    wanted = only(image, *architectures)
    registry.clear_requests()

    done = pull(dockyard, repository, *words)

    assert (done.returncode, done.stderr) == (0, "")
    assert read_upstream(registry) == Counter(wanted.manifests | wanted.blobs)
    registry.clear_requests()
    pull_and_verify(dockyard.port, f"docker.io/{repository}", wanted)
    assert [request.method for request in registry.requests()] == ["HEAD"]


def test_attestations_are_not_pulled(registry: DistributionRegistry, dockyard: Dockyard) -> None:
    """`--all-platforms` means images, not attestations."""
    image = push_index(registry, "pulled/attested", "attested")
    amd64, arm64 = (image.platforms[name] for name in ARCHITECTURES)
    entries = [
        {"digest": amd64.digest, "size": amd64.size, "platform": {"os": "linux", "architecture": "amd64"}},
        {"digest": arm64.digest, "size": arm64.size, "platform": {"os": "unknown", "architecture": "unknown"}},
    ]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    registry.put_manifest("pulled/attested", "latest", json.dumps(index).encode(), OCI_INDEX)
    registry.clear_requests()

    assert pull(dockyard, "--all-platforms", "pulled/attested").returncode == 0

    read = read_upstream(registry)
    assert read.keys() >= {amd64.digest, *amd64.blobs}
    assert read.keys() & ({arm64.digest, *arm64.blobs} - amd64.blobs) == set()


def test_json_is_a_document_on_each_line(registry: DistributionRegistry, dockyard: Dockyard) -> None:
    """Blobs, images and the end, failures included; standard error is empty."""
    image = push_index(registry, "pulled/json", "json")

    done = pull(dockyard, "--json", "pulled/json", "pulled/nosuch")

    assert (done.returncode, done.stderr) == (1, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    blobs = [event for event in events if event["event"] == "blob"]
    images = {event["image"]: event for event in events if event["event"] == "image"}
    assert {(blob["digest"], blob["error"]) for blob in blobs} == {
        (digest, None) for digest in image.this_platform.blobs
    }
    warm, cold = images["docker.io/pulled/json:latest"], images["docker.io/pulled/nosuch:latest"]
    assert (warm["digest"], warm["platforms"], warm["errors"]) == (image.digest, [f"linux/{THIS_ARCHITECTURE}"], [])
    assert (warm["blobs"], warm["bytes"]) == (len(blobs), sum(blob["bytes"] for blob in blobs))
    assert (cold["digest"], len(cold["errors"])) == (None, 1)
    assert cold["errors"][0].startswith("404 MANIFEST_UNKNOWN")
    assert (events[-1]["event"], events[-1]["images"], events[-1]["failed"]) == ("end", 2, 1)


def test_a_list_names_images(registry: DistributionRegistry, dockyard: Dockyard, tmp_path: Path) -> None:
    """From a file and from standard input, besides the arguments; a layer of several images is read once."""
    names = ["pulled/list-a", "pulled/list-b", "pulled/list-c"]
    images = [push_docker(registry, name, "list") for name in names]
    listed = tmp_path / "images.txt"
    listed.write_text(f"# ours\n{names[0]}\n\n{names[1]}:latest  # pinned\n")
    registry.clear_requests()

    done = pull(dockyard, "--file", str(listed), "--file", "-", stdin=f"{dockyard.host}/docker.io/{names[2]}\n")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("3 of 3 images warm")
    read = read_upstream(registry)
    assert {blob: read[blob] for blob in images[0].blobs} == dict.fromkeys(images[0].blobs, 1)


def test_a_missing_platform_is_a_failure(registry: DistributionRegistry, dockyard: Dockyard) -> None:
    """The error names the available platforms, and those requested among them are cached."""
    image = push_index(registry, "pulled/some", "some")
    registry.clear_requests()

    done = pull(dockyard, "--platform", "linux/amd64,linux/s390x", "pulled/some")

    assert done.returncode == 1
    assert "no manifest for linux/s390x; set --platform: linux/amd64, linux/arm64" in done.stderr
    assert read_upstream(registry).keys() >= image.platforms["amd64"].blobs


def test_an_unreachable_server_is_reported_at_once() -> None:
    """One line, no traceback."""
    url = f"http://127.0.0.1:{free_port()}"

    done = pull(url, "nginx")

    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"dockyard: no Dockyard at {url}: Connection refused (is it running? set its URL with --server)\n"
    )


@pytest.mark.parametrize(
    ("words", "output"),
    [
        ([], "no images are given"),
        (["Nginx", "--platform", "amd64"], "Nginx: not a repository name"),
        (["nginx", "--json", "-q"], "cannot be used together"),
        (["nginx", "--jobs", "0"], "--jobs"),
        (["nginx", "--file", "/no/such/list"], "/no/such/list"),
        (["nginx", "--server", "ftp://x"], "must be a URL"),
    ],
)
def test_invalid_arguments_exit_with_status_2(words: list[str], output: str) -> None:
    """No request is sent to any server."""
    done = pull("http://127.0.0.1:9", *words)

    assert done.returncode == 2
    assert output in done.stderr
    assert "Traceback" not in done.stderr


def test_other_commands_do_not_import_the_pull_client() -> None:
    """Progress bars and HTTP client are imported by this command only."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dockyard", "version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=EVENT_TIMEOUT_S,
        check=True,
    )

    assert "dockyard.config.settings" in done.stderr
    assert [name for name in ("rich", "urllib3", "dockyard.pull") if name in done.stderr] == []


def test_cached_images_succeed_without_the_upstream_and_others_fail(
    registry: DistributionRegistry, dockyard: Dockyard
) -> None:
    """Exit status 1, one line for the image that failed, and the other one is pulled."""
    push_index(registry, "pulled/before", "before")
    push_docker(registry, "pulled/never", "never")
    assert pull(dockyard, "pulled/before").returncode == 0

    with registry.stopped():
        warm = pull(dockyard, "pulled/before")
        mixed = pull(dockyard, "-q", "pulled/before", "pulled/never")

    assert (warm.returncode, warm.stderr) == (0, "")
    assert "docker.io/pulled/before:latest: warm" in warm.stdout
    assert "fetched" not in warm.stdout
    assert (mixed.returncode, mixed.stdout) == (1, "")
    (line,) = mixed.stderr.splitlines()
    assert line.startswith("dockyard: docker.io/pulled/never:latest: 503 UNAVAILABLE")
    assert "retry after" in line

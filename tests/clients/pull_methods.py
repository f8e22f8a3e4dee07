"""How real clients pull an image through Dockyard: which client, with which shape of URL.

A method pulls an image of the upstream and returns the digests that the client has then; `expected` returns the digests
that it must have. U1 to U5 are the shapes of the requests:

    U1  /v2/<prefix>/<name>/...              U4  /v2/<name>/...?ns=<host>
    U2  /v2/<prefix>/<name>/...?ns=<host>    U5  /v2/<name>/...
    U3  /<prefix>/v2/<name>/...?ns=<host>
"""

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from tests.support.dockyard import Dockyard
from tests.support.image_clients import DEAD_PROXY, Containerd, Crane, DockerDaemon, Podman, Skopeo
from tests.support.images import PushedImage

Digests = frozenset[str]

OTHER_REGISTRY = "registry.example.test"  # a second upstream, not Docker Hub


@attrs.frozen
class PullMethod:
    """How one client pulls: `pull` returns the digests it has afterwards, `wipe` removes all its images."""

    pull: Callable[[PushedImage], Digests]
    expected: Callable[[PushedImage], Digests]
    wipe: Callable[[], None] = lambda: None


def docker_by_prefix(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """U1: the name of the image starts with Dockyard's address and the prefix."""
    return _docker(request, lambda image: f"{dockyard.host}/docker.io/{image.repository}:{image.tag}")


def docker_by_mirror(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """U5: `registry-mirrors`; the image has Docker Hub's short name."""
    daemon: DockerDaemon = request.getfixturevalue("docker")
    daemon.use_mirrors(dockyard.url)
    return _docker(request, lambda image: f"{image.repository.removeprefix('library/')}:{image.tag}")


def containerd_u1(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """The name of the image starts with Dockyard's address and the prefix."""
    return _containerd(request, f"{dockyard.host}/docker.io", "--plain-http")


def containerd_u2(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """A mirror whose URL contains `/v2` and the prefix, with `override_path`."""
    hosts = _hosts(request, "docker.io", f"{dockyard.url}/v2/docker.io", "override_path = true")
    return _containerd(request, "docker.io", "--hosts-dir", hosts)


def containerd_u3(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """A mirror whose URL contains the prefix; containerd appends `/v2`."""
    return _containerd(request, "docker.io", "--hosts-dir", _hosts(request, "docker.io", f"{dockyard.url}/docker.io"))


def containerd_u4(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """A mirror without a path; `ns` names the registry."""
    return _containerd(request, "docker.io", "--hosts-dir", _hosts(request, "docker.io", dockyard.url))


def containerd_u4_default(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """U4 from `_default`: one file for every registry, here for one other than Docker Hub."""
    return _containerd(request, OTHER_REGISTRY, "--hosts-dir", _hosts(request, "_default", dockyard.url))


def skopeo_direct(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """U1: the image of this machine's platform."""
    skopeo: Skopeo = request.getfixturevalue("skopeo")
    return PullMethod(
        pull=lambda image: skopeo.pull(f"{dockyard.host}/docker.io/{image.repository}:{image.tag}").digests,
        expected=lambda image: image.this_platform.blobs | {image.this_platform.digest},
    )


def skopeo_all_platforms(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """U1: the index and everything in it."""
    skopeo: Skopeo = request.getfixturevalue("skopeo")
    return PullMethod(
        pull=lambda image: skopeo.pull(f"{dockyard.host}/docker.io/{image.repository}:{image.tag}", "--all").digests,
        expected=lambda image: image.blobs | image.manifests,
    )


def skopeo_mirror(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """U1, by a mirror in registries.conf."""
    skopeo: Skopeo = request.getfixturevalue("skopeo")
    mirrors = _mirrors(dockyard)
    return PullMethod(
        pull=lambda image: skopeo.pull(f"docker.io/{image.repository}:{image.tag}", registries=mirrors).digests,
        expected=lambda image: image.this_platform.blobs | {image.this_platform.digest},
    )


def podman_direct(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """U1: the name of the image starts with Dockyard's address and the prefix."""
    return _podman(request, f"{dockyard.host}/docker.io", "")


def podman_mirror(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """U1, by a mirror in registries.conf."""
    return _podman(request, "docker.io", _mirrors(dockyard))


def crane_direct(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """U1: the index and everything in it."""
    return _crane(request, lambda image: f"{dockyard.host}/docker.io/{image.repository}:{image.tag}")


def crane_short_name(dockyard: Dockyard, request: pytest.FixtureRequest) -> PullMethod:
    """U1 with a short name: Dockyard adds `library/`, because the prefix is Docker Hub."""
    return _crane(
        request,
        lambda image: f"{dockyard.host}/docker.io/{image.repository.removeprefix('library/')}:{image.tag}",
    )


PULL_METHODS: dict[str, Callable[[Dockyard, pytest.FixtureRequest], PullMethod]] = {
    "docker-prefix-U1": docker_by_prefix,
    "docker-mirror-U5": docker_by_mirror,
    "containerd-U1": containerd_u1,
    "containerd-U2": containerd_u2,
    "containerd-U3": containerd_u3,
    "containerd-U4": containerd_u4,
    "containerd-U4-default": containerd_u4_default,
    "skopeo-U1": skopeo_direct,
    "skopeo-all-U1": skopeo_all_platforms,
    "skopeo-mirror-U1": skopeo_mirror,
    "podman-U1": podman_direct,
    "podman-mirror-U1": podman_mirror,
    "crane-U1": crane_direct,
    "crane-short-U1": crane_short_name,
}


def _docker(request: pytest.FixtureRequest, reference: Callable[[PushedImage], str]) -> PullMethod:
    daemon: DockerDaemon = request.getfixturevalue("docker")

    def pull(image: PushedImage) -> Digests:
        daemon.pull(reference(image))
        return frozenset({daemon.digest(reference(image)), daemon.identifier(reference(image))})

    return PullMethod(pull, lambda image: frozenset({image.digest, image.this_platform.config.digest}), daemon.wipe)


def _containerd(request: pytest.FixtureRequest, registry: str, *options: str | Path) -> PullMethod:
    containerd: Containerd = request.getfixturevalue("containerd")

    def pull(image: PushedImage) -> Digests:
        reference = f"{registry}/{image.repository}:{image.tag}"
        containerd.pull(reference, *options)
        return containerd.content() | {containerd.digest(reference)}

    return PullMethod(
        pull, lambda image: image.this_platform.blobs | {image.digest, image.this_platform.digest}, containerd.wipe
    )


def _podman(request: pytest.FixtureRequest, registry: str, mirrors: str) -> PullMethod:
    podman: Podman = request.getfixturevalue("podman")

    def pull(image: PushedImage) -> Digests:
        reference = f"{registry}/{image.repository}:{image.tag}"
        podman.pull(reference, registries=mirrors)
        return podman.digests(reference) | {podman.identifier(reference)}

    return PullMethod(
        pull,
        lambda image: frozenset({image.digest, image.this_platform.digest, image.this_platform.config.digest}),
        podman.wipe,
    )


def _crane(request: pytest.FixtureRequest, reference: Callable[[PushedImage], str]) -> PullMethod:
    crane: Crane = request.getfixturevalue("crane")
    return PullMethod(
        pull=lambda image: crane.pull(reference(image)).digests | {crane.digest(reference(image))},
        expected=lambda image: image.blobs | image.manifests,
    )


def _hosts(request: pytest.FixtureRequest, registry: str, mirror: str, *more: str) -> Path:
    """Write a hosts.toml for containerd; its fallback is a closed port."""
    tmp_path: Path = request.getfixturevalue("tmp_path")
    file = tmp_path / "certs.d" / registry / "hosts.toml"
    file.parent.mkdir(parents=True)
    lines = [f'server = "{DEAD_PROXY}"', f'[host."{mirror}"]', 'capabilities = ["pull", "resolve"]', *more]
    file.write_text("\n".join(lines))
    return tmp_path / "certs.d"


def _mirrors(dockyard: Dockyard) -> str:
    """Return a registries.conf; its fallback is a closed port."""
    return f"""\
[[registry]]
prefix = "docker.io"
location = "{DEAD_PROXY.removeprefix("http://")}"
insecure = true
[[registry.mirror]]
location = "{dockyard.host}/docker.io"
insecure = true
"""

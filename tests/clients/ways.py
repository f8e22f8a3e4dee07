"""Every way to point a real client at Dockyard, with the files of `ops/nodes`: the rows of `ops/CLIENT_MATRIX.md`.

A way has one of three forms. By name: the name of the image begins with Dockyard's address. Open: the name is that of
the registry, and the client asks the registry itself if Dockyard responds with an error or not at all. Closed: the
same, but the client never asks the registry itself.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import attrs
import pytest

from tests.support.artifact_clients import Cosign, Helm, Oras
from tests.support.bodies import digest_of
from tests.support.buildkit import BuildKit
from tests.support.cri import Cri
from tests.support.direct_registry import DirectRegistry
from tests.support.distribution import DistributionRegistry
from tests.support.docker_engine import DockerEngine
from tests.support.image_clients import (
    Containerd,
    Crane,
    DockerDaemon,
    ImageLibrary,
    Podman,
    Regctl,
    Skopeo,
)
from tests.support.images import PushedImage, push_attested, push_docker
from tests.support.paths import ROOT
from tests.support.programs import Programs

Digests = frozenset[str]
Form = Literal["by name", "open", "closed"]

NODES = ROOT / "ops" / "nodes"
OPEN_EXAMPLE, CLOSED_EXAMPLE = "dockyard:5000", "dockyard.example:5000"
HELM_CHART = "application/vnd.cncf.helm.config.v1+json"
SLOTS = 4  # pulls at once, of clients that keep only their last pull


@attrs.frozen
class Front:
    """What clients connect to: Dockyard, with or without TLS, or a balancer in front of it."""

    name: str
    scheme: str
    host: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    @property
    def has_tls(self) -> bool:
        return self.scheme == "https"

    def render(self, file: str) -> str:
        """A file of `ops/nodes` with the address of this front."""
        text = (NODES / file).read_text()
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        text = "\n".join(lines) + "\n"
        assert OPEN_EXAMPLE in text or CLOSED_EXAMPLE in text, file
        for example in (CLOSED_EXAMPLE, OPEN_EXAMPLE):
            text = re.sub(rf"https?://{re.escape(example)}", self.url, text)
            text = text.replace(example, self.host)
        return text


def push_image(registry: DistributionRegistry, number: int, common: str) -> PushedImage:
    """Push an image as BuildKit makes it, with an attestation, or of the kind that Docker made before."""
    push = push_docker if number % 2 else push_attested
    return push(registry, f"library/{common}-{number}", f"{common} {number}", common=common)


@attrs.frozen
class Way:
    """A client that is pointed at a front.

    `pull` takes the name of an image, and the number of one of several pulls at once; it returns what the client has
    then, and raises ClientError. `wipe` removes all images. `expected` is what the client must have of an image that
    `push` has pushed: to a registry, the number of one of several, which have a layer in common.
    """

    pull: Callable[[str, int], Digests]
    expected: Callable[[PushedImage], Digests]
    wipe: Callable[[], None]
    push: Callable[[DistributionRegistry, int, str], PushedImage] = push_image


_Make = Callable[[pytest.FixtureRequest, Front], Way]


@attrs.frozen
class Row:
    """A row of the page: the client and the way, the files, and how to make it for a front."""

    client: str
    programs: tuple[str, ...]  # those whose versions the page tells
    way: str
    form: Form
    make: Callable[[pytest.FixtureRequest, Front], Way]
    files: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.client}: {self.way}"


def _this_platform(image: PushedImage) -> Digests:
    return image.this_platform.blobs | {image.digest, image.this_platform.digest}


def _everything(image: PushedImage) -> Digests:
    return image.blobs | image.manifests


# containerd


def _ctr(fixture: str, *options: str, name: str = "", file: str = "", directory: str = "_default") -> _Make:
    """`ctr images pull`: by name, or with one hosts.toml."""

    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        client: Containerd = request.getfixturevalue(fixture)
        words: list[str | Path] = [*options]
        if file or front.has_tls:  # without a file, servers on loopback are plain HTTP
            certs = request.getfixturevalue("tmp_path") / f"certs-{front.name}"
            hosts = certs / (directory if file else front.host)
            hosts.mkdir(parents=True)
            (hosts / "hosts.toml").write_text(front.render(file or BY_NAME))
            words += ["--hosts-dir", certs]
        else:
            words.append("--plain-http")
        registry = name or f"{front.host}/docker.io"

        def pull(image: str, slot: int) -> Digests:
            client.pull(f"{registry}/{image}", *words)
            return client.content() | {client.digest(f"{registry}/{image}")}

        return Way(pull, _this_platform, client.wipe)

    return make


def _cri(fixture: str, file: str, directory: str = "_default") -> _Make:
    """The kubelet's pull with one hosts.toml; by name if its directory is the address of the front, `""`."""

    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        client: Cri = request.getfixturevalue(fixture)
        client.use_hosts(front.render(file), directory or front.host)
        registry = "docker.io" if directory else f"{front.host}/docker.io"

        def pull(image: str, slot: int) -> Digests:
            client.pull(f"{registry}/{image}")
            return frozenset({client.digest(f"{registry}/{image}")})

        return Way(pull, lambda image: frozenset({image.digest}), client.wipe)

    return make


# Docker


def _docker_classic(*, by_name: bool) -> _Make:
    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        client: DockerDaemon = request.getfixturevalue("docker")
        client.use_config('{"registry-mirrors": []}' if by_name else front.render(CLASSIC))
        registry = f"{front.host}/docker.io/" if by_name else ""

        def pull(image: str, slot: int) -> Digests:
            reference = f"{registry}{image}" if by_name else image.removeprefix("library/")
            client.pull(reference)
            return frozenset({client.digest(reference), client.identifier(reference)})

        return Way(pull, lambda image: frozenset({image.digest, image.this_platform.config.digest}), client.wipe)

    return make


def _docker_29(file: str, *, by_name: bool = False) -> _Make:
    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        client: DockerEngine = request.getfixturevalue("docker_29")
        if file == CLASSIC:
            client.use_config(front.render(file))
        else:
            client.use_hosts(front.render(file), front.host if by_name else "_default")
        registry = f"{front.host}/docker.io" if by_name else "docker.io"

        def pull(image: str, slot: int) -> Digests:
            client.pull(f"{registry}/{image}")
            return frozenset({client.digest(f"{registry}/{image}")})

        return Way(pull, lambda image: frozenset({image.digest}), client.wipe)

    return make


def _buildkit(file: str, *, by_name: bool = False) -> _Make:
    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        client: BuildKit = request.getfixturevalue("buildkit")
        text = front.render(file)
        client.use_config(text.replace("http = true", "http = false") if front.has_tls else text)
        registry = f"{front.host}/docker.io" if by_name else "docker.io"

        def pull(image: str, slot: int) -> Digests:
            return client.pull(f"{registry}/{image}")

        def expected(image: PushedImage) -> Digests:
            return frozenset(layer.digest for layer in image.this_platform.layers)

        return Way(pull, expected, client.wipe)

    return make


# The library of CRI-O, Podman and Skopeo


def _registries(front: Front, file: str) -> str:
    text = front.render(file) if file else ""
    if front.has_tls:
        return text.replace("insecure = true\n", "")
    if "insecure" not in text:
        text = re.sub(rf'(location = "{re.escape(front.host)}/.*")', r"\1\ninsecure = true", text)
    return text


def _skopeo(file: str = "", *options: str) -> _Make:
    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        return _copies(_slots(request, Skopeo, "skopeo"), front, file, options)

    return make


def _library(file: str = "", *options: str) -> _Make:
    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        return _copies(_slots(request, ImageLibrary, "image-library"), front, file, options)

    return make


def _copies(clients: "_Slots[Skopeo] | _Slots[ImageLibrary]", front: Front, file: str, options: tuple[str, ...]) -> Way:
    registry = "docker.io" if file else f"{front.host}/docker.io"
    is_plain_http = not (file or front.has_tls)
    registries = _registries(front, file)

    def pull(image: str, slot: int) -> Digests:
        pulled = clients[slot].pull(f"{registry}/{image}", *options, registries=registries, is_plain_http=is_plain_http)
        return pulled.digests | {pulled.top}

    def expected(image: PushedImage) -> Digests:
        return _everything(image) if options else image.this_platform.blobs | {image.this_platform.digest}

    return Way(pull, expected, clients.wipe)


def _podman(file: str = "") -> _Make:
    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        client: Podman = request.getfixturevalue("podman")
        registry = "docker.io" if file else f"{front.host}/docker.io"
        registries = _registries(front, file)

        def pull(image: str, slot: int) -> Digests:
            client.pull(f"{registry}/{image}", registries=registries, is_plain_http=not (file or front.has_tls))
            return client.digests(f"{registry}/{image}") | {client.identifier(f"{registry}/{image}")}

        def expected(image: PushedImage) -> Digests:
            single = image.this_platform
            return frozenset({image.digest, single.digest, single.config.digest})

        return Way(pull, expected, client.wipe)

    return make


# Clients that need no configuration, and regctl


def _regctl(file: str, *, by_name: bool = False) -> _Make:
    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        clients = _slots(request, Regctl, "regctl")
        text = front.render(file)
        if front.has_tls:
            text = text.replace('"tls": "disabled"', '"tls": "enabled"')
        elif '"tls"' not in text:
            text = text.replace('"pathPrefix"', '"tls": "disabled", "pathPrefix"')
        for client in clients:
            client.use_config(text)
        registry = f"{front.host}/docker.io" if by_name else "docker.io"

        def pull(image: str, slot: int) -> Digests:
            pulled = clients[slot].pull(f"{registry}/{image}")
            return pulled.digests | {pulled.top}

        return Way(pull, _everything, clients.wipe)

    return make


def _crane(request: pytest.FixtureRequest, front: Front) -> Way:
    clients = _slots(request, Crane, "crane")

    def pull(image: str, slot: int) -> Digests:
        pulled = clients[slot].pull(f"{front.host}/docker.io/{image}")
        return pulled.digests | {pulled.top}

    return Way(pull, _everything, clients.wipe)


def _oras(request: pytest.FixtureRequest, front: Front) -> Way:
    clients = _slots(request, Oras, "oras")

    def pull(image: str, slot: int) -> Digests:
        reference = f"{front.host}/docker.io/{image}"
        return frozenset({clients[slot].copy(reference, is_plain_http=not front.has_tls)})

    return Way(pull, lambda image: frozenset({image.digest}), clients.wipe)


def _helm(program: str) -> _Make:
    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        clients = _slots(request, Helm, program)

        def push(registry: DistributionRegistry, number: int, common: str) -> PushedImage:
            name = f"chart-{common}-{number}"
            packed = clients[0].push(f"{registry.host}/charts", name, "1.0.0")
            return PushedImage(f"charts/{name}", "1.0.0", digest_of(packed), HELM_CHART, {})

        def pull(image: str, slot: int) -> Digests:
            name, _, version = image.removeprefix("charts/").partition(":")
            charts = f"{front.host}/docker.io/charts"
            return frozenset({digest_of(clients[slot].pull(charts, name, version, is_plain_http=not front.has_tls))})

        return Way(pull, lambda image: frozenset({image.digest}), clients.wipe, push)

    return make


def _cosign(program: str) -> _Make:
    """The signature of the first image is a bundle, that of the next one has a tag, and so on."""

    def make(request: pytest.FixtureRequest, front: Front) -> Way:
        (client,) = _slots(request, Cosign, program, 1)

        def push(registry: DistributionRegistry, number: int, common: str) -> PushedImage:
            image = push_attested(registry, f"library/{common}-{number}", f"{common} {number}", common=common)
            client.sign(f"{registry.host}/{image.repository}@{image.digest}", is_bundle=number % 2 == 0)
            return image

        def pull(image: str, slot: int) -> Digests:
            claims = client.verify(f"{front.host}/docker.io/{image}")
            return frozenset(str(claim["critical"]["image"]["docker-manifest-digest"]) for claim in claims)

        return Way(pull, lambda image: frozenset({image.digest}), lambda: None, push)

    return make


_Client = TypeVar("_Client", Cosign, Crane, Helm, ImageLibrary, Oras, Regctl, Skopeo)


class _Slots(list[_Client]):
    """One client for each of several pulls at once."""

    def wipe(self) -> None:
        for client in self:
            client.wipe()


def _slots(
    request: pytest.FixtureRequest, kind: Callable[..., _Client], program: str, number: int = SLOTS
) -> "_Slots[_Client]":
    programs: Programs = request.getfixturevalue("programs")
    direct: DirectRegistry = request.getfixturevalue("direct")
    factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    return _Slots(kind(programs.need(program), factory.mktemp(program), **direct.environ) for _ in range(number))


OPEN_1, OPEN_2 = (f"containerd-{version}/certs.d/_default/hosts.toml" for version in ("1.6", "2.2"))
ONE_1, ONE_2 = (f"containerd-{version}/certs.d/docker.io/hosts.toml" for version in ("1.6", "2.2"))
CLOSED = "closed/containerd/certs.d/_default/hosts.toml"
BY_NAME = "by-name/hosts.toml"
OPEN_29, CLOSED_29 = (f"{parent}docker-29/certs.d/_default/hosts.toml" for parent in ("", "closed/"))
IMAGES, CLOSED_IMAGES = (f"{parent}crio/registries.conf.d/dockyard.conf" for parent in ("", "closed/"))
REGCTL, CLOSED_REGCTL = (f"{parent}regctl/config.json" for parent in ("", "closed/"))
CLASSIC, BUILDKIT = "docker-classic/daemon.json", "buildkit/buildkitd.toml"

ROWS = (
    Row("containerd 1, ctr", ("containerd",), "by name", "by name", _ctr("containerd")),
    Row(
        "containerd 1, ctr",
        ("containerd",),
        "one registry",
        "open",
        _ctr("containerd", name="docker.io", file=ONE_1, directory="docker.io"),
        (ONE_1,),
    ),
    Row(
        "containerd 1, ctr",
        ("containerd",),
        "all registries",
        "open",
        _ctr("containerd", name="docker.io", file=OPEN_1),
        (OPEN_1,),
    ),
    Row(
        "containerd 1, ctr",
        ("containerd",),
        "closed",
        "closed",
        _ctr("containerd", name="docker.io", file=CLOSED),
        (CLOSED,),
    ),
    Row("containerd 1, CRI", ("containerd",), "by name", "by name", _cri("cri", BY_NAME, ""), (BY_NAME,)),
    Row("containerd 1, CRI", ("containerd",), "all registries", "open", _cri("cri", OPEN_1), (OPEN_1,)),
    Row("containerd 1, CRI", ("containerd",), "closed", "closed", _cri("cri", CLOSED), (CLOSED,)),
    Row("containerd 2, ctr", ("containerd-2",), "by name", "by name", _ctr("containerd_2")),
    Row(
        "containerd 2, ctr",
        ("containerd-2",),
        "all registries",
        "open",
        _ctr("containerd_2", name="docker.io", file=OPEN_2),
        (OPEN_2,),
    ),
    Row(
        "containerd 2, ctr",
        ("containerd-2",),
        "closed",
        "closed",
        _ctr("containerd_2", name="docker.io", file=CLOSED),
        (CLOSED,),
    ),
    Row(
        "containerd 2, ctr --local",
        ("containerd-2",),
        "all registries",
        "open",
        _ctr("containerd_2", "--local", name="docker.io", file=OPEN_2),
        (OPEN_2,),
    ),
    Row(
        "containerd 2, ctr --local",
        ("containerd-2",),
        "closed",
        "closed",
        _ctr("containerd_2", "--local", name="docker.io", file=CLOSED),
        (CLOSED,),
    ),
    Row("containerd 2, CRI", ("containerd-2",), "by name", "by name", _cri("cri_2", BY_NAME, ""), (BY_NAME,)),
    Row("containerd 2, CRI", ("containerd-2",), "one registry", "open", _cri("cri_2", ONE_2, "docker.io"), (ONE_2,)),
    Row("containerd 2, CRI", ("containerd-2",), "all registries", "open", _cri("cri_2", OPEN_2), (OPEN_2,)),
    Row("containerd 2, CRI", ("containerd-2",), "closed", "closed", _cri("cri_2", CLOSED), (CLOSED,)),
    Row("Docker, classic image store", ("dockerd",), "by name", "by name", _docker_classic(by_name=True)),
    Row(
        "Docker, classic image store",
        ("dockerd",),
        "`registry-mirrors`",
        "open",
        _docker_classic(by_name=False),
        (CLASSIC,),
    ),
    Row("Docker 29", ("dockerd-29",), "by name", "by name", _docker_29(BY_NAME, by_name=True), (BY_NAME,)),
    Row("Docker 29", ("dockerd-29",), "all registries", "open", _docker_29(OPEN_29), (OPEN_29,)),
    Row("Docker 29", ("dockerd-29",), "`registry-mirrors`", "open", _docker_29(CLASSIC), (CLASSIC,)),
    Row("Docker 29", ("dockerd-29",), "closed", "closed", _docker_29(CLOSED_29), (CLOSED_29,)),
    Row("BuildKit", ("buildkitd",), "by name", "by name", _buildkit(BUILDKIT, by_name=True), (BUILDKIT,)),
    Row("BuildKit", ("buildkitd",), "mirrors", "open", _buildkit(BUILDKIT), (BUILDKIT,)),
    Row("Podman", ("podman",), "by name", "by name", _podman()),
    Row("Podman", ("podman",), "mirrors", "open", _podman(IMAGES), (IMAGES,)),
    Row("Podman", ("podman",), "closed", "closed", _podman(CLOSED_IMAGES), (CLOSED_IMAGES,)),
    Row("Skopeo", ("skopeo",), "by name", "by name", _skopeo("", "--all")),
    Row("Skopeo", ("skopeo",), "mirrors", "open", _skopeo(IMAGES), (IMAGES,)),
    Row("Skopeo", ("skopeo",), "closed", "closed", _skopeo(CLOSED_IMAGES), (CLOSED_IMAGES,)),
    Row("containers/image", ("image-library",), "by name", "by name", _library("", "--all")),
    Row("containers/image", ("image-library",), "mirrors", "open", _library(IMAGES), (IMAGES,)),
    Row("containers/image", ("image-library",), "closed", "closed", _library(CLOSED_IMAGES), (CLOSED_IMAGES,)),
    Row("regctl", ("regctl",), "by name", "by name", _regctl(REGCTL, by_name=True), (REGCTL,)),
    Row("regctl", ("regctl",), "mirrors", "open", _regctl(REGCTL), (REGCTL,)),
    Row("regctl", ("regctl",), "closed", "closed", _regctl(CLOSED_REGCTL), (CLOSED_REGCTL,)),
    Row("crane", ("crane",), "by name", "by name", _crane),
    Row("oras", ("oras",), "by name", "by name", _oras),
    Row("Helm 4", ("helm",), "by name", "by name", _helm("helm")),
    Row("Helm 3", ("helm-3",), "by name", "by name", _helm("helm-3")),
    Row("cosign 3", ("cosign",), "by name", "by name", _cosign("cosign")),
    Row("cosign 2", ("cosign-2",), "by name", "by name", _cosign("cosign-2")),
)

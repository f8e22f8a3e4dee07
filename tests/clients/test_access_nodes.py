"""Container runtimes of nodes with a login in their files, and `dockyard pull`: right, wrong and missing, over HTTPS.

The files are those of `ops/nodes/closed`, with the address of the server of the test, and its authority. One server
knows all kinds of logins: a user, tokens, and those of a registry that decides itself.
"""

import base64
import contextlib
import json
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trustme

from dockyard.access.passwords import hash_password
from tests.clients.access_sources import REFUSED, content, fetched, push
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.cri import Cri
from tests.support.distribution import DistributionRegistry
from tests.support.docker_engine import DockerEngine
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import DEAD_PROXY, ClientError, Containerd, Podman, Skopeo
from tests.support.paths import ROOT
from tests.support.programs import Programs
from tests.support.token_issuer import TokenIssuer, key_set

pytestmark = pytest.mark.clients

CLOSED = ROOT / "ops" / "nodes" / "closed"
EXAMPLE = "dockyard.example:5000"
NODE = "node:PASSWORD"  # the login in the files
WRONG = "node:another"
POD = "pod:its-password"
DECIDES = "decides.test"


def is_repetition(test: str, params: Mapping[str, Any]) -> bool:
    """The newest containerd with everything, older ones with one challenge and one kind of login."""
    runtime, challenge, client = params.get("runtime"), params.get("challenge"), params.get("pull_by_location")
    if runtime in {"ctr", "cri"}:
        return challenge != {"ctr": "basic", "cri": "bearer"}[runtime] or params.get("kind") in {"token", "upstream"}
    return client is not None and challenge != {"skopeo": "basic", "podman": "bearer"}[client]


def split(login: str) -> list[str]:
    """User and password."""
    return login.split(":", 1)


def basic(login: str) -> str:
    """The text after `Basic`."""
    return base64.b64encode(login.encode()).decode()


@attrs.frozen
class Site:
    """A Dockyard that gives nothing to clients without a login, with HTTPS, and its upstreams."""

    dockyard: Dockyard
    registry: DistributionRegistry  # docker.io: for the user and the token
    private: DistributionRegistry  # decides.test: for its own user
    directory: Path
    token: str
    forged_token: str
    upstream_login: str

    @property
    def authority(self) -> Path:
        """The file of the authority that clients must trust."""
        return self.directory / "ca.pem"

    def render(self, file: Path) -> str:
        """A file of `ops/nodes/closed`, for this server and its authority."""
        text = file.read_text()
        assert EXAMPLE in text
        text = text.replace(EXAMPLE, self.dockyard.host)
        server = f'server = "{self.dockyard.url}"\n'
        return text.replace(server, f'{server}ca = "{self.authority}"\n')

    def mirror(self, authorization: str) -> str:
        """The hosts.toml of the page with this server as a mirror and another login; behind it is a closed port."""
        page = (ROOT / "ops" / "CLIENTS.md").read_text()
        (text,) = (block for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL) if ".header]" in block)
        text = text.replace("https://dockyard:5000", self.dockyard.url)
        text = text.replace(f"Basic {basic(NODE)}", authorization)
        assert authorization in text
        return f'server = "{DEAD_PROXY}"\n' + text.replace("  [host", f'  ca = "{self.authority}"\n  [host')


@pytest.fixture(scope="module")
def site(
    programs: Programs, registry: DistributionRegistry, challenge: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The server, and two registries behind it."""
    directory = tmp_path_factory.mktemp("site")
    authority, issuer = trustme.CA(), TokenIssuer()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    (directory / "trusted").mkdir()
    authority.cert_pem.write_to_path(str(directory / "trusted" / "ca.crt"))
    issued.private_key_pem.write_to_path(str(directory / "tls.key"))
    issued.cert_chain_pems[0].write_to_path(str(directory / "tls.crt"))
    (directory / "htpasswd").write_text(
        "".join(f"{user}:{hash_password(password, 4)}\n" for user, password in map(split, (NODE, POD)))
    )
    (directory / "jwks.json").write_text(key_set(issuer.jwk()).decode())
    password = secrets.token_hex(8)
    accounts = {"tests": secrets.token_hex(8), "team": password}
    private = DistributionRegistry(programs.need("registry"), tmp_path_factory.mktemp("private"), users=accounts)
    settings = {
        "server": {"tls": True, "certfile": str(directory / "tls.crt"), "keyfile": str(directory / "tls.key")},
        "access": {
            "challenge": challenge,
            "htpasswd": str(directory / "htpasswd"),
            "jwt": [
                {
                    "name": "k8s",
                    "issuer": issuer.url,
                    "audience": issuer.audience,
                    "jwks": str(directory / "jwks.json"),
                }
            ],
            "rules": [
                {"allow": True, "repositories": ["docker.io/apart/*"], "who": ["pod"]},
                {"allow": True, "repositories": ["docker.io/team/*"], "who": ["node", "k8s:*"]},
                {"allow": True, "repositories": [f"{DECIDES}/**"]},
            ],
        },
    }
    decides = {**docker_hub(private), "prefix": DECIDES, "access": "upstream"}
    with contextlib.closing(private):
        private.start()
        with running(Dockyard(directory / "dockyard", [docker_hub(registry), decides], settings=settings)) as dockyard:
            forged = attrs.evolve(issuer, number=1)
            yield Site(dockyard, registry, private, directory, issuer.sign(), forged.sign(), f"team:{password}")


@attrs.frozen
class Runtime:
    """A container runtime with one hosts.toml, for all registries. `pull` returns the digest of the image."""

    use: Callable[[str], None]
    pull: Callable[..., str]


def ctr(request: pytest.FixtureRequest) -> Runtime:
    """`ctr images pull` of the system's containerd."""
    client: Containerd = request.getfixturevalue("containerd")
    certs: Path = request.getfixturevalue("tmp_path") / "certs.d"

    def use(text: str) -> None:
        (certs / "_default").mkdir(parents=True, exist_ok=True)
        (certs / "_default" / "hosts.toml").write_text(text)

    def pull(reference: str, login: str = "") -> str:
        client.wipe()
        client.pull(reference, "--hosts-dir", certs, *(["--user", login] if login else []))
        return client.digest(reference)

    return Runtime(use, pull)


def cri(request: pytest.FixtureRequest) -> Runtime:
    """The system's containerd for the kubelet."""
    return _cri(request.getfixturevalue("cri"))


def cri_2(request: pytest.FixtureRequest) -> Runtime:
    """The newest containerd for the kubelet."""
    return _cri(request.getfixturevalue("cri_2"))


def _cri(client: Cri) -> Runtime:
    def pull(reference: str, login: str = "") -> str:
        client.wipe()
        client.pull(reference, login)
        return client.digest(reference)

    return Runtime(client.use_hosts, pull)


RUNTIMES: dict[str, Callable[[pytest.FixtureRequest], Runtime]] = {"ctr": ctr, "cri": cri, "cri-2": cri_2}


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    """Each container runtime."""
    return (RUNTIMES | {"docker-29": docker_29})[request.param](request)


def refuses(runtime: Runtime, reference: str, login: str = "") -> None:
    """The runtime must be denied the image."""
    with pytest.raises(ClientError, match=REFUSED):
        runtime.pull(reference, login)


def docker_29(request: pytest.FixtureRequest) -> Runtime:
    """Docker 29 with the containerd image store."""
    client: DockerEngine = request.getfixturevalue("docker_29")

    def pull(reference: str, login: str = "") -> str:
        assert not login, "the logins of docker login are for images with Dockyard's address only"
        client.wipe()
        client.pull(reference)
        return client.digest(reference)

    return Runtime(client.use_hosts, pull)


@pytest.mark.parametrize("runtime", [*RUNTIMES, "docker-29"], indirect=True)
def test_a_closed_node_has_the_login_of_its_file(runtime: Runtime, site: Site, request: pytest.FixtureRequest) -> None:
    """With it the image is pulled; with another one, and with the file without a login, nothing is."""
    file = "docker-29-login" if request.node.callspec.params["runtime"] == "docker-29" else "containerd-login"
    image = push(site.registry, "team")
    reference = f"docker.io/{image.repository}:latest"
    text = site.render(CLOSED / file / "certs.d" / "_default" / "hosts.toml")
    assert text.count(basic(NODE)) == 1
    without = site.render(CLOSED / file.removesuffix("-login") / "certs.d" / "_default" / "hosts.toml")
    for denied in (without, text.replace(basic(NODE), basic(WRONG))):
        runtime.use(denied)
        refuses(runtime, reference)
    assert site.registry.requests() == []
    runtime.use(text)
    assert runtime.pull(reference) == image.digest
    assert fetched(site.registry, image) == sorted(image.blobs)


def test_a_mirror_gets_the_login_in_its_header(runtime: Runtime, site: Site) -> None:
    """The table of one host has it; the pull is denied with another one, and without one."""
    image = push(site.registry, "team")
    reference = f"docker.io/{image.repository}:latest"
    right = site.mirror(f"Basic {basic(NODE)}")
    without = right[: right.rindex("  [host")]
    for denied in (without, site.mirror(f"Basic {basic(WRONG)}")):
        runtime.use(denied)
        with pytest.raises(ClientError):
            runtime.pull(reference)
    assert site.registry.requests() == []
    runtime.use(right)
    assert runtime.pull(reference) == image.digest
    assert fetched(site.registry, image) == sorted(image.blobs)


@pytest.mark.parametrize("kind", ["token", "token as password", "upstream"])
def test_a_node_can_have_every_kind_of_login(runtime: Runtime, site: Site, kind: str) -> None:
    """A token as Bearer, a token as a password, and a login of a registry that decides itself."""
    right, wrong = {
        "token": (f"Bearer {site.token}", f"Bearer {site.forged_token}"),
        "token as password": (f"Basic {basic(f'any:{site.token}')}", f"Basic {basic(f'any:{site.forged_token}')}"),
        "upstream": (f"Basic {basic(site.upstream_login)}", f"Basic {basic('team:another')}"),
    }[kind]
    registry, prefix = (site.private, DECIDES) if kind == "upstream" else (site.registry, "docker.io")
    image = push(registry, "team")
    text = site.render(CLOSED / "containerd-login" / "certs.d" / "_default" / "hosts.toml")
    runtime.use(text.replace(f"Basic {basic(NODE)}", wrong))
    refuses(runtime, f"{prefix}/{image.repository}:latest")
    runtime.use(text.replace(f"Basic {basic(NODE)}", right))
    assert runtime.pull(f"{prefix}/{image.repository}:latest") == image.digest
    assert fetched(registry, image) == sorted(image.blobs)


def test_the_login_of_a_pod_is_used_if_that_of_the_node_is_wrong(runtime: Runtime, site: Site) -> None:
    """A runtime sends it only after 401: not while the login of the node is right, also where that one is denied."""
    text = site.render(CLOSED / "containerd-login" / "certs.d" / "_default" / "hosts.toml")
    image, apart = push(site.registry, "team"), push(site.registry, "apart")
    for node, pod in ((NODE, WRONG), (WRONG, NODE)):
        runtime.use(text.replace(basic(NODE), basic(node)))
        assert runtime.pull(f"docker.io/{image.repository}:latest", pod) == image.digest
    runtime.use(text)
    refuses(runtime, f"docker.io/{apart.repository}:latest", POD)
    runtime.use(site.render(CLOSED / "containerd" / "certs.d" / "_default" / "hosts.toml"))
    assert runtime.pull(f"docker.io/{apart.repository}:latest", POD) == apart.digest


@pytest.fixture(params=["skopeo", "podman"])
def pull_by_location(request: pytest.FixtureRequest, site: Site) -> Iterator[Callable[[str, str], str]]:
    """A function that pulls an image with a registries.conf and an auth.json, which are given as texts."""
    client: Skopeo | Podman = request.getfixturevalue(request.param)

    def pull(repository: str, auth: str) -> str:
        client.wipe()
        (client.directory / "auth.json").write_text(auth)
        registries = site.render(CLOSED / "crio" / "registries.conf.d" / "dockyard.conf")
        reference = f"docker.io/{repository}:latest"
        if isinstance(client, Skopeo):
            return client.pull(reference, f"--src-cert-dir={site.directory / 'trusted'}", registries=registries).top
        client.pull(reference, f"--cert-dir={site.directory / 'trusted'}", registries=registries)
        (digest,) = client.digests(reference)
        return digest

    yield pull
    client.forget_logins()
    client.wipe()


def test_the_login_of_auth_json_is_for_the_location(pull_by_location: Callable[[str, str], str], site: Site) -> None:
    """The files for CRI-O, in the library that it reads them with: right, wrong, and without a login."""
    image = push(site.registry, "team")
    text = site.render(CLOSED / "crio" / "auth.json")
    for denied in ("{}", text.replace(basic(NODE), basic(WRONG))):
        with pytest.raises(ClientError, match=REFUSED):
            pull_by_location(image.repository, denied)
    assert site.registry.requests() == []
    assert pull_by_location(image.repository, text) == image.digest
    assert fetched(site.registry, image) == sorted(image.blobs)


@pytest.fixture(params=["user", "token", "upstream"])
def logins(request: pytest.FixtureRequest, site: Site) -> tuple[str, str]:
    """A right and a wrong login of each kind, as `user:password`."""
    return {
        "user": (NODE, WRONG),
        "token": (f"any:{site.token}", f"any:{site.forged_token}"),
        "upstream": (site.upstream_login, "team:another"),
    }[request.param]


@pytest.fixture
def dockyard_pull(site: Site, tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """A function that runs `dockyard pull` with a config.json of Docker, and with a login as options, if any."""

    def pull(image: str, login: str = "", keychain: object = None) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "config.json").write_text(json.dumps(keychain or {}))
        user, _, password = login.partition(":")
        options = ["--username", user, "--password-stdin"] if login else []
        return subprocess.run(
            [sys.executable, "-m", "dockyard", "pull", "--server", site.dockyard.url, *options, image],
            env={
                "DOCKYARD_CA_FILE": str(site.authority),
                "DOCKER_CONFIG": str(tmp_path),
                "PATH": f"{tmp_path}:/usr/bin:/bin",
            },
            cwd=ROOT,
            input=password,
            capture_output=True,
            text=True,
            timeout=EVENT_TIMEOUT_S,
            check=False,
        )

    return pull


def test_dockyard_pull_with_a_login(
    dockyard_pull: Callable[..., "subprocess.CompletedProcess[str]"],
    site: Site,
    challenge: str,
    logins: tuple[str, str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """As options, in config.json, and in a credential helper. What fails says which login was wrong, but not the login.

    Without a login, and with a wrong one, no content is read from the registry. With access tokens the server does not
    refuse a client without a login at once: what the registry that decides gives to everybody is for it.
    """
    right, wrong = logins
    is_upstream = request.node.callspec.params["logins"] == "upstream"
    registry, prefix = (site.private, DECIDES) if is_upstream else (site.registry, "docker.io")
    images = [push(registry, "team") for _ in range(3)]
    names = [f"{prefix}/{image.repository}" for image in images]
    host = site.dockyard.host

    missing = dockyard_pull(names[0])
    given = dockyard_pull(names[0], wrong)
    stored = dockyard_pull(names[0], keychain={"auths": {host: {"auth": basic(wrong)}}})
    needs_login = "requires a login" if challenge == "basic" else "401 UNAUTHORIZED: .*"
    assert re.search(rf"{needs_login} \(run `docker login {re.escape(host)}`", missing.stderr)
    assert "the login is wrong: correct --username and the password on standard input" in given.stderr
    assert f"the login in {tmp_path / 'config.json'} is wrong" in stored.stderr
    for done in (missing, given, stored):
        assert done.returncode == 1
        assert done.stdout == "" or (challenge, done) == ("bearer", missing)
        assert split(wrong)[1] not in done.stderr
    assert content(registry) == []

    helper = tmp_path / "docker-credential-store"
    secret = json.dumps(dict(zip(("Username", "Secret"), split(right), strict=True)))
    helper.write_text(f"#!/bin/sh\n[ $(cat) = {host} ] && echo '{secret}'\n")
    helper.chmod(0o755)
    for name, image, how in (
        (names[0], images[0], {"login": right}),
        (names[1], images[1], {"keychain": {"auths": {host: {"auth": basic(right)}}}}),
        (names[2], images[2], {"keychain": {"credHelpers": {host: "store"}}}),
    ):
        done = dockyard_pull(name, **how)
        assert (done.returncode, done.stderr) == (0, "")
        assert fetched(registry, image) == sorted(image.blobs)
        assert split(right)[1] not in done.stdout

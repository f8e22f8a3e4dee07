"""Logins of pods: the code of the kubelet finds them in the files of `ops/kubernetes`; containerd pulls with them."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import yaml

from dockyard.access.passwords import hash_password
from tests.clients.access_sources import REFUSED
from tests.support.cri import Cri
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import ClientError
from tests.support.images import PushedImage, push_docker
from tests.support.kubelet import KubeletKeyring, Login
from tests.support.paths import ROOT
from tests.support.programs import Programs
from tests.support.token_issuer import TokenIssuer, key_set

# The code of the kubelet is built for many minutes.
pytestmark = [pytest.mark.clients, pytest.mark.long]

FILES = ROOT / "ops" / "kubernetes" / "credential-provider"
EXAMPLE = "dockyard.example:5000"
PREFIXES = ("docker.io", "ghcr.io")


@attrs.frozen
class Site:
    """A Dockyard with the users of the pull secrets, and the rules of the page for tokens of service accounts."""

    dockyard: Dockyard
    registry: DistributionRegistry
    issuer: TokenIssuer

    def render(self, name: str) -> str:
        """A file of `ops/kubernetes/credential-provider`, for this server."""
        text = (FILES / name).read_text()
        assert EXAMPLE in text
        return text.replace(EXAMPLE, self.dockyard.host)

    def push(self, reference: str) -> PushedImage:
        """Push the image that a pod names."""
        repository, _, tag = reference.rpartition(":")
        _, _, path = repository.removeprefix(f"{self.dockyard.host}/").partition("/")
        return push_docker(self.registry, path, reference, tag=tag)

    def token(self, namespace: str) -> str:
        """The token of the service account `default` of a namespace."""
        return self.issuer.sign(self.issuer.claims(sub=f"system:serviceaccount:{namespace}:default"))


@pytest.fixture(scope="module")
def site(registry: DistributionRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The server."""
    directory = tmp_path_factory.mktemp("kubelet")
    page = (ROOT / "ops" / "KUBERNETES.md").read_text()
    (example,) = (
        text for text in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "system:serviceaccount:" in text
    )
    access = yaml.safe_load(example)["access"]
    (jwt,) = access["jwt"]
    issuer = TokenIssuer(url=jwt["issuer"], audience=jwt["audience"])
    (directory / "jwks.json").write_bytes(key_set(issuer.jwk()))
    for key in ("ca_file", "token_file"):
        del jwt[key]
    jwt["jwks"] = str(directory / "jwks.json")
    lines = (f"{user}:{hash_password('PASSWORD', 4)}\n" for user in ("team-a", "reader"))
    (directory / "htpasswd").write_text("".join(lines))
    rules = [
        *(rule for rule in access["rules"] if "who" in rule),
        {"allow": True, "repositories": ["ghcr.io/my-org/*"], "who": ["team-a"]},
        {"allow": True, "repositories": ["docker.io/**"], "who": ["reader"]},
    ]
    settings = {"access": {"htpasswd": str(directory / "htpasswd"), "jwt": [jwt], "rules": rules}}
    upstreams = [{**docker_hub(registry), "prefix": prefix} for prefix in PREFIXES]
    with running(Dockyard(directory / "dockyard", upstreams, settings=settings)) as dockyard:
        yield Site(dockyard, registry, issuer)


@pytest.fixture(scope="module")
def keyring(programs: Programs) -> KubeletKeyring:
    """The logins that the kubelet would try."""
    return KubeletKeyring(programs.need("kubelet-keyring"))


@pytest.fixture(params=["cri", "cri_2"])
def pull(request: pytest.FixtureRequest, site: Site) -> Callable[[str, Login | None], str]:
    """A function that pulls an image with a login, in containerd as the kubelet does; it returns the digest."""
    client: Cri = request.getfixturevalue(request.param)

    def pull(image: str, login: Login | None) -> str:
        client.use_hosts(f'server = "{site.dockyard.url}"\n\n[host]\n')
        client.wipe()
        client.pull(image, ":".join(login or ()))
        return client.digest(image)

    return pull


def test_pull_secrets_have_logins_by_path(
    keyring: KubeletKeyring, site: Site, pull: Callable[[str, Login | None], str]
) -> None:
    """The longest path that begins the image comes first; with it the containers of the example are pulled."""
    secret, pod = yaml.safe_load_all(site.render("pull-secrets.yaml"))
    secrets = [secret["stringData"][".dockerconfigjson"]]
    app, proxy = (container["image"] for container in pod["spec"]["containers"])
    team, reader = ("team-a", "PASSWORD"), ("reader", "PASSWORD")
    assert keyring.find(app, secrets=secrets) == [team, reader]
    assert keyring.find(proxy, secrets=secrets) == [reader]
    assert keyring.find("ghcr.io/my-org/app:v1", secrets=secrets) == []
    for image, right, wrong in ((app, team, reader), (proxy, reader, team)):
        pushed = site.push(image)
        for login in (None, wrong, (right[0], "another")):
            with pytest.raises(ClientError, match=REFUSED):
                pull(image, login)
        assert pull(image, right) == pushed.digest


def test_a_pod_has_the_token_of_its_service_account(
    keyring: KubeletKeyring, site: Site, pull: Callable[[str, Login | None], str], tmp_path: Path
) -> None:
    """The kubelet accepts the configuration, requests a token for the audience, runs the script, and gets the login.

    The token admits to the repositories of its namespace; those of another one, and a forged one, to nothing of them.
    """
    config, requests = tmp_path / "config.yaml", tmp_path / "requests"
    config.write_text(site.render("config.yaml"))
    image = f"{site.dockyard.host}/ghcr.io/my-org/team-a/app:v1"
    pushed = site.push(image)

    def find(image: str, namespace: str, token: str) -> list[Login]:
        account = (namespace, "default")
        return keyring.find(image, config=config, programs=FILES, account=account, token=token, requests=requests)

    token = site.token("team-a")
    (login,) = find(image, "team-a", token)
    assert login == ("serviceaccount", token)
    assert requests.read_text() == "team-a default [dockyard]\n"
    forged = attrs.evolve(site.issuer, number=1).sign(site.issuer.claims(sub="system:serviceaccount:team-a:default"))
    for wrong in (None, *find(image, "team-b", site.token("team-b")), *find(image, "team-a", forged)):
        with pytest.raises(ClientError, match=REFUSED):
            pull(image, wrong)
    assert pull(image, login) == pushed.digest


def test_the_token_is_for_dockyard_only(keyring: KubeletKeyring, site: Site, tmp_path: Path) -> None:
    """For images of other registries the script is not run, and no token is requested."""
    config, requests = tmp_path / "config.yaml", tmp_path / "requests"
    config.write_text(site.render("config.yaml"))
    for image in ("docker.io/library/nginx:1", "ghcr.io/my-org/app:v1", f"registry.example/{site.dockyard.host}/app"):
        assert keyring.find(image, config=config, programs=FILES, token=site.token("a"), requests=requests) == []
    assert not requests.exists()

"""Real clients while a registry that decides about access is down: it is a real registry, which is killed."""

import base64
import contextlib
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial

import attrs
import pytest

from tests.clients.access_sources import REFUSED, fetched, push
from tests.support.cri import Cri
from tests.support.distribution import DistributionRegistry
from tests.support.dockyard import Dockyard, docker_hub, running
from tests.support.image_clients import ClientError, Skopeo
from tests.support.processes import wait_until
from tests.support.programs import Programs

pytestmark = pytest.mark.clients

TTL_S = 1
GRACE, BRIEF = "grace.test", "brief.test"  # the same registry: with a long and with a short `access_grace`
BRIEF_S = 3
TEAM, OTHER = "team:password-of-the-team", "other:password-of-another"
UNAVAILABLE = r"503|(?i:service unavailable)"

Pull = Callable[[str, str], str]


@attrs.frozen
class Site:
    """The registry, and a Dockyard in front of it."""

    registry: DistributionRegistry
    dockyard: Dockyard


@pytest.fixture(scope="module")
def site(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The registry admits two users."""
    users = {"tests": secrets.token_hex(8)} | dict(login.split(":") for login in (TEAM, OTHER))
    registry = DistributionRegistry(programs.need("registry"), tmp_path_factory.mktemp("registry"), users=users)
    decides = {**docker_hub(registry), "access": "upstream", "access_ttl": f"{TTL_S}s"}
    upstreams = [
        {**decides, "prefix": GRACE, "access_grace": "1h"},
        {**decides, "prefix": BRIEF, "access_grace": f"{BRIEF_S}s"},
    ]
    with contextlib.closing(registry):
        registry.start()
        with running(Dockyard(tmp_path_factory.mktemp("outage"), upstreams)) as dockyard:
            yield Site(registry, dockyard)


@pytest.fixture(params=["skopeo", pytest.param("cri", marks=pytest.mark.long), "cri-2"])
def pull(request: pytest.FixtureRequest, site: Site) -> Pull:
    """A function that pulls an image with a login, or without one if it is empty; it returns the digest."""
    client: Skopeo | Cri = request.getfixturevalue(request.param.replace("-", "_"))

    def pull(name: str, login: str = "") -> str:
        reference = f"{site.dockyard.host}/{name}:latest"
        client.wipe()
        if isinstance(client, Cri):
            client.use_hosts(f'server = "{site.dockyard.url}"\n\n[host]\n')
            client.pull(reference, login)
            return client.digest(reference)
        auths = {site.dockyard.host: {"auth": base64.b64encode(login.encode()).decode()}} if login else {}
        (client.directory / "auth.json").write_text(json.dumps({"auths": auths}))
        try:
            return client.pull(reference).top
        finally:
            client.forget_logins()

    return pull


def test_who_was_admitted_goes_on_while_the_registry_is_down(pull: Pull, site: Site) -> None:
    """For `access_grace`, in the repository that it was admitted to; everybody else gets nothing, cached or not."""
    registry = site.registry
    wrong = f"team:{secrets.token_hex(4)}"  # one that has not been refused yet
    image, another = push(registry, "team"), push(registry, "team")
    for prefix in (GRACE, BRIEF):
        assert pull(f"{prefix}/{image.repository}", TEAM) == image.digest
    assert pull(f"{GRACE}/{another.repository}", OTHER) == another.digest
    assert fetched(registry, image) == sorted(image.blobs)
    pulled_at = time.monotonic()
    with registry.stopped():
        wait_until(lambda: time.monotonic() > pulled_at + TTL_S, "the admissions must be renewed")
        assert pull(f"{GRACE}/{image.repository}", TEAM) == image.digest
        for name, login, error in (
            (image.repository, "", REFUSED),
            (image.repository, OTHER, UNAVAILABLE),
            (image.repository, wrong, UNAVAILABLE),
            (another.repository, TEAM, UNAVAILABLE),
            (f"{image.repository}-unknown", TEAM, UNAVAILABLE),
        ):
            with pytest.raises(ClientError, match=error):
                pull(f"{GRACE}/{name}", login)

        brief = f"{BRIEF}/{image.repository}"
        wait_until(lambda: not _is_pulled(pull, brief, TEAM), "the short grace is over")
        assert pull(f"{GRACE}/{image.repository}", TEAM) == image.digest
    for name, login in ((brief, TEAM), (f"{GRACE}/{image.repository}", OTHER)):
        wait_until(partial(_is_pulled, pull, name, login), "the registry decides again")
    with pytest.raises(ClientError, match=REFUSED):
        pull(f"{GRACE}/{image.repository}", wrong)


def _is_pulled(pull: Pull, name: str, login: str) -> bool:
    """Whether an image is pulled; False if it is unavailable."""
    try:
        pull(name, login)
    except ClientError as exc:
        if re.search(UNAVAILABLE, str(exc)):
            return False
        raise
    return True

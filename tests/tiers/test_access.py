"""Who may pull what through two tiers: logins for the outer one, and those that clients send through both."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.support.bodies import digest_of
from tests.support.deployment import eventually
from tests.support.distribution import DistributionRegistry
from tests.support.htpasswd import write_htpasswd
from tests.support.http_client import Response
from tests.support.images import PushedImage, push_docker
from tests.support.programs import Programs
from tests.tiers.tier import HUB, Tier, at, behind, message_of, serving

TEAM, OTHER = "team/app", "other/app"
RACK, ANN, BOB = ("rack", "canary-rack"), ("ann", "canary-ann"), ("bob", "canary-bob")
CAT, DAN = ("cat", "canary-cat"), ("dan", "canary-dan")  # at the registry of chain.example
OPEN, OWN, WRONG, ANONYMOUS = "open.example", "own.example", "wrong.example", "anonymous.example"
CHAIN = "chain.example"


def header(user: tuple[str, str]) -> str:
    """The Authorization header of a user."""
    return f"Basic {base64.b64encode(':'.join(user).encode()).decode()}"


@attrs.frozen
class Site:
    """An outer server that gives rack everything and ann the images of the team, and an inner one before it.

    The inner one has an upstream for each way to log in at the outer one. Both lead chain.example to a registry with
    users of its own, with `access: upstream`.
    """

    outer: Tier
    inner: Tier
    image: PushedImage
    private: PushedImage

    def pull(self, prefix: str, name: str = TEAM, user: tuple[str, str] | None = None, what: str = "") -> Response:
        """Pull a manifest, or `what`, through the inner one."""
        login = {"Authorization": header(user)} if user else {}
        return self.inner.send(f"/v2/{prefix}/{name}/{what or 'manifests/latest'}", **login)


@pytest.fixture(scope="module", params=["basic", "bearer"])
def site(
    request: pytest.FixtureRequest,
    registry: DistributionRegistry,
    programs: Programs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """The outer one asks for a login with this challenge."""
    directory = tmp_path_factory.mktemp(f"access-{request.param}")
    image = push_docker(registry, TEAM, "team")
    push_docker(registry, OTHER, "other")
    closed = DistributionRegistry(programs.need("registry"), directory, users=dict([CAT, DAN]))
    closed.start()
    private = push_docker(closed, TEAM, "private")
    htpasswd = write_htpasswd(directory / "users", dict([RACK, ANN, BOB]))
    chain = at(closed, CHAIN, access="upstream")
    outer = Tier(directory / "outer", at(registry), chain, **_rules(htpasswd, request.param))
    inner = Tier(
        directory / "inner",
        _own(outer, OPEN, RACK),
        _own(outer, WRONG, ("rack", "wrong")),
        {**behind(outer), "prefix": ANONYMOUS},
        {**behind(outer, access="upstream"), "prefix": OWN},
        behind(outer, CHAIN, access="upstream"),
        access={"challenge": request.param},
    )
    with serving(outer, inner):
        yield Site(outer, inner, image, private)
    closed.close()
    shutil.rmtree(directory, ignore_errors=True)


def _own(outer: Tier, prefix: str, user: tuple[str, str]) -> dict[str, Any]:
    auth = {"type": "basic", "username": user[0], "password": user[1]}
    return {**behind(outer), "prefix": prefix, "auth": auth}


def _rules(htpasswd: Path, challenge: str) -> dict[str, Any]:
    rules = [
        {"allow": True, "repositories": [f"{CHAIN}/**"]},
        {"allow": True, "who": ["rack"]},
        {"allow": True, "who": ["ann"], "repositories": [f"{HUB}/team/**"]},
        {"allow": False, "who": ["authenticated"], "repositories": [f"{HUB}/**"], "reason": "ask the team"},
    ]
    return {"access": {"htpasswd": str(htpasswd), "challenge": challenge, "rules": rules}}


def test_the_login_of_the_inner_one(site: Site) -> None:
    """Its clients need none: they get what its own login may pull."""
    for name in (TEAM, OTHER):
        assert site.pull(OPEN, name).status == 200
    assert digest_of(site.pull(OPEN).body) == site.image.digest
    blob = site.image.this_platform.layers[0].digest
    assert digest_of(site.pull(OPEN, TEAM, what=f"blobs/{blob}").body) == blob
    assert site.pull(OPEN, TEAM, what="tags/list").json["tags"] == ["latest"]


def test_a_wrong_login_of_the_inner_one(site: Site) -> None:
    """It is denied, and the message says which setting is wrong; it is no outage."""
    for _ in range(7):
        response = site.pull(WRONG)
        assert (response.status, response.error) == (403, "DENIED")
    assert "check `auth` of this prefix" in message_of(response)
    assert site.inner.breakers() == 0


def test_without_a_login(site: Site) -> None:
    """What the outer one does not give to anybody is 404 at the inner one, as at any registry: it may need a login."""
    response = site.pull(ANONYMOUS)
    assert (response.status, response.error) == (404, "MANIFEST_UNKNOWN")
    eventually(
        lambda: "or it needs a login: set `auth` for this prefix" in site.inner.read_log(), "the cause in the log"
    )


def test_clients_log_in_at_the_outer_one(site: Site) -> None:
    """With `access: upstream` at the inner one, users and rules of the outer one decide, also about what is cached."""
    blob = f"blobs/{site.image.this_platform.layers[0].digest}"
    assert site.pull(OWN, TEAM, ANN).status == 200
    assert site.pull(OWN, TEAM, ANN, blob).status == 200
    assert site.pull(OWN, TEAM, BOB).status == 403
    assert site.pull(OWN, TEAM, BOB, blob).status in (403, 404)
    assert site.pull(OWN, OTHER, ANN).status == 403
    assert site.pull(OWN, OTHER, RACK).status == 200
    for name in (TEAM, OTHER, "no/such"):
        assert site.pull(OWN, name).status == 401
        assert site.pull(OWN, name, ("ann", "wrong")).status == 401
    assert site.pull(OWN, "team/none", ANN).status == 404


def test_clients_log_in_at_the_registry(site: Site) -> None:
    """With `access: upstream` in both tiers, the registry decides."""
    blob = f"blobs/{site.private.this_platform.layers[0].digest}"
    for user in (CAT, DAN):
        response = site.pull(CHAIN, TEAM, user)
        assert (response.status, digest_of(response.body)) == (200, site.private.digest)
        assert site.pull(CHAIN, TEAM, user, blob).status == 200
    assert site.pull(CHAIN, TEAM).status == 401
    assert site.pull(CHAIN, TEAM, what=blob).status == 401
    assert site.pull(CHAIN, TEAM, ("cat", "wrong")).status == 401
    assert site.pull(CHAIN, TEAM, RACK).status in (401, 403)


def test_no_password_is_logged(site: Site) -> None:
    """In neither tier."""
    for server in (site.outer, site.inner):
        assert "canary" not in server.read_log()

"""Clients with different rights at the registry, over one Dockyard: each sees what the registry itself would give it.

Four workers share the requests. The registry is a fake that decides by account, in the ways of real registries.
"""

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode, urlsplit

import attrs
import pytest

from tests.security.canaries import Canary, WatchedDeployment, is_in
from tests.support import faults
from tests.support.bodies import Synthetic
from tests.support.busy_machine import is_within
from tests.support.deployment import eventually, open_deployment, set_at_exit, upstream
from tests.support.fake_accounts import IDENTITY_USER, STYLES, Account, FakeAccounts, Style
from tests.support.fake_lists import offer_referrers, offer_tags
from tests.support.fake_registry import FakeRegistry, Image
from tests.support.http_client import Response, StreamedResponse, send_request
from tests.support.raw_http import Exchange

WORKERS = 4
TEAM, OTHER, PUBLIC, UNKNOWN = "team/app", "other/app", "public/app", "unknown/app"
PRIVATE_ONLY = Synthetic(200_000, 7)
SHARED_LAYER = Synthetic(3_000_000, 8)
REFERRER = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": f"sha256:{'1' * 64}", "size": 2}
CANARIES = [
    Canary(f"canary-of-{name}-4c1d9a", frozenset({"registry"}), in_form=True) for name in ("ann", "bob", "nobody")
]
TTL_S, GRACE_S = 1, 8


@attrs.define(eq=False)
class Site:
    """A Dockyard, its registry with accounts, and images there."""

    deployment: WatchedDeployment
    accounts: FakeAccounts
    style: Style
    images: dict[str, Image]
    index: Image

    def account(self, name: str, *repositories: str) -> Account:
        """The account of ann or bob, with these repositories; its password is a canary."""
        username = IDENTITY_USER if self.style == "identity" else name
        return Account(username, f"canary-of-{name}-4c1d9a", frozenset(repositories))

    @property
    def ann(self) -> Account:
        return self.account("ann", TEAM)

    @property
    def bob(self) -> Account:
        return self.account("bob", OTHER)

    @property
    def nobody(self) -> Account:
        """A login that is wrong."""
        return self.account("nobody")

    def get(self, path: str, account: Account | None = None, method: str = "GET", **headers: str) -> Response:
        """Request something of Dockyard. Several workers get requests: each has a connection of its own."""
        login = {"Authorization": account.header} if account else {}
        return self.deployment.request(method, f"/v2/up.test/{path}", **login, **headers)

    def direct(self, path: str, account: Account | None = None, method: str = "GET", **headers: str) -> Response:
        """Request something of the registry itself, with the handshake of a client. 401 and 403 are final."""
        registry = self.deployment.fake_registry.listener
        address = (registry.host, registry.port)

        def send(method: str, path: str, **headers: str) -> Response:
            return send_request(address, path, {**headers, "User-Agent": "direct"}, method=method)

        if account and self.style == "basic":
            return send(method, f"/v2/{path}", Authorization=account.header, **headers)
        response = send(method, f"/v2/{path}", **headers)
        if response.status != 401:
            return response
        challenge = response.header("WWW-Authenticate") or ""
        if challenge.startswith("Basic"):
            return send(method, f"/v2/{path}", Authorization=account.header, **headers) if account else response
        fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
        query = f"/token?{urlencode({key: fields[key] for key in ('service', 'scope')})}"
        login = {"Authorization": account.header} if account else {}
        if account and self.style == "identity":
            form = urlencode({"refresh_token": account.password, "scope": fields["scope"]}).encode()
            request = f"POST /token HTTP/1.1\r\nHost: x\r\nUser-Agent: direct\r\nContent-Length: {len(form)}\r\n\r\n"
            token = _send_raw(address, request.encode() + form)
        else:
            token = send("GET", query, **login)
        if token.status != 200:
            return token
        return send(method, f"/v2/{path}", Authorization=f"Bearer {token.json['token']}", **headers)

    def received(self, kind: str, reference: str = "") -> list[Exchange]:
        """What Dockyard has requested of the registry."""
        return [
            exchange
            for exchange in self.deployment.fake_registry.received(kind)
            if exchange.request.header("User-Agent") != "direct"
            and (not reference or exchange.request.reference == reference)
        ]


def _send_raw(address: tuple[str, int], request: bytes) -> Response:
    with StreamedResponse(address, "", request=request) as stream:
        stream.head()
        body, ended = stream.rest()
        return Response(stream.status, (), body, ended, 0.0)


@contextlib.contextmanager
def open_site(
    directory: Path, style: Style, server: Mapping[str, Any] = MappingProxyType({}), **more: Any
) -> Iterator[Site]:
    """Start everything; `more` are settings of the upstream. At the end, no login may be where it does not belong."""
    with FakeRegistry() as fake_registry:
        images = {}
        for repository in (TEAM, OTHER, PUBLIC):
            layers = [SHARED_LAYER] if repository == OTHER else [SHARED_LAYER, PRIVATE_ONLY]
            images[repository] = fake_registry.add_image(repository, "latest", layers)
            offer_tags(fake_registry, repository, ["index", "latest"])
        index = fake_registry.add_index(TEAM, "index", [images[TEAM]])
        fake_registry.add_image(
            OTHER, "evil", [PRIVATE_ONLY]
        )  # pushed by bob; the registry has not looked for the layer
        for repository, image in images.items():
            fake_registry.add_blob(SHARED_LAYER, repos=images)
            fake_registry.add_blob(PRIVATE_ONLY, repos=[TEAM, PUBLIC])
            offer_referrers(fake_registry, repository, image.digest, [REFERRER])
        accounts = FakeAccounts(fake_registry, style, [], [PUBLIC])
        limits = {"access": "upstream", "access_ttl": f"{TTL_S}s", "access_grace": f"{GRACE_S}s", **more}
        upstreams = [upstream("up.test", fake_registry.url, **limits)]
        with open_deployment(
            fake_registry,
            directory,
            workers=WORKERS,
            upstreams=upstreams,
            logger={"level": "debug"},
            server=dict(server),
        ) as opened:
            deployment = WatchedDeployment(opened.fake_registry, opened.dockyard)
            deployment.wait_for_workers(WORKERS)
            site = Site(deployment, accounts, style, images, index)
            accounts.set(site.ann)
            accounts.set(site.bob)
            yield site
            assert deployment.leaks(CANARIES) == []
            for pid in deployment.dockyard.worker_pids():
                environment = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()
                assert not is_in([environment], [text for canary in CANARIES for text in canary.spellings()])


def requests_of(site: Site) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Every kind of request, for each repository: method, path, headers."""
    team = site.images[TEAM]
    for repository in (TEAM, OTHER, PUBLIC, UNKNOWN):
        image = site.images.get(repository, team)
        manifests = [
            "latest",
            image.digest,
            "unknown",
            "evil",
            f"sha256:{'0' * 64}",
            "index",
            site.index.digest,
            team.digest,
        ]
        blobs = [image.config, *image.layers, PRIVATE_ONLY.digest, f"sha256:{'0' * 64}"]
        for method in ("GET", "HEAD"):
            for reference in dict.fromkeys(manifests):
                yield method, f"{repository}/manifests/{reference}", {}
            for digest in dict.fromkeys(blobs):
                yield method, f"{repository}/blobs/{digest}", {}
        yield "GET", f"{repository}/blobs/{SHARED_LAYER.digest}", {"Range": "bytes=5-9"}
        yield "GET", f"{repository}/tags/list", {}
        yield "GET", f"{repository}/referrers/{image.digest}", {}


def seen(response: Response) -> tuple[object, ...]:
    """What a client sees of a response: that it is denied, that there is nothing, or the content."""
    if response.status in (401, 403):
        return ("denied",)
    if response.status not in (200, 206):
        return (response.status,)
    if response.body.startswith(b'{"name"'):
        return response.status, response.json["tags"]
    if "index" in (response.header("Content-Type") or "") and b"artifactType" not in response.body:
        return response.status, len(response.json["manifests"]) if response.body else None
    return response.status, response.body, response.header("Content-Length")


@pytest.mark.parametrize("style", STYLES)
def test_each_client_sees_what_the_registry_would_give_it(tmp_path: Path, style: Style) -> None:
    """Cold, warm, and by all workers; the layer that all have is fetched and stored once."""
    with open_site(tmp_path, style) as site, ThreadPoolExecutor(8) as pool:
        wrong = [] if style == "open tokens" else [site.nobody]  # such a registry does not tell
        clients = [None, site.ann, site.bob, *wrong]
        matrix = [(client, *request) for client in clients for request in requests_of(site)]
        expected = [seen(site.direct(path, client, method, **headers)) for client, method, path, headers in matrix]
        assert {kind[0] for kind in expected} == {200, 206, 404, "denied"}
        for _ in range(2):
            responses = list(pool.map(lambda one: site.get(one[2], one[0], one[1], **one[3]), matrix))
            for (client, method, path, _), response, wanted in zip(matrix, responses, expected, strict=True):
                who = client.password if client else "nobody"
                assert seen(response) == wanted, f"{method} {path} by {who}: {response.status} {response.body[:200]!r}"
                if wanted == ("denied",):
                    is_login_missing = client is None or client in wrong
                    assert response.status == (401 if is_login_missing else 403), f"{method} {path} by {who}"
        assert fetches(site) == 1
        assert len(site.deployment.stored_files(SHARED_LAYER.digest)) == 1


def fetches(site: Site) -> int:
    """How often the registry has sent the shared layer: not by HEAD, and not before the login."""
    exchanges = site.received("blob", SHARED_LAYER.digest)
    return sum((each.request.method, each.status) == ("GET", 200) for each in exchanges)


def manifest_of(site: Site, account: Account | None, repository: str = TEAM) -> int:
    """The status of a pull of the tag."""
    return site.get(f"{repository}/manifests/latest", account).status


@pytest.mark.parametrize("style", ["scoped", "basic"])
def test_an_outage_gives_nobody_more_than_before(tmp_path: Path, style: Style) -> None:
    """Who was admitted goes on for `access_grace`; others get 401 or 503."""
    with open_site(tmp_path, style) as site:
        assert (manifest_of(site, site.ann), manifest_of(site, None, PUBLIC)) == (200, 200)
        site.deployment.fake_registry.listener.close()
        site.deployment.fake_registry.listener.drop_connections()
        eventually(lambda: site.get(f"{TEAM}/manifests/latest", site.ann).header("Warning"), "the tag is stale")
        for _ in range(8):
            assert manifest_of(site, site.ann) == 200
            assert manifest_of(site, None, PUBLIC) == 200
            assert (manifest_of(site, site.bob), manifest_of(site, None)) == (503, 401)
            assert manifest_of(site, site.nobody, PUBLIC) == 200  # nobody can tell, and everybody gets it
        eventually(lambda: manifest_of(site, site.ann) == 503, "the grace ends")
        eventually(lambda: manifest_of(site, None, PUBLIC) == 401, "also for clients without a login")
        site.deployment.fake_registry.listener.open()
        eventually(lambda: manifest_of(site, site.ann) == 200, "the registry is back")


@pytest.mark.parametrize("style", ["scoped", "open tokens", "refused 403", "basic"])
def test_a_refusal_ends_the_grace(tmp_path: Path, style: Style) -> None:
    """In all workers, whatever happens to the registry afterwards."""
    with open_site(tmp_path, style) as site:
        digest = f"{TEAM}/manifests/{site.images[TEAM].digest}"
        assert {site.get(digest, site.ann).status for _ in range(8)} == {200}
        site.accounts.set(site.account("ann"))
        eventually(lambda: site.get(digest, site.ann).status == 403, "ann is refused")
        site.deployment.fake_registry.listener.close()
        site.deployment.fake_registry.listener.drop_connections()
        assert {site.get(digest, site.ann).status for _ in range(20)} <= {403, 503}
        assert site.deployment.stored_files(site.images[TEAM].digest)


def test_a_stranger_does_not_join_a_running_download(tmp_path: Path) -> None:
    """By the repository of another, or by its own, which does not name the layer; nor with a range."""
    with open_site(tmp_path, "scoped") as site, set_at_exit(threading.Event()) as go_on:
        stalled = faults.stalled(0.5, go_on)
        site.deployment.fake_registry.on(
            "blob",
            lambda request, response: stalled(request, response) if response.status < 300 else response,
            reference=PRIVATE_ONLY.digest,
        )
        for repository, account in ((TEAM, site.ann), (OTHER, site.bob)):
            assert manifest_of(site, account, repository) == 200
        path = f"{TEAM}/blobs/{PRIVATE_ONLY.digest}"
        with ThreadPoolExecutor(1) as pool:
            pulling = pool.submit(site.get, path, site.ann)
            eventually(lambda: site.received("blob", PRIVATE_ONLY.digest), "the download runs")
            for _ in range(4):
                for method, headers in (("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=0-9"})):
                    assert site.get(path, site.bob, method, **headers).status == 403
                    assert site.get(path, None, method, **headers).status == 401
                    elsewhere = site.get(f"{OTHER}/blobs/{PRIVATE_ONLY.digest}", site.bob, method, **headers)
                    assert elsewhere.status == 404
            go_on.set()
            assert pulling.result().is_complete


def test_a_download_goes_on_when_the_login_that_started_it_is_revoked(tmp_path: Path) -> None:
    """With the login of somebody else who reads it, in whatever worker; the layer is not fetched from its beginning."""
    with open_site(tmp_path, "basic") as site, set_at_exit(threading.Event()) as go_on:
        registry = site.deployment.fake_registry
        for repository, account in ((TEAM, site.ann), (OTHER, site.bob)):
            assert manifest_of(site, account, repository) == 200
        pause = registry.on("blob", faults.stalled(2_000_000, go_on), reference=SHARED_LAYER.digest, method="GET")
        cut = registry.on("blob", faults.cut(2_000_000), reference=SHARED_LAYER.digest, method="GET", times=1)
        with ThreadPoolExecutor(9) as pool:
            first = pool.submit(site.get, f"{TEAM}/blobs/{SHARED_LAYER.digest}", site.ann)
            eventually(lambda: cut.applied, "ann's download runs")
            path = f"{OTHER}/blobs/{SHARED_LAYER.digest}"
            others = [pool.submit(site.get, path, site.bob) for _ in range(8)]
            eventually(lambda: site.deployment.metric("dockyard_fills_joined_total"), "others have joined")
            site.accounts.set(site.account("ann"))
            registry.remove_rules(pause)
            go_on.set()
            responses = [each.result() for each in others]
            first.result()
        whole = b"".join(SHARED_LAYER.pieces(0, SHARED_LAYER.size))
        assert {response.status for response in responses} == {200}
        assert all(response.body == whole for response in responses)
        gets = [each for each in site.received("blob", SHARED_LAYER.digest) if each.request.method == "GET"]
        assert gets[-1].request.header("Authorization") == site.bob.header
        assert gets[-1].request.header("Range") == "bytes=2000000-"


def test_a_wrong_password_of_a_fleet_reaches_the_token_service_once(tmp_path: Path) -> None:
    """From 200 connections over four workers, for two repositories."""
    with open_site(tmp_path, "refused 401") as site, ThreadPoolExecutor(20) as pool:
        wrong = site.nobody
        paths = [f"{repository}/manifests/latest" for repository in (TEAM, PUBLIC)] * 100
        statuses = set(pool.map(lambda path: site.get(path, wrong).status, paths))
        assert statuses == {401}
        sent = [each for each in site.received("token") if each.request.header("Authorization") == wrong.header]
        assert len(sent) == 1


def test_many_wrong_passwords_are_not_passed_on_as_fast_as_they_come(tmp_path: Path) -> None:
    """From one address, in whatever worker; who was right is not slowed by that, nor is anybody elsewhere."""
    server = {"trusted_proxies": ["127.0.0.1"]}
    with open_site(tmp_path, "scoped", server=server) as site, ThreadPoolExecutor(32) as pool:
        tokens = site.deployment.fake_registry.received

        def guess(number: int) -> int:
            header = Account("ann", f"canary-of-nobody-4c1d9a{number}", frozenset()).header
            return site.deployment.request(
                "GET", f"/v2/up.test/{TEAM}/manifests/latest", Authorization=header, **{"X-Forwarded-For": "192.0.2.66"}
            ).status

        def manifest(account: Account, address: str) -> tuple[int, float]:
            response = site.get(f"{TEAM}/manifests/latest", account, **{"X-Forwarded-For": address})
            return response.status, response.took_s

        assert manifest(site.ann, "192.0.2.66")[0] == 200
        for number in range(6 * WORKERS):
            guess(number)
        sent = len(tokens("token"))
        begin = time.monotonic()
        statuses = list(pool.map(guess, range(1000, 1300)))
        seconds = time.monotonic() - begin
        assert set(statuses) <= {401, 429}
        assert statuses.count(429) > 200
        assert len(tokens("token")) - sent <= WORKERS * (10 + seconds)
        for address, account in (("192.0.2.66", site.ann), ("192.0.2.67", site.ann), ("192.0.2.68", site.bob)):
            status, seconds = manifest(account, address)
            assert status == (403 if account == site.bob else 200)
            assert is_within(seconds, 0.0, slack_s=2.0)


@pytest.mark.parametrize("style", STYLES)
def test_a_login_is_checked_as_docker_login_does(tmp_path: Path, style: Style) -> None:
    """At `/v2/`, with the upstream that decides about access."""
    with open_site(tmp_path, style) as site:
        for path in ("/v2/", "/up.test/v2/"):
            assert site.deployment.get(path).status == 401
            assert site.deployment.get(path, Authorization=site.ann.header).status == 200
            if style != "open tokens":
                assert site.deployment.get(path, Authorization=site.nobody.header).status == 401


def test_the_operator_fetches_and_the_clients_are_admitted_by_themselves(tmp_path: Path) -> None:
    """Content comes with the operator's login, access does not; what it may not have comes with the client's."""
    auth = {"type": "basic", "username": "operator", "password": "canary-of-operator-4c1d9a"}
    with open_site(tmp_path, "scoped", auth=auth) as site:
        site.accounts.set(Account("operator", "canary-of-operator-4c1d9a", frozenset({TEAM})))
        assert (manifest_of(site, None), manifest_of(site, site.bob), manifest_of(site, site.ann)) == (401, 403, 200)
        gets = [each.request.header("Authorization") for each in site.received("manifest")]
        assert gets
        assert manifest_of(site, site.bob, OTHER) == 200
        assert manifest_of(site, site.ann, OTHER) == 403


def test_a_client_that_sends_no_login_gets_what_is_public(tmp_path: Path) -> None:
    """And is challenged otherwise, so that it sends one."""
    with open_site(tmp_path, "scoped") as site:
        assert manifest_of(site, None, PUBLIC) == 200
        response = site.get(f"{TEAM}/manifests/latest")
        assert response.status == 401
        assert (response.header("WWW-Authenticate") or "").startswith("Basic")
        assert json.loads(response.body)["errors"][0]["code"] == "UNAUTHORIZED"
        assert site.deployment.fake_registry.url not in response.body.decode()
        assert urlsplit(site.deployment.fake_registry.url).netloc not in str(response.headers)
        login: Callable[[Account], int] = lambda account: manifest_of(site, account, PUBLIC)  # noqa: E731
        assert [login(site.ann), login(site.bob), login(site.nobody)] == [200, 200, 401]

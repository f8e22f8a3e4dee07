"""Nobody gets what they may not have, through a running server with two workers, everything being cached.

Whoever may not know about something gets the response that they would get if it did not exist: the same status, the
same headers, the same bytes. Statuses are not enough for that, so most tests here compare whole responses.
"""

import base64
import contextlib
import itertools
import json
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from tests.security.raw_connection import send_bytes
from tests.support import faults
from tests.support.bodies import Body, Synthetic
from tests.support.busy_machine import MAX_SLOWDOWN
from tests.support.deployment import Deployment, open_deployment, upstream
from tests.support.fake_lists import JSON, descriptor, offer_referrers, offer_tags
from tests.support.fake_registry import FakeRegistry, Image
from tests.support.faults import replaced
from tests.support.htpasswd import write_htpasswd
from tests.support.http_client import Response, send_request

LAYER = Synthetic(2_000_000, seed=7)
OPEN_LAYER = Synthetic(1_500_000, seed=8)
SLOW_LAYER = Synthetic(3_000_000, seed=9)
NO_DIGEST = f"sha256:{'e' * 64}"
SOME_TAG = "v-secret-tag"
RULES = [
    {"allow": False, "repositories": ["up.test/team/hidden"], "who": ["bob"], "reason": "not for Bob", "hide": True},
    {"allow": False, "repositories": ["up.test/team/closed"], "who": ["bob"], "reason": "ask the team"},
    {"allow": True, "repositories": ["up.test/open/**"]},
    {"allow": True, "who": ["authenticated"]},
    {"allow": False, "who": ["anonymous"], "actions": ["status"]},
    {"allow": True, "who": ["authenticated"], "actions": ["status"]},
]


def basic(username: str, password: str) -> str:
    """The header of a login."""
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


ANN, BOB, WRONG = basic("ann", "right"), basic("bob", "right"), basic("ann", "wrong")


@attrs.define
class Gated:
    """A server with secrets in its cache: images of a team, the blobs of one of them, and its referrers."""

    deployment: Deployment
    audit: Path
    images: dict[str, Image]

    def send(self, path: str, login: str | None = None, method: str = "GET", **headers: str) -> Response:
        """Send a request on a connection of its own."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if login is not None:
            fields["Authorization"] = login
        return send_request(self.deployment.address, path, fields, method=method)

    @property
    def secrets(self) -> list[str]:
        """What nobody may learn who has no right to it."""
        digests = [text for image in self.images.values() for text in (image.digest, image.config, *image.layers)]
        return [*(digest.removeprefix("sha256:") for digest in digests), SOME_TAG, str(LAYER.size)]


def add_image(fake_registry: FakeRegistry, repo: str, layers: Sequence[bytes | Body]) -> Image:
    """Serve an image whose blobs are in its repository only, as registries do."""
    image = fake_registry.add_image(repo, "latest", layers)
    config = json.dumps({"architecture": "amd64", "os": "linux", "in": repo, "tag": "latest"}).encode()
    assert fake_registry.add_blob(config, repos=[repo]) == image.config
    for layer in layers:
        fake_registry.add_blob(layer, repos=[repo])
    offer_tags(fake_registry, repo, ["latest", SOME_TAG])
    offer_referrers(fake_registry, repo, image.digest, [descriptor(image.config)])
    return image


def write_passwords(path: Path, *names: str) -> Path:
    """Write an htpasswd file in which all have the same password."""
    return write_htpasswd(path, dict.fromkeys(names, "right"))


@contextlib.contextmanager
def open_gated(directory: Path, *, auth: dict[str, str] | None = None, **settings: Any) -> Iterator[Gated]:
    """Start a server, and have Ann pull everything. `auth` is the login of the operator at the upstream."""
    passwords = write_passwords(directory / "htpasswd", "ann", "bob")
    audit = directory / "audit.log"
    with FakeRegistry() as fake_registry:
        images = {
            "app": add_image(fake_registry, "team/app", [LAYER, b"a small layer of the team"]),
            "hidden": add_image(fake_registry, "team/hidden", [b"a hidden layer"]),
            "closed": add_image(fake_registry, "team/closed", [b"a closed layer"]),
        }
        public = add_image(fake_registry, "open/app", [OPEN_LAYER])
        fake_registry.add_manifest("team/app", SOME_TAG, images["app"].body, images["app"].media_type)
        access = {"htpasswd": str(passwords), "audit": str(audit), "rules": RULES}
        with open_deployment(
            fake_registry,
            directory / "deployment",
            workers=2,
            upstreams=[
                upstream("up.test", fake_registry.url, auth=auth or {"type": "anonymous"}),
                upstream("other.test", fake_registry.url),
            ],
            access=access,
            **settings,
        ) as deployment:
            gated = Gated(deployment, audit, images)
            for image in (*images.values(), public):
                for path in paths_of(image):
                    assert gated.send(path, ANN).status == 200, path
            yield gated


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    """A server for all tests that change nothing."""
    with open_gated(tmp_path_factory.mktemp("gated")) as gated:
        yield gated


def paths_of(image: Image, repo: str = "") -> list[str]:
    """All that can be asked about an image, below the name of its repository or another one."""
    base = f"/v2/up.test/{repo or image.repo}"
    return [
        f"{base}/manifests/latest",
        f"{base}/manifests/{image.digest}",
        f"{base}/blobs/{image.config}",
        *(f"{base}/blobs/{layer}" for layer in image.layers),
        f"{base}/referrers/{image.digest}",
        f"{base}/tags/list",
    ]


def compared(response: Response, *replaced: str) -> tuple[Any, ...]:
    """All of a response but the time; `replaced` is what the request was about, which the response may repeat."""
    text = response.body.decode("latin-1")
    headers = str(sorted(header for header in response.headers if header[0].lower() != "date"))
    for number, words in enumerate(replaced):
        text, headers = text.replace(words, f"<{number}>"), headers.replace(words, f"<{number}>")
    return response.status, headers, text


def assert_no_secret(gated: Gated, response: Response, path: str) -> None:
    """Check that a response has nothing that its own request did not have."""
    assert next(iter(LAYER.pieces(0, 64))) not in response.body
    text = f"{response.headers}{response.body.decode('latin-1')}"
    for secret in gated.secrets:
        assert secret not in text or secret in path, secret


CONDITIONS = [
    {},
    {"Range": "bytes=0-0"},
    {"Range": "bytes=0-9,20-29"},
    {"Range": "bytes=999999999-"},
    {"If_None_Match": "*"},
    {"If_None_Match": "DIGEST"},
    {"If_None_Match": "DIGEST", "Range": "bytes=0-0", "If_Range": "DIGEST"},
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
def test_a_client_without_a_login_learns_nothing(gated: Gated, method: str, conditions: dict[str, str]) -> None:
    """Whatever it asks of a team's repository: the response is that of a repository that does not exist."""
    image = gated.images["app"]
    for path in paths_of(image):
        digest = path.rpartition("/")[2]
        headers = {name: value.replace("DIGEST", f'"{digest}"') for name, value in conditions.items()}
        response = gated.send(path, method=method, **headers)
        assert response.status == 401
        unknown = path.replace("team/app", "team/nothing").replace(digest, NO_DIGEST if ":" in digest else digest)
        assert compared(response) == compared(gated.send(unknown, method=method, **headers))
        assert_no_secret(gated, response, path)


@pytest.mark.parametrize("login", [WRONG, basic("eve", "right"), "Bearer abc", "Basic !", "Negotiate x", ""])
def test_a_wrong_login_gets_nothing_anywhere(gated: Gated, login: str) -> None:
    """Neither what is open to all, nor the state of the server. It is the same response everywhere."""
    paths = [*paths_of(gated.images["app"]), "/v2/", "/up.test/v2/", "/v2/up.test/open/app/manifests/latest"]
    paths += ["/", "/metrics", "/version", "/healthz", "/v2/nosuch.test/x/manifests/latest"]
    responses = {path: gated.send(path, login) for path in paths}
    assert {path: response.status for path, response in responses.items()} == dict.fromkeys(paths, 401)
    assert len({compared(response) for response in responses.values()}) == 1
    assert responses["/v2/"].header("WWW-Authenticate") == 'Basic realm="dockyard"'


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
@pytest.mark.parametrize("kind", ["config", "layer", "digest"])
def test_a_digest_of_another_repository_is_unknown(
    gated: Gated, method: str, conditions: dict[str, str], kind: str
) -> None:
    """Though it is cached here. A client that may pull one repository gets of it what that repository has."""
    image = gated.images["app"]
    for digest in [image.digest] if kind == "digest" else [image.config] if kind == "config" else image.layers:
        base = f"/v2/up.test/open/app/{'manifests' if kind == 'digest' else 'blobs'}"
        headers = {name: value.replace("DIGEST", f'"{digest}"') for name, value in conditions.items()}
        for login in (None, BOB):
            response = gated.send(f"{base}/{digest}", login, method, **headers)
            unknown = gated.send(f"{base}/{NO_DIGEST}", login, method, **headers)
            assert response.status == 404
            assert compared(response) == compared(unknown)


def test_the_rights_of_a_client_are_used(gated: Gated) -> None:
    """The tests here would pass with a server that denies everything."""
    for path in paths_of(gated.images["app"]):
        assert gated.send(path, BOB).status == 200
        assert gated.send(path, BOB, "HEAD").status == 200
    layer = gated.images["app"].layers[0]
    response = gated.send(f"/v2/up.test/team/app/blobs/{layer}", BOB, Range="bytes=0-9")
    assert (response.status, len(response.body)) == (206, 10)
    assert gated.send("/v2/up.test/open/app/manifests/latest").status == 200
    assert gated.send("/v2/up.test/open/app/manifests/latest", ANN).status == 200


@pytest.mark.parametrize("login", [None, BOB])
def test_content_is_for_no_shared_cache(gated: Gated, login: str | None) -> None:
    """A cache in front of the server gives nobody the response of somebody else."""
    response = gated.send("/v2/up.test/open/app/manifests/latest", login)
    digest = str(response.header("Docker-Content-Digest"))
    by_digest = gated.send(f"/v2/up.test/open/app/manifests/{digest}", login)
    assert by_digest.header("Cache-Control") == "private, max-age=31536000, immutable"
    assert {response.header("Vary"), by_digest.header("Vary")} == {"Authorization"}
    layer = re.findall(r"sha256:[0-9a-f]{64}", by_digest.body.decode())[-1]
    blob = gated.send(f"/v2/up.test/open/app/blobs/{layer}", login)
    assert (blob.header("Cache-Control"), blob.header("Vary")) == (by_digest.header("Cache-Control"), "Authorization")


# Hidden and denied with a login


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
def test_a_hidden_repository_is_as_one_that_does_not_exist(
    gated: Gated, method: str, conditions: dict[str, str]
) -> None:
    """For everything that can be asked about it, in all bytes."""
    image = gated.images["hidden"]
    for path in [*paths_of(image), f"/v2/up.test/{image.repo}/manifests/nosuch", f"/v2/up.test/{image.repo}/blobs/x"]:
        digest = path.rpartition("/")[2]
        headers = {name: value.replace("DIGEST", f'"{digest}"') for name, value in conditions.items()}
        unknown = path.replace(image.repo, "team/absent")
        first, second = gated.send(path, BOB, method, **headers), gated.send(unknown, BOB, method, **headers)
        assert compared(first, "team/hidden") == compared(second, "team/absent"), path
        assert first.status == (200 if "referrers" in path else 400 if path.endswith("blobs/x") else 404)
        assert_no_secret(gated, first, path)


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("auth", [None, {"type": "basic", "username": "operator", "password": "right"}], ids=bool)
def test_a_hidden_repository_is_as_one_that_the_upstream_refuses(
    tmp_path: Path, status: int, auth: dict[str, str] | None
) -> None:
    """Many registries refuse names that do not exist. The message is about what was requested."""
    with open_gated(tmp_path, auth=auth) as gated:
        image = gated.images["hidden"]
        gated.deployment.fake_registry.on(None, faults.error_response(status, "DENIED"))
        for path in [*paths_of(image), f"/v2/up.test/{image.repo}/manifests/nosuch"]:
            first = gated.send(path, BOB)
            second = gated.send(path.replace(image.repo, "team/absent"), BOB)
            assert compared(first, "team/hidden") == compared(second, "team/absent"), path
            assert first.status in (403, 404), path


def test_a_denial_has_the_reason_whether_the_repository_exists_or_not(gated: Gated) -> None:
    """Tags, digests and blobs that exist or do not are all the same."""
    image = gated.images["closed"]
    responses = [gated.send(path, BOB) for path in paths_of(image)]
    responses += [gated.send(f"/v2/up.test/{image.repo}/manifests/{tag}", BOB) for tag in ("nosuch", "!", NO_DIGEST)]
    assert {response.status for response in responses if response.status != 400} == {403}
    denied = [response.json for response in responses if response.status == 403]
    assert denied == [{"errors": [{"code": "DENIED", "message": "ask the team"}]}] * len(denied)


def test_prefixes_cannot_be_found_out(gated: Gated) -> None:
    """A name without an upstream is as one that is denied; the error of an allowed one lists no prefixes."""
    known = gated.send("/v2/other.test/some/app/manifests/latest")
    unknown = gated.send("/v2/nosuch.test/some/app/manifests/latest")
    assert compared(known) == compared(unknown)
    assert compared(gated.send("/other.test/v2/")) == compared(gated.send("/nosuch.test/v2/"))
    for path in ("/v2/x/manifests/latest?ns={}", "/v2/x/tags/list?ns={}", "/{}/v2/x/manifests/latest"):
        known, unknown = (gated.send(path.format(prefix)) for prefix in ("other.test", "nosuch.test"))
        assert compared(known, "other.test") == compared(unknown, "nosuch.test"), path
    allowed = gated.send("/v2/open/app/manifests/latest?ns=up.test")
    assert (allowed.status, allowed.header("OCI-Namespace")) == (200, "up.test")
    listed = gated.send("/v2/nosuch.test/some/app/manifests/latest", ANN)
    assert listed.status == 404
    assert b".test" not in listed.body


def test_the_page_has_only_what_its_client_may_pull(gated: Gated) -> None:
    """In JSON and in HTML."""
    for accept in ("application/json", "text/html"):
        assert b"other.test" not in gated.send("/", Accept=accept).body
        assert b"up.test" in gated.send("/", Accept=accept).body
        assert b"other.test" in gated.send("/", ANN, Accept=accept).body


@pytest.mark.parametrize("path", ["/metrics", "/version", "/healthz", "/readyz"])
def test_the_state_of_the_server_is_for_those_who_may_see_it(gated: Gated, path: str) -> None:
    """By rules with the action `status`."""
    assert gated.send(path).status == 401
    assert gated.send(path, ANN).status == 200
    assert gated.send(path, method="HEAD").status == 401


# Forms of a path


NAME = "up.test/team/app"
SPELLINGS = [
    "/v2/UP.TEST/team/app/manifests/latest",
    "/v2/up.test/Team/App/manifests/latest",
    "/V2/up.test/team/app/manifests/latest",
    "/v2/up.test/team/app/Manifests/latest",
    "/v2/up.test/team%2Fapp/manifests/latest",
    "/v2/up.test%2fteam/app/manifests/latest",
    "/v2/up.test/team/%61pp/manifests/latest",
    "/v2//up.test/team/app/manifests/latest",
    "//v2/up.test/team/app/manifests/latest",
    "/v2/./up.test/team/app/manifests/latest",
    "/v2/up.test/open/../team/app/manifests/latest",
    "/v2/up.test/open/%2e%2e/team/app/manifests/latest",
    "/v2/up.test/open/..%2fteam/app/manifests/latest",
    "/v2/up.test/team/app/manifests/latest/",
    "/v2/up.test/team/app/manifests/latest;x",
    "/v2/up.test/team/app/manifests/latest#/open/app",
    "/v2/up.test/team/app/manifests/latest?ns=up.test",
    "/v2/up.test/team/app/manifests/latest?ns=open.test",
    "/v2/team/app/manifests/latest?ns=up.test",
    "/v2/team/app/manifests/latest?ns=UP.test:443",
    "/up.test/v2/team/app/manifests/latest",
    "/up.test/v2/team/app/manifests/latest?ns=up.test",
    "/up.test/v2/up.test/team/app/manifests/latest",
    "/open/v2/up.test/team/app/manifests/latest",
    "/up.test/open/v2/team/app/manifests/latest",
    "/v2/v2/up.test/team/app/manifests/latest",
    "http://dockyard/v2/up.test/team/app/manifests/latest",
    "/v2/up.test/open/app/blobs/../../../team/app/manifests/latest",
]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("path", SPELLINGS)
def test_no_spelling_of_a_path_goes_around_the_rules(gated: Gated, path: str, version: str) -> None:
    """Nor the version of HTTP."""
    head = f"GET {path} HTTP/{version}\r\nHost: dockyard\r\nConnection: close\r\n\r\n"
    result = send_bytes(gated.deployment.address, head.encode())
    assert len(result.statuses) == 1
    assert result.statuses[0] in {400, 401, 403, 404}
    for secret in gated.secrets:
        assert secret.encode() not in result.received
    image = gated.images["app"]
    assert image.digest.encode() not in result.received


def test_each_request_of_a_connection_needs_its_own_login(gated: Gated) -> None:
    """Also when they are sent without waiting for the responses."""
    path = f"/v2/{NAME}/manifests/{gated.images['app'].digest}"
    logins = [ANN, None, BOB, WRONG, None, ANN]

    def head(login: str | None, *, is_last: bool) -> str:
        authorization = f"Authorization: {login}\r\n" if login else ""
        return f"GET {path} HTTP/1.1\r\nHost: x\r\n{authorization}{'Connection: close' if is_last else 'X: y'}\r\n\r\n"

    data = "".join(head(login, is_last=number == len(logins) - 1) for number, login in enumerate(logins))
    result = send_bytes(gated.deployment.address, data.encode())
    assert result.statuses == (200, 401, 200, 401, 401, 200)
    assert result.received.count(gated.images["app"].body) == 3


def test_two_logins_in_a_request_are_none(gated: Gated) -> None:
    """A proxy could read another one of them."""
    for first, second in ((ANN, WRONG), (WRONG, ANN), (ANN, ANN)):
        head = f"GET /v2/{NAME}/tags/list HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        head += f"Authorization: {first}\r\nAuthorization: {second}\r\n\r\n"
        assert send_bytes(gated.deployment.address, head.encode()).statuses == (400,)


# Running downloads


def test_a_stranger_cannot_join_a_running_download(gated: Gated) -> None:
    """Neither with the name of its repository nor with another one; the owner of the right goes on."""
    fake_registry = gated.deployment.fake_registry
    image = add_image(fake_registry, "team/slow", [SLOW_LAYER])
    assert gated.send("/v2/up.test/team/slow/manifests/latest", ANN).status == 200
    digest = image.layers[0]
    go_on = threading.Event()
    fake_registry.on("blob", faults.stalled(0.5, go_on), method="GET", reference=digest)
    path = f"/v2/up.test/team/slow/blobs/{digest}"
    with contextlib.ExitStack() as ends:
        ends.callback(go_on.set)
        running = ends.enter_context(gated.deployment.stream(path, Authorization=ANN))
        assert running.head().status == 200
        assert running.read(65536)
        for method in ("GET", "HEAD"):
            assert gated.send(path, method=method).status == 401
            for login in (None, BOB):
                other = f"/v2/up.test/open/app/blobs/{digest}"
                unknown = gated.send(f"/v2/up.test/open/app/blobs/{NO_DIGEST}", login, method)
                assert compared(gated.send(other, login, method)) == compared(unknown)
        go_on.set()
        assert running.rest()[1] == "length"
    assert fake_registry.count("blob", "GET", reference=digest) == 1


# Time


ROUNDS = 120


def ratio(first: Callable[[int], object], second: Callable[[int], object]) -> tuple[float, float]:
    """The ratio of the medians of the times of two requests, which alternate; and how much one median itself varies."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        order = (0, 1) if number % 2 else (1, 0)
        for which in order:
            began = time.perf_counter()
            (first, second)[which](number)
            times[which].append(time.perf_counter() - began)
    noise = max(statistics.median(part[::2]) / statistics.median(part[1::2]) for part in times)
    return statistics.median(times[0]) / statistics.median(times[1]), max(noise, 1 / noise)


def assert_same_time(first: Callable[[int], object], second: Callable[[int], object]) -> None:
    """Check that two requests take the same time, as far as it can be measured on a machine that is busy."""
    found = [ratio(first, second) for _ in range(3)]
    best, noise = min(found, key=lambda pair: abs(pair[0] - 1))
    assert 1 / 1.25 < best < 1.25 or 1 / (1.1 * noise) < best < min(1.1 * noise, MAX_SLOWDOWN), found


@pytest.mark.parametrize(
    "kind", ["manifests/latest", "manifests/NEW", "manifests/DIGEST", "blobs/DIGEST", "tags/list", "referrers/DIGEST"]
)
def test_a_hidden_repository_takes_the_time_of_an_unknown_one(gated: Gated, kind: str) -> None:
    """The first time that a tag is requested, and again and again."""
    image = gated.images["hidden"]
    digest = image.layers[0] if "blobs" in kind else image.digest
    tags = itertools.count()

    def send(repo: str) -> Response:
        path = kind.replace("DIGEST", digest).replace("NEW", f"v{next(tags)}")
        return gated.send(f"/v2/up.test/{repo}/{path}", BOB)

    assert_same_time(lambda _: send("team/hidden"), lambda _: send("team/absent"))


def test_a_cached_blob_of_another_repository_takes_the_time_of_an_unknown_one(gated: Gated) -> None:
    """So that nobody can find out which blobs are cached here."""
    digest = gated.images["app"].layers[0]
    for method in ("GET", "HEAD"):
        assert_same_time(
            lambda _, method=method: gated.send(f"/v2/up.test/open/app/blobs/{digest}", None, method),  # type: ignore[misc]
            lambda _, method=method: gated.send(f"/v2/up.test/open/app/blobs/{NO_DIGEST}", None, method),  # type: ignore[misc]
        )


# The audit log


def test_every_decision_is_in_the_audit_log(tmp_path: Path) -> None:
    """One line each; no line has a credential."""
    with open_gated(tmp_path) as gated:
        for path, login in [
            (f"/v2/{NAME}/manifests/latest", None),
            (f"/v2/{NAME}/manifests/latest", WRONG),
            (f"/v2/{NAME}/tags/list", BOB),
            ("/v2/up.test/team/closed/manifests/latest", BOB),
            ("/v2/up.test/team/hidden/manifests/latest", BOB),
            (f"/v2/up.test/open/app/blobs/{NO_DIGEST}", None),
            ("/v2/", BOB),
            ("/metrics", None),
        ]:
            gated.send(path, login)
        deployment = gated.deployment
        metrics = gated.send("/metrics", ANN).body.decode()
        deployment.dockyard.stop()
        lines = [json.loads(line) for line in gated.audit.read_text().splitlines()]
        lines = [
            line for line in lines if line["who"] == "bob" or line["verdict"] != "allowed" or "status" in line["kind"]
        ]
        found = sorted((line["verdict"], line["who"], line["kind"], line["rule"]) for line in lines)
        assert found == sorted(
            [
                ("login required", "anonymous", "manifest", "default"),
                ("wrong login", "anonymous", "manifest", "login"),
                ("allowed", "bob", "tags", "rules[3]"),
                ("denied", "bob", "manifest", "rules[1]"),
                ("hidden", "bob", "manifest", "rules[0]"),
                ("unknown", "anonymous", "blob", "links"),
                ("allowed", "bob", "api", "none"),
                ("login required", "anonymous", "status", "rules[4]"),
                ("allowed", "ann", "status", "rules[5]"),
            ]
        )
        assert all(line["address"] == "127.0.0.1" for line in lines)
        assert 'dockyard_access_decisions_total{rule="rules[0]",verdict="hidden"} 1.0' in metrics
        text = gated.audit.read_text() + deployment.dockyard.read_log()
        for login in (ANN, BOB, WRONG):
            assert login.removeprefix("Basic ") not in text
        assert "user=bob" in deployment.dockyard.read_log()


def test_the_logs_have_the_address_behind_a_proxy(tmp_path: Path) -> None:
    """The one that the trusted proxy has seen, not one that the client has sent; of rejected requests too."""
    with open_gated(tmp_path, server={"trusted_proxies": ["127.0.0.0/8"]}) as gated:
        hops = {"X_Forwarded_For": "192.0.2.66, 192.0.2.9"}
        assert gated.send("/v2/up.test/team/closed/manifests/latest", BOB, **hops).status == 403
        assert gated.send("/v2/up.test/%00/manifests/latest", BOB, **hops).status == 400
        gated.deployment.dockyard.stop()
        log = gated.deployment.dockyard.read_log()
        denied = json.loads(next(line for line in gated.audit.read_text().splitlines() if '"denied"' in line))
    assert denied["address"] == "192.0.2.9"
    (line,) = [line for line in log.splitlines() if "status=403" in line]
    assert "user=bob" in line
    assert "client=192.0.2.9" in line
    (line,) = [line for line in log.splitlines() if "status=400" in line]
    assert "client=192.0.2.9" in line
    assert "192.0.2.66" not in log


def test_a_registry_that_responds_to_every_name_gives_nothing_of_a_hidden_one(tmp_path: Path) -> None:
    """Registries list the tags of unknown repositories as empty; some serve one repository under every name."""
    with open_gated(tmp_path) as gated:
        fake_registry = gated.deployment.fake_registry
        fake_registry.on(
            None, replaced(200, b'{"name": "x", "tags": []}', JSON), when=lambda request: "tags/list" in request.path
        )
        hidden, unknown = (gated.send(f"/v2/up.test/team/{name}/tags/list", BOB) for name in ("hidden", "absent"))
        assert compared(hidden, "team/hidden") == compared(unknown, "team/absent")
        assert hidden.json["tags"] == []

        image = gated.images["hidden"]
        fake_registry.remove_rules()
        fake_registry.on("manifest", replaced(200, image.body, ("Content-Type", image.media_type)))
        fake_registry.on(
            None, replaced(200, b'{"name": "x", "tags": ["v-secret-tag"]}', JSON), when=lambda req: "tags" in req.path
        )
        for path in paths_of(image):
            assert_no_secret(gated, gated.send(path, BOB), path)
            assert image.body not in gated.send(path, BOB).body

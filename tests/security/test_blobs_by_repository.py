"""Blobs only through a repository that has them: what clients get that may pull one repository, and not another.

Insiders may pull everything: they have another address, which a trusted proxy reports. Strangers may pull what is below
`up.test/open`. The registry has the blobs of each image in its own repository only.
"""

import contextlib
import json
import math
import random
import shutil
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.support import faults
from tests.support.bodies import Synthetic, digest_of
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry, Image
from tests.support.http_client import Response, StreamedResponse

RESTRICTED: dict[str, Any] = {
    "server": {"trusted_proxies": ["127.0.0.1"]},
    "access": {
        "networks": [{"name": "inside", "addresses": ["192.0.2.1"]}],
        "rules": [
            {"allow": True, "repositories": ["up.test/open/**"]},
            {"allow": True, "who": ["network:inside"]},
        ],
    },
}
INSIDER = {"X_Forwarded_For": "192.0.2.1"}
SECRET, OPEN = "up.test/secret/app", "up.test/open/app"
HELD_BYTES = 4 * 1024 * 1024
NOWHERE = digest_of(b"nobody has this")


def blob_path(digest: str, name: str = OPEN) -> str:
    """The path of a blob."""
    return f"/v2/{name}/blobs/{digest}"


def add_image(fake_registry: FakeRegistry, name: str, *layers: bytes | Synthetic) -> Image:
    """Add an image whose blobs are in one repository only."""
    repo = name.removeprefix("up.test/")
    image = fake_registry.add_image(repo, "v1", layers)
    for digest in (image.config, *image.layers):
        body, _ = fake_registry._blobs[digest]
        fake_registry.add_blob(body, repos=[repo])
    return image


def pull(deployment: Deployment, image: Image, name: str, **headers: str) -> None:
    """Pull an image."""
    assert deployment.get(f"/v2/{name}/manifests/{image.digest}", **headers).status == 200
    for digest in (image.config, *image.layers):
        response = deployment.get(blob_path(digest, name), **headers)
        assert (response.status, digest_of(response.body)) == (200, digest)


def restrict(deployment: Deployment) -> None:
    """Start the server again with rules."""
    deployment.dockyard.stop()
    settings = deployment.dockyard.settings
    deployment.dockyard.settings = {
        **settings,
        "server": {**settings["server"], **RESTRICTED["server"]},
        "access": RESTRICTED["access"],
    }
    deployment.dockyard.start()


def seen(response: Response) -> tuple[int, list[tuple[str, str]], bytes]:
    """All that a client sees of a response but its time."""
    headers = sorted((name.lower(), value) for name, value in response.headers if name.lower() != "date")
    return response.status, headers, response.body


@contextlib.contextmanager
def downloading(
    deployment: Deployment, fake_registry: FakeRegistry, digests: Sequence[str], name: str
) -> Iterator[None]:
    """Keep downloads of blobs for insiders running, half of each received."""
    with contextlib.ExitStack() as clients, set_at_exit(threading.Event()) as go_on:
        for digest in digests:
            fake_registry.on("blob", faults.stalled(0.5, go_on), reference=digest, method="GET")
            path = blob_path(digest, name)
            client = clients.enter_context(deployment.stream(path, **INSIDER))
            assert isinstance(client, StreamedResponse)
            assert client.head().status == 200
        yield


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def deployment(request: pytest.FixtureRequest, make_deployment: Callable[..., Deployment]) -> Deployment:
    """A Dockyard with rules."""
    return make_deployment(workers=request.param, **RESTRICTED)


REQUESTS: list[tuple[str, dict[str, str]]] = [
    ("GET", {}),
    ("HEAD", {}),
    ("GET", {"Range": "bytes=0-0"}),
    ("GET", {"Range": "bytes=5-1,x"}),
    ("GET", {"Range": "bytes=99999999999-"}),
    ("GET", {"If_None_Match": "*"}),
    ("GET", {"If_None_Match": '"DIGEST"'}),
    ("HEAD", {"If_None_Match": '"DIGEST"'}),
    ("GET", {"If_Range": '"DIGEST"', "Range": "bytes=0-0"}),
]
PATHS = [
    "/v2/up.test/open/app/blobs/{}",
    "/v2/open/app/blobs/{}?ns=up.test",
    "/up.test/v2/open/app/blobs/{}",
    "/v2/up.test/open/other/blobs/{}",
    "/v2/up.test/open/secret/app/blobs/{}",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_stranger_gets_what_one_gets_for_a_blob_that_nobody_has(
    deployment: Deployment, fake_registry: FakeRegistry, path: str
) -> None:
    """Whether it is stored or being downloaded, for each kind of request: the same bytes."""
    mine = add_image(fake_registry, OPEN, b"my layer")
    stored = add_image(fake_registry, SECRET, b"secret layer")
    held = add_image(fake_registry, f"{SECRET}2", Synthetic(HELD_BYTES))
    pull(deployment, mine, OPEN)
    pull(deployment, stored, SECRET, **INSIDER)
    assert deployment.get(f"/v2/{SECRET}2/manifests/{held.digest}", **INSIDER).status == 200
    with downloading(deployment, fake_registry, held.layers, f"{SECRET}2"):
        for method, headers in REQUESTS:
            for digest in (*stored.layers, *held.layers, stored.config, stored.digest):

                def ask(about: str, method: str = method, headers: dict[str, str] = headers) -> Response:
                    named = {key: value.replace("DIGEST", about) for key, value in headers.items()}
                    return deployment.request(method, path.format(about), **named)

                expected = ask(NOWHERE)
                assert expected.status == 404
                assert [seen(ask(digest)) for _ in range(2)] == [seen(expected)] * 2
    assert fake_registry.count("blob", "GET", repo="open/app") == len((mine.config, *mine.layers))


@pytest.mark.parametrize("kind", ["upper case", "encoded colon", "encoded digit", "sha512", "short"])
def test_other_forms_of_the_digest_give_a_stranger_nothing(deployment: Deployment, kind: str) -> None:
    """The response does not depend on whether the blob is stored."""
    fake_registry = deployment.fake_registry
    stored = add_image(fake_registry, SECRET, b"secret layer")
    pull(deployment, stored, SECRET, **INSIDER)

    def write(digest: str) -> str:
        algorithm, _, encoded = digest.partition(":")
        return {
            "upper case": f"{algorithm}:{encoded.upper()}",
            "encoded colon": f"{algorithm}%3A{encoded}",
            "encoded digit": f"{algorithm}:%{ord(encoded[0]):02x}{encoded[1:]}",
            "sha512": f"sha512:{encoded * 2}",
            "short": f"{algorithm}:{encoded[:-1]}",
        }[kind]

    responses = [deployment.get(blob_path(write(digest))) for digest in (stored.layers[0], NOWHERE)]
    assert responses[0].status in (400, 404)
    messages = [
        seen(each)[2].replace(write(digest).encode(), b"")
        for each, digest in zip(responses, (stored.layers[0], NOWHERE), strict=True)
    ]
    assert messages[0] == messages[1]
    assert responses[0].status == responses[1].status


def test_a_manifest_gives_access_to_its_blobs_in_its_own_repository(deployment: Deployment) -> None:
    """Two repositories share a layer: each client gets it through the repository that it may pull."""
    fake_registry = deployment.fake_registry
    shared = b"shared layer"
    mine = fake_registry.add_image("open/app", "v1", [shared])
    secret = fake_registry.add_image("secret/app", "v1", [shared])
    pull(deployment, secret, SECRET, **INSIDER)
    pull(deployment, mine, OPEN)
    assert deployment.get(blob_path(mine.layers[0], SECRET)).status in (401, 403)
    assert fake_registry.count("blob", "GET", reference=mine.layers[0]) == 1, "one copy"


def test_what_was_cached_before_access_was_restricted_is_served_without_the_upstream(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """By the manifests in the local store; and under its own repository only."""
    mine = add_image(fake_registry, OPEN, b"my layer")
    stored = add_image(fake_registry, SECRET, b"secret layer")
    deployment = make_deployment(workers=2)
    pull(deployment, mine, OPEN)
    pull(deployment, stored, SECRET)
    restrict(deployment)
    assert deployment.get(blob_path(stored.layers[0])).status == 404
    fake_registry.listener.close()
    for digest in (mine.config, *mine.layers):  # no manifest was asked for since the start
        assert deployment.get(blob_path(digest)).status == 200
        assert deployment.head(blob_path(digest)).status == 200
    for digest in stored.layers:
        assert deployment.get(blob_path(digest, SECRET), **INSIDER).status == 200


def test_while_the_upstream_is_down_a_stranger_gets_the_same_error_for_all_blobs(
    deployment: Deployment, fake_registry: FakeRegistry
) -> None:
    """Whoever may pull a repository gets its blobs meanwhile."""
    mine = add_image(fake_registry, OPEN, b"my layer")
    stored = add_image(fake_registry, SECRET, b"secret layer")
    pull(deployment, mine, OPEN)
    pull(deployment, stored, SECRET, **INSIDER)
    fake_registry.listener.close()
    eventually(lambda: deployment.get(blob_path(NOWHERE)).status == 503, "the upstream is down")
    for method in ("GET", "HEAD"):
        responses = [deployment.request(method, blob_path(digest)) for digest in (NOWHERE, stored.layers[0])]
        assert [response.status for response in responses] == [503, 503]
        assert responses[0].body == responses[1].body
    pull(deployment, mine, OPEN)
    assert deployment.get(blob_path(stored.layers[0], SECRET), **INSIDER).status == 200


def test_a_cache_that_is_deleted_while_running_gives_nobody_more(
    deployment: Deployment, fake_registry: FakeRegistry
) -> None:
    """What clients may pull is fetched again."""
    mine = add_image(fake_registry, OPEN, b"my layer")
    stored = add_image(fake_registry, SECRET, b"secret layer")
    for _ in range(2):
        pull(deployment, mine, OPEN)
        pull(deployment, stored, SECRET, **INSIDER)
        assert deployment.get(blob_path(stored.layers[0])).status == 404
        shutil.rmtree(deployment.dockyard.storage / "cache", ignore_errors=True)  # workers create it again
        assert deployment.get(blob_path(stored.layers[0])).status == 404
        assert deployment.get(blob_path(mine.layers[0])).status == 200


def test_a_manifest_that_its_registry_did_not_check_gives_access_to_nothing(
    deployment: Deployment, fake_registry: FakeRegistry
) -> None:
    """Whoever may push to the open repository knows the digest of a secret layer."""
    stored = add_image(fake_registry, SECRET, b"secret layer")
    pull(deployment, stored, SECRET, **INSIDER)
    (secret,) = stored.layers
    mine = add_image(fake_registry, OPEN, b"my layer")
    document = fake_registry.manifest_body("open/app", "v1")
    descriptor = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": secret, "size": 12}
    image = json.loads(document)
    tricks = {
        "blobs": image | {"blobs": [descriptor]},
        "urls": image | {"layers": [descriptor | {"urls": ["https://example.com/x"]}]},
        "case": image | {"layers": [descriptor], "Layers": image["layers"]},
        "digest": image | {"layers": [descriptor | {"Digest": mine.layers[0]}]},
        "subject": image | {"subject": descriptor},
        "index": {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor],
        },
    }
    for tag, trick in tricks.items():
        fake_registry.add_manifest("open/app", tag, trick, trick["mediaType"])
        assert deployment.get(f"/v2/{OPEN}/manifests/{tag}").status == 200
        assert deployment.get(blob_path(secret)).status == 404, tag


# Times

ROUNDS = 120
HELD = 12
# Two times that differ by chance only: one is larger in so many of ROUNDS pairs once in a million tests.
MAX_SIGN_DEVIATION = 4.9


def is_noise(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether the times of two kinds of requests, measured in pairs, differ by chance only (sign test)."""
    larger = sum(one > other for one, other in pairs)
    deviation = abs(larger - len(pairs) / 2) / math.sqrt(len(pairs) / 4)
    differences = statistics.median(one - other for one, other in pairs)
    # A difference that is seen on every machine, but is too small to be seen through a network, counts as well.
    return deviation < MAX_SIGN_DEVIATION or abs(differences) < 20e-6


@pytest.mark.parametrize("is_remembered", [False, True], ids=["first questions", "repeated"])
def test_the_time_does_not_tell_what_is_stored_or_being_downloaded(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, *, is_remembered: bool
) -> None:
    """Pairs of requests in random order, one for a blob that is there and one for a blob that nobody has."""
    deployment = make_deployment(workers=1, **RESTRICTED)
    layers = [b"secret layer %d" % number for number in range(ROUNDS)]
    stored = add_image(fake_registry, SECRET, *layers)
    held = add_image(fake_registry, f"{SECRET}2", *(Synthetic(HELD_BYTES, first=number) for number in range(HELD)))
    pull(deployment, stored, SECRET, **INSIDER)
    assert deployment.get(f"/v2/{SECRET}2/manifests/{held.digest}", **INSIDER).status == 200
    order = random.Random(1)
    unknown = iter(digest_of(b"nobody has %d" % number) for number in range(10 * ROUNDS))

    def measure(there: Sequence[str]) -> list[tuple[float, float]]:
        pairs = []
        for digest in there:
            asked = [digest, next(unknown)]
            if is_remembered:
                for each in asked:
                    deployment.get(blob_path(each))
            order.shuffle(asked)
            took = {each: deployment.get(blob_path(each)).took_s for each in asked}
            pairs.append((took.pop(digest), *took.values()))
        return pairs

    pull(deployment, add_image(fake_registry, OPEN, b"my layer"), OPEN)
    measure([digest_of(b"warm up %d" % number) for number in range(20)])
    with downloading(deployment, fake_registry, held.layers, f"{SECRET}2"):
        assert is_noise(measure([*held.layers, *stored.layers]))

"""No request is answered with the response to another one: interim responses, and bytes after a response."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import faults
from tests.support.deployment import Deployment
from tests.support.fake_registry import FakeRegistry, Image

EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </s>; rel=preload\r\n\r\n"
INTERIM = {
    "103": EARLY_HINTS,
    "102": b"HTTP/1.1 102 Processing\r\n\r\n",
    "100": b"HTTP/1.1 100 Continue\r\n\r\n",
    "several": EARLY_HINTS * 5,
    "with a length": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n",
}


@pytest.fixture
def go_on() -> Iterator[threading.Event]:
    """Set when the delayed final response is to be sent."""
    event = threading.Event()
    yield event
    event.set()


def assert_served(deployment: Deployment, image: Image) -> None:
    """The tag has this image, fresh, and its layers have their bytes."""
    response = deployment.get(f"/v2/up.test/{image.repo}/manifests/{image.tag}")
    assert (response.status, response.header("Docker-Content-Digest")) == (200, image.digest)
    assert response.body == image.body
    assert response.header("Warning") is None


@pytest.mark.parametrize("head", INTERIM.values(), ids=INTERIM)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_an_interim_response_is_not_the_final_one(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    go_on: threading.Event,
    head: bytes,
    method: str,
) -> None:
    """The final response comes later: meanwhile other tags are asked for, each gets its own image."""
    images = [fake_registry.add_image("org/app", f"v{number}", [b"layer %d" % number]) for number in range(3)]
    fake_registry.on("manifest", faults.interim(head, go_on), method=method, times=1)
    deployment = make_deployment(upstream={"check_timeout": "10s"})
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(assert_served, deployment, images[0])
        fake_registry.wait_for(lambda: fake_registry.count("manifest", method) >= 1, "the request has arrived")
        for image in images[1:]:
            assert_served(deployment, image)
        go_on.set()
        first.result()
    for image in images:
        assert_served(deployment, image)
    assert [fake_registry.count("manifest", "GET", reference=image.digest) for image in images] == [1, 1, 1]


def test_no_image_is_confused_under_load(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Every fifth response of the upstream has an interim response and is late; two workers, 20 tags."""
    images = [fake_registry.add_image("org/app", f"v{number}", [b"layer %d" % number]) for number in range(20)]
    numbers = itertools.count()
    late = faults.interim(EARLY_HINTS, None)
    slow_headers = faults.slow_headers(0.0002)
    fake_registry.on(
        None,
        lambda request, response: slow_headers(request, late(request, response)),
        when=lambda _: not next(numbers) % 5,
    )
    deployment = make_deployment(workers=2)
    with ThreadPoolExecutor(10) as pool:
        for _ in pool.map(lambda number: assert_served(deployment, images[number % 20]), range(400)):
            pass
    assert next(numbers) > 100, "requests of several clients share a check, but the upstream was asked"


def test_a_blob_after_an_interim_response_is_whole(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Blobs and their ranges, when a download is resumed, have interim responses too."""
    content = os.urandom(300_000)
    digest = fake_registry.add_blob(content)
    fake_registry.on("blob", faults.interim(EARLY_HINTS))
    fake_registry.on("blob", faults.cut(100_000), times=1)
    response = make_deployment().get(f"/v2/up.test/org/app/blobs/{digest}")
    assert (response.status, response.is_complete, response.body == content) == (200, True, True)
    assert fake_registry.count("blob", "GET") == 2


@pytest.mark.parametrize("after", ["a body after the response to HEAD", "a response that nobody asked for", "noise"])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_bytes_after_a_response_belong_to_no_other(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, after: str, method: str
) -> None:
    """What comes after a response is not read as the response to the next request."""
    images = [fake_registry.add_image("org/app", f"v{number}", [b"layer %d" % number]) for number in range(2)]
    other = images[0].body
    extra = {
        "a body after the response to HEAD": other,
        "a response that nobody asked for": b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s"
        % (images[0].media_type.encode(), len(other), other),
        "noise": b"\0" * 10,
    }[after]
    fake_registry.on("manifest", faults.trailing(extra), method=method)
    deployment = make_deployment()
    for _ in range(3):
        for image in images:
            assert_served(deployment, image)

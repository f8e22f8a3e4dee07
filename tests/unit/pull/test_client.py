"""Reading blobs and manifests for `dockyard pull` from a faulty server."""

import json
from collections.abc import Callable, Iterator

import pytest

from dockyard.oci.reference import Digest, Tag
from dockyard.pull import retries
from dockyard.pull.client import DockyardClient, FetchedBlob
from dockyard.pull.images import Image, parse_image
from dockyard.pull.output import QuietOutput
from dockyard.pull.platforms import Platform
from dockyard.pull.retries import PullError
from dockyard.pull.warm import ImageResult, warm
from tests.support import faults
from tests.support.bodies import Synthetic
from tests.support.fake_registry import Change, FakeRegistry

LAYER = Synthetic(3_000_000)


@pytest.fixture
def fake_registry() -> Iterator[FakeRegistry]:
    """A registry with one large layer, in place of Dockyard."""
    with FakeRegistry() as fake_registry:
        fake_registry.add_blob(LAYER)
        yield fake_registry


@pytest.fixture
def client(fake_registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[DockyardClient]:
    """A client with short pauses between attempts."""
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.001)
    client = DockyardClient(fake_registry.url, 4)
    yield client
    client.close()


def read(
    client: DockyardClient, on_progress: Callable[[int, int | None], None] = lambda received, total: None
) -> FetchedBlob:
    """Read the layer."""
    return client.read_blob(parse_image("ghcr.io/org/app", "x"), Digest.parse(LAYER.digest), on_progress)


def test_a_blob_is_read_with_one_request(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """And progress is reported up to the last byte."""
    calls: list[tuple[int, int | None]] = []

    assert read(client, lambda *progress: calls.append(progress)) == FetchedBlob(LAYER.size, "", 1)

    assert fake_registry.count("blob") == 1
    assert (calls[0], calls[-1]) == ((0, LAYER.size), (LAYER.size, LAYER.size))


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_truncated_body_is_resumed_at_the_byte_reached(
    fake_registry: FakeRegistry, client: DockyardClient, how: str
) -> None:
    """By a range request for the rest."""
    fake_registry.on("blob", faults.cut(1_000_000, "fin" if how == "fin" else "rst"), times=1)

    assert read(client).attempts == 2

    first, second = fake_registry.received("blob")
    assert first.request.header("Range") is None
    start = int((second.request.header("Range") or "").removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 1_000_000
    if how == "fin":
        assert start == 1_000_000


def test_a_response_that_ignores_the_range_restarts_the_blob(
    fake_registry: FakeRegistry, client: DockyardClient
) -> None:
    """The digest is computed over the second response only."""
    fake_registry.on("blob", faults.cut(0.5), times=1)
    fake_registry.on("blob", faults.ignoring_range())

    assert read(client) == FetchedBlob(LAYER.size, "", 2)


def test_a_body_that_is_always_truncated_fails(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """After the attempts that are allowed without progress."""
    fake_registry.on("blob", faults.cut_at_offset(1000))

    with pytest.raises(PullError, match="connection lost"):
        read(client)

    assert fake_registry.count("blob") == retries.MAX_ATTEMPTS


def test_a_blob_with_wrong_content_fails(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """Each attempt starts at the first byte."""
    fake_registry.on("blob", faults.flipped(5))

    with pytest.raises(PullError, match="does not match the digest"):
        read(client)

    assert [exchange.request.header("Range") for exchange in fake_registry.received("blob")] == [None, None]


def test_the_target_of_a_redirect_is_sent_as_it_came(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """The signature of a presigned URL covers it."""
    target = "/bucket/a%2fb/../c?X-Amz-Signature=ab%2Fcd|[1]%"
    fake_registry.on("blob", faults.redirected(target))
    with pytest.raises(PullError):
        read(client)
    assert fake_registry.received()[1].request.target == target


def test_a_redirect_to_a_bucket_is_followed(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """Dockyard with `storage.redirect` sends one."""
    fake_registry.listen("bucket")
    where = fake_registry.presign(LAYER.digest, listener="bucket")
    fake_registry.on("blob", faults.redirected(where), listener="registry")

    assert read(client).size == LAYER.size


@pytest.mark.parametrize(
    ("change", "times", "message"),
    [
        (faults.error_response(404, "BLOB_UNKNOWN"), 1, "404 BLOB_UNKNOWN: message from the upstream"),
        (faults.error_response(403, "DENIED"), 1, "403 DENIED: message from the upstream"),
        (faults.error_response(503, "UNAVAILABLE", "0"), 2, "503 UNAVAILABLE: message from the upstream"),
        (
            faults.error_response(429, "TOOMANYREQUESTS", "60"),
            1,
            "429 TOOMANYREQUESTS: message from the upstream (retry after 60 s)",
        ),
        (faults.replaced(500, b"<html>"), 2, "500"),
        (
            faults.replaced(403, json.dumps({"errors": [{"code": "DENIED", "message": "\x1b[31mred\nline"}]}).encode()),
            1,
            "403 DENIED:  [31mred line",
        ),
        (faults.replaced(401), 1, "401"),
        (faults.redirected("/v2/again"), 1, "404"),
    ],
)
def test_an_error_response_is_reported_with_its_message(
    fake_registry: FakeRegistry, client: DockyardClient, change: Change, times: int, message: str
) -> None:
    """With status, code and message; and it is retried only if its status is temporary."""
    fake_registry.on("blob", change)

    with pytest.raises(PullError) as caught:
        read(client)

    assert caught.value.message.startswith(message)
    assert fake_registry.count("blob") == times


def test_a_temporary_error_is_retried(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """Such as one 503."""
    fake_registry.on("blob", faults.error_response(503), times=1)

    assert read(client).attempts == 2


def test_a_manifest_with_another_digest_is_rejected(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """If it was requested by digest."""
    image = fake_registry.add_image("ghcr.io/org/app", "latest")
    fake_registry.on("manifest", faults.with_body(b" " * len(image.body)))

    with pytest.raises(PullError, match="with digest"):
        client.read_manifest(parse_image("ghcr.io/org/app", "x"), Digest.parse(image.digest))


def test_the_error_for_an_unreachable_server_has_its_url() -> None:
    """And the reason."""
    client = DockyardClient("http://127.0.0.1:9", 1)

    with pytest.raises(PullError, match=r"^no Dockyard at http://127\.0\.0\.1:9: .*refused"):
        client.check()


def test_a_registry_with_a_port_is_sent_as_ns(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """Because a name cannot contain a port."""
    fake_registry.add_image("team/app", "v1")

    client.read_manifest(parse_image("reg.example:5000/team/app:v1", "x"), Tag("v1"))

    assert [exchange.request.target for exchange in fake_registry.received("manifest")] == [
        "/v2/team/app/manifests/v1?ns=reg.example%3A5000"
    ]


def warm_images(client: DockyardClient, *images: str) -> list[ImageResult]:
    """Read images for one platform."""
    parsed: list[Image] = [parse_image(text, "x") for text in images]
    return warm(client, parsed, [Platform("linux", "amd64")], 4, QuietOutput())


def test_a_shared_layer_is_read_once(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """For all images of one call."""
    images = [fake_registry.add_image(f"ghcr.io/org/{name}", "latest", [LAYER, name.encode()]) for name in "abc"]

    results = warm_images(client, *(image.repo for image in images))

    assert [result.is_warm for result in results] == [True] * 3
    assert fake_registry.count("blob", reference=LAYER.digest) == 1


def test_a_shared_layer_is_read_under_another_name_if_the_first_fails(
    fake_registry: FakeRegistry, client: DockyardClient
) -> None:
    """The upstream of the other image may have it."""
    for name in "ab":
        fake_registry.add_image(f"ghcr.io/org/{name}", "latest", [LAYER])
    fake_registry.on("blob", faults.error_response(404), reference=LAYER.digest, repo="ghcr.io/org/a")

    assert [result.is_warm for result in warm_images(client, "ghcr.io/org/a", "ghcr.io/org/b")] == [True, True]


def test_an_image_that_fails_does_not_fail_others(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """Their blobs are read."""
    good, bad = (fake_registry.add_image(f"ghcr.io/org/{name}", "latest", [name.encode()]) for name in ("good", "bad"))
    fake_registry.on("blob", faults.error_response(404), reference=bad.layers[0])

    results = warm_images(client, good.repo, bad.repo, "ghcr.io/org/none")

    assert [result.is_warm for result in results] == [True, False, False]
    assert results[1].errors == (f"{bad.layers[0]}: 404 UNKNOWN: message from the upstream",)


def test_deeply_nested_indexes_are_an_error(fake_registry: FakeRegistry, client: DockyardClient) -> None:
    """Indexes in indexes are read up to a limit."""
    inner = fake_registry.add_index("ghcr.io/org/deep", None, [fake_registry.add_image("ghcr.io/org/deep", None)])
    for _ in range(3):
        inner = fake_registry.add_index("ghcr.io/org/deep", "latest", [inner])

    (read,) = warm_images(client, "ghcr.io/org/deep")

    assert read.errors == ("linux/amd64: indexes are nested more than 3 deep",)

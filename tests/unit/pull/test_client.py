"""Reading blobs and manifests for `dockyard pull`, from a server that misbehaves in every way."""

from collections.abc import Callable, Iterator

import pytest

from dockyard.oci.reference import Digest, Tag
from dockyard.pull import tries
from dockyard.pull.client import Client, Read
from dockyard.pull.images import Image, parse_image
from dockyard.pull.platforms import Platform
from dockyard.pull.show import Quiet
from dockyard.pull.tries import Failed
from dockyard.pull.warm import ImageRead, Order, warm
from tests.support import faults
from tests.support.bodies import Synthetic
from tests.support.fake_registry import Change, FakeRegistry

LAYER = Synthetic(3_000_000)


@pytest.fixture
def fake_registry() -> Iterator[FakeRegistry]:
    """What stands for Dockyard: a registry with one large layer."""
    with FakeRegistry() as fake_registry:
        fake_registry.add_blob(LAYER)
        yield fake_registry


@pytest.fixture
def client(fake_registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client that does not wait long."""
    monkeypatch.setattr(tries, "PAUSE_S", 0.001)
    client = Client(fake_registry.url, 4)
    yield client
    client.close()


def read(client: Client, said: Callable[[int, int | None], None] = lambda reached, total: None) -> Read:
    """The layer, read."""
    return client.read_blob(parse_image("ghcr.io/org/app", "x"), Digest.parse(LAYER.digest), said)


def test_a_blob_is_read_in_one_go(fake_registry: FakeRegistry, client: Client) -> None:
    """One request, and progress up to the last byte."""
    reached: list[tuple[int, int | None]] = []

    assert read(client, lambda *place: reached.append(place)) == Read(LAYER.size, "", 1)

    assert fake_registry.count("blob") == 1
    assert (reached[0], reached[-1]) == ((0, LAYER.size), (LAYER.size, LAYER.size))


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_cut_body_is_resumed_where_it_broke(fake_registry: FakeRegistry, client: Client, how: str) -> None:
    """No byte is asked for twice."""
    fake_registry.on("blob", faults.cut(1_000_000, "fin" if how == "fin" else "rst"), times=1)

    assert read(client).tries == 2

    first, second = fake_registry.received("blob")
    assert first.request.header("Range") is None
    start = int((second.request.header("Range") or "").removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= 1_000_000
    if how == "fin":
        assert start == 1_000_000


def test_a_range_that_is_ignored_begins_anew(fake_registry: FakeRegistry, client: Client) -> None:
    """The digest is that of the whole, not of both pieces."""
    fake_registry.on("blob", faults.cut(0.5), times=1)
    fake_registry.on("blob", faults.ignoring_range())

    assert read(client) == Read(LAYER.size, "", 2)


def test_a_body_that_goes_on_breaking_is_given_up(fake_registry: FakeRegistry, client: Client) -> None:
    """Tries that bring nothing are counted."""
    fake_registry.on("blob", faults.cut_at_offset(1000))

    with pytest.raises(Failed, match="connection broke"):
        read(client)

    assert fake_registry.count("blob") == tries.TRIES_IN_A_ROW


def test_wrong_bytes_are_never_called_warm(fake_registry: FakeRegistry, client: Client) -> None:
    """Every try begins at the first byte again."""
    fake_registry.on("blob", faults.flipped(5))

    with pytest.raises(Failed, match="do not have this digest"):
        read(client)

    assert [exchange.request.header("Range") for exchange in fake_registry.received("blob")] == [None, None]


def test_a_redirect_to_a_bucket_is_followed(fake_registry: FakeRegistry, client: Client) -> None:
    """A Dockyard with `storage.redirect` sends its clients there."""
    fake_registry.listen("bucket")
    where = fake_registry.presign(LAYER.digest, listener="bucket")
    fake_registry.on("blob", faults.redirected(where), listener="registry")

    assert read(client).size == LAYER.size


@pytest.mark.parametrize(
    ("change", "times", "words"),
    [
        (faults.error_response(404, "BLOB_UNKNOWN"), 1, "404 BLOB_UNKNOWN: said the upstream"),
        (faults.error_response(403, "DENIED"), 1, "403 DENIED: said the upstream"),
        (faults.error_response(503, "UNAVAILABLE", "0"), 2, "503 UNAVAILABLE: said the upstream"),
        (
            faults.error_response(429, "TOOMANYREQUESTS", "60"),
            1,
            "429 TOOMANYREQUESTS: said the upstream (it says: again in 60 s)",
        ),
        (faults.replaced(500, b"<html>"), 2, "500"),
        (faults.replaced(401), 1, "401"),
        (faults.redirected("/v2/again"), 1, "404"),
    ],
)
def test_a_refusal_is_told_in_its_own_words(
    fake_registry: FakeRegistry, client: Client, change: Change, times: int, words: str
) -> None:
    """Status, code and message; and it is asked again only where that may help."""
    fake_registry.on("blob", change)

    with pytest.raises(Failed) as caught:
        read(client)

    assert caught.value.message.startswith(words)
    assert fake_registry.count("blob") == times


def test_a_server_that_recovers_is_asked_again(fake_registry: FakeRegistry, client: Client) -> None:
    """One 503 is not the end."""
    fake_registry.on("blob", faults.error_response(503), times=1)

    assert read(client).tries == 2


def test_a_manifest_must_be_what_its_digest_says(fake_registry: FakeRegistry, client: Client) -> None:
    """A manifest by digest is checked against it."""
    image = fake_registry.add_image("ghcr.io/org/app", "latest")
    fake_registry.on("manifest", faults.with_body(b" " * len(image.body)))

    with pytest.raises(Failed, match="with digest"):
        client.read_manifest(parse_image("ghcr.io/org/app", "x"), Digest.parse(image.digest))


def test_a_server_that_is_not_there_is_named() -> None:
    """The first words say what to look at."""
    client = Client("http://127.0.0.1:9", 1)

    with pytest.raises(Failed, match=r"^no Dockyard at http://127\.0\.0\.1:9: .*refused"):
        client.check()


def test_a_registry_with_a_port_is_named_by_ns(fake_registry: FakeRegistry, client: Client) -> None:
    """A name cannot hold a port."""
    fake_registry.add_image("team/app", "v1")

    client.read_manifest(parse_image("reg.example:5000/team/app:v1", "x"), Tag("v1"))

    assert [exchange.request.target for exchange in fake_registry.received("manifest")] == [
        "/v2/team/app/manifests/v1?ns=reg.example%3A5000"
    ]


def ordered(client: Client, *images: str) -> list[ImageRead]:
    """Images, read for one platform."""
    found: tuple[Image, ...] = tuple(parse_image(text, "x") for text in images)
    return warm(client, Order(found, (Platform("linux", "amd64"),), 4), Quiet())


def test_a_layer_that_images_share_is_read_once(fake_registry: FakeRegistry, client: Client) -> None:
    """Over all images of an order."""
    images = [fake_registry.add_image(f"ghcr.io/org/{name}", "latest", [LAYER, name.encode()]) for name in "abc"]

    reads = ordered(client, *(image.repo for image in images))

    assert [read.is_warm for read in reads] == [True] * 3
    assert fake_registry.count("blob", reference=LAYER.digest) == 1


def test_a_shared_layer_is_tried_under_the_other_names(fake_registry: FakeRegistry, client: Client) -> None:
    """An image is not cold because another one's upstream is."""
    for name in "ab":
        fake_registry.add_image(f"ghcr.io/org/{name}", "latest", [LAYER])
    fake_registry.on("blob", faults.error_response(404), reference=LAYER.digest, repo="ghcr.io/org/a")

    assert [read.is_warm for read in ordered(client, "ghcr.io/org/a", "ghcr.io/org/b")] == [True, True]


def test_one_image_fails_for_itself(fake_registry: FakeRegistry, client: Client) -> None:
    """The others are warm."""
    good, bad = (fake_registry.add_image(f"ghcr.io/org/{name}", "latest", [name.encode()]) for name in ("good", "bad"))
    fake_registry.on("blob", faults.error_response(404), reference=bad.layers[0])

    reads = ordered(client, good.repo, bad.repo, "ghcr.io/org/none")

    assert [read.is_warm for read in reads] == [True, False, False]
    assert reads[1].errors == (f"{bad.layers[0]}: 404 UNKNOWN: said the upstream",)


def test_an_index_that_names_itself_ends(fake_registry: FakeRegistry, client: Client) -> None:
    """Indexes in indexes are followed to a depth."""
    inner = fake_registry.add_index("ghcr.io/org/deep", None, [fake_registry.add_image("ghcr.io/org/deep", None)])
    for _ in range(3):
        inner = fake_registry.add_index("ghcr.io/org/deep", "latest", [inner])

    (read,) = ordered(client, "ghcr.io/org/deep")

    assert read.errors == ("linux/amd64: an index in an index in an index",)

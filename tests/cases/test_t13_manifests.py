"""Cases T13 to T20: manifests as opaque bytes, what is asked upstream for them, and tags that move."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import misbehaviour as bad
from tests.bodies import digest_of
from tests.client import Reply
from tests.house import House, eventually, open_house
from tests.origin import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Change, Image, Origin
from tests.wire import Answer, Request

SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_ACCEPT = [DOCKER_MANIFEST, DOCKER_LIST, SCHEMA1, OCI_MANIFEST, OCI_INDEX, "application/json"]
CONTAINERD_ACCEPT = f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_MANIFEST}, {OCI_INDEX}, */*"
SKOPEO_ACCEPT = [OCI_MANIFEST, DOCKER_MANIFEST, SCHEMA1, SCHEMA1.replace("+prettyjws", ""), DOCKER_LIST, OCI_INDEX]
CRANE_ACCEPT = (
    f"{SCHEMA1.replace('+prettyjws', '')},{SCHEMA1},{DOCKER_MANIFEST},{OCI_MANIFEST},{DOCKER_LIST},{OCI_INDEX}"
)
KINDS = {"oci index": OCI_INDEX, "docker list": DOCKER_LIST, "oci manifest": OCI_MANIFEST, "docker v2": DOCKER_MANIFEST}
NEVER_THERE = "sha256:" + "0" * 64


def _add(origin: Origin, repo: str, kind: str) -> Image:
    docker = kind.startswith("docker")
    if kind in ("oci manifest", "docker v2"):
        return origin.add_image(repo, "v1", [kind.encode()], docker=docker)
    children = [origin.add_image(repo, None, [kind.encode(), name], docker=docker) for name in (b"amd64", b"arm64")]
    return origin.add_index(repo, "v1", children, docker=docker)


def _accepting(house: House, path: str, lines: list[str]) -> Reply:
    """GET with one Accept line for each type, as docker and skopeo send them."""
    head = [f"GET {path} HTTP/1.1", f"Host: {house.dockyard.host}", *(f"Accept: {line}" for line in lines), "", ""]
    with house.raw("\r\n".join(head).encode()) as download:
        download.head()
        body, ended = download.rest()
        return Reply(download.status, download.headers, body, ended, 0.0)


def _assert_is(reply: Reply, image: Image) -> None:
    assert reply.status == 200
    assert reply.body == image.body
    assert reply.is_complete
    assert reply.header("Content-Type") == image.media_type
    assert reply.header("Docker-Content-Digest") == image.digest
    assert reply.header("Content-Length") == str(len(image.body))
    assert reply.header("ETag") == f'"{image.digest}"'


@pytest.mark.parametrize("kind", KINDS)
def test_t13_every_kind_of_manifest_for_every_client(house: House, kind: str) -> None:
    """Whatever a client accepts, in whatever order, it gets the bytes of the tag with their own type and digest."""
    repo = f"kinds/{kind.replace(' ', '-')}"
    image = _add(house.origin, repo, kind)
    path = f"/v2/up.test/{repo}/manifests/v1"
    orders = [random.Random(seed).sample(DOCKER_ACCEPT, len(DOCKER_ACCEPT)) for seed in range(50)]
    for lines in (*orders, [CONTAINERD_ACCEPT], SKOPEO_ACCEPT, [CRANE_ACCEPT]):
        _assert_is(_accepting(house, path, lines), image)
    head = house.head(path, Accept=CONTAINERD_ACCEPT)
    assert (head.status, head.body) == (200, b"")
    assert head.header("Content-Length") == str(len(image.body))
    assert head.header("Docker-Content-Digest") == image.digest
    assert head.header("Content-Type") == image.media_type


@pytest.mark.parametrize("kind", ["oci index", "docker list"])
def test_t13_children_are_asked_for_by_digest_with_their_one_type(house: House, kind: str) -> None:
    """The second step of a pull: the child by its digest, with an Accept of exactly its type."""
    repo = f"children/{kind.replace(' ', '-')}"
    docker = kind.startswith("docker")
    child = house.origin.add_image(repo, None, [b"a child's layer"], docker=docker)
    house.origin.add_index(repo, "v1", [child], docker=docker)
    assert house.get(f"/v2/up.test/{repo}/manifests/v1").status == 200
    for _ in range(2):
        _assert_is(house.get(f"/v2/up.test/{repo}/manifests/{child.digest}", Accept=child.media_type), child)
    assert house.origin.count("manifest", reference=child.digest) == 1


def test_t13_every_type_is_asked_for_upstream(house: House) -> None:
    """On a miss the upstream is told all types that there are, whatever the client said."""
    house.origin.add_image("accept", "v1")
    house.get("/v2/up.test/accept/manifests/v1", Accept=DOCKER_MANIFEST)
    for exchange in house.origin.seen("manifest", repo="accept"):
        accepted = {part.split(";")[0].strip() for part in (exchange.request.header("Accept") or "").split(",")}
        assert {OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST} <= accepted
        assert exchange.request.header("Accept-Encoding") == "identity"


@pytest.mark.parametrize("first", [None, "*/*", DOCKER_MANIFEST])
def test_t14_a_schema1_upstream_never_poisons_a_tag(house: House, first: str | None) -> None:
    """An upstream that gives schema1 to whoever accepts nothing: Dockyard asks with its full list, so it never does."""
    repo = f"negotiated/{len(first or '')}"
    image = _add(house.origin, repo, "oci index")
    schema1 = b'{"schemaVersion": 1, "name": "x", "tag": "v1", "fsLayers": [], "history": []}'
    house.origin.on(
        "manifest",
        bad.replaced(200, schema1, ("Content-Type", SCHEMA1), ("Docker-Content-Digest", digest_of(schema1))),
        repo=repo,
        when=lambda request: OCI_INDEX not in (request.header("Accept") or ""),
    )
    path = f"/v2/up.test/{repo}/manifests/v1"
    _assert_is(house.get(path, **({} if first is None else {"Accept": first})), image)
    _assert_is(_accepting(house, path, DOCKER_ACCEPT), image)


def test_t15_a_digest_is_served_whatever_is_accepted(house: House) -> None:
    """A digest names one byte string: another Accept gets it all the same, never 406."""
    image = _add(house.origin, "other/type", "oci manifest")
    for _ in range(2):
        _assert_is(house.get(f"/v2/up.test/other/type/manifests/{image.digest}", Accept=DOCKER_LIST), image)


def test_t16_other_bytes_under_a_digest(house: House) -> None:
    """A manifest whose bytes do not have the digest asked for is 502 and not kept; the next good answer works."""
    image = _add(house.origin, "wrong/bytes", "oci manifest")
    other = image.body.replace(b"schemaVersion", b"schemaversion")
    rule = house.origin.on("manifest", bad.with_body(other), reference=image.digest, method="GET")
    reply = house.get(f"/v2/up.test/wrong/bytes/manifests/{image.digest}")
    assert (reply.status, reply.error) == (502, "UNKNOWN")
    house.assert_no_leak(reply)
    assert house.stored(image.digest) == []
    house.origin.mend(rule)
    _assert_is(house.get(f"/v2/up.test/wrong/bytes/manifests/{image.digest}"), image)


def test_t16_a_digest_header_that_is_not_the_bodys(house: House) -> None:
    """By tag: the upstream names one digest and sends another body under it. 502, and nothing is kept."""
    image = _add(house.origin, "wrong/header", "oci manifest")
    lie = bad.replaced(200, image.body, ("Content-Type", OCI_MANIFEST), ("Docker-Content-Digest", NEVER_THERE))
    rule = house.origin.on("manifest", lie, repo="wrong/header")
    reply = house.get("/v2/up.test/wrong/header/manifests/v1")
    assert (reply.status, reply.error) == (502, "UNKNOWN")
    assert house.stored(NEVER_THERE) == []
    assert house.stored(image.digest) == []
    house.origin.mend(rule)
    _assert_is(house.get("/v2/up.test/wrong/header/manifests/v1"), image)


NO_MANIFESTS = {
    "html": (b"<html>Sign in</html>", "text/html"),
    "empty": (b"", OCI_MANIFEST),
    "an error page in JSON": (b'{"error": "not today"}', OCI_MANIFEST),
    "both an index and an image": (b'{"schemaVersion": 2, "manifests": [], "config": {}, "layers": []}', OCI_INDEX),
    "of another type than it says": (
        b'{"schemaVersion": 2, "mediaType": "%s", "config": {}, "layers": []}' % OCI_MANIFEST.encode(),
        OCI_INDEX,
    ),
    "a depth bomb": (b"[" * 100_000, OCI_MANIFEST),
}


@pytest.mark.parametrize("name", NO_MANIFESTS)
def test_t16_what_is_no_manifest_is_not_passed_on(house: House, name: str) -> None:
    """A document that cannot be a manifest, or could be two, is 502 and not kept, though its digest is right."""
    body, content_type = NO_MANIFESTS[name]
    repo = f"no-manifest/{len(body)}"
    digest = house.origin.add_manifest(repo, "v1", body, content_type)
    for reference in ("v1", digest):
        reply = house.get(f"/v2/up.test/{repo}/manifests/{reference}")
        assert (reply.status, reply.error) == (502, "UNKNOWN")
        assert reply.took_s < 2
    assert house.stored(digest) == []


def test_t17_a_large_manifest(house: House) -> None:
    """4,000,000 bytes of manifest are passed on, cold and warm."""
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": [], "annotations": {"x": ""}}
    document["annotations"] = {"x": "y" * 3_999_750}
    digest = house.origin.add_manifest("large", "v1", document, OCI_MANIFEST)
    body = house.origin.manifest_body("large", digest)
    assert 3_999_000 < len(body) <= 4_000_000
    for reference in ("v1", digest, digest):
        reply = house.get(f"/v2/up.test/large/manifests/{reference}")
        assert (reply.status, reply.body == body) == (200, True)


def _nine_mebibytes(request: Request, answer: Answer) -> Answer:
    return bad.with_body(b'{"schemaVersion": 2, "layers": [], "config": {}, "x": "' + b"x" * (9 << 20) + b'"}')(
        request, answer
    )


@pytest.mark.parametrize("change", [_nine_mebibytes, bad.endless()], ids=["9 MiB", "endless"])
@pytest.mark.parametrize("reference", ["v1", "digest"])
def test_t17_a_manifest_over_the_cap(house: House, change: Change, reference: str) -> None:
    """Beyond the cap reading stops, the connection is closed, and the answer is 502."""
    image = house.origin.add_image("over/the/cap", "v1")
    rule = house.origin.on("manifest", change, method="GET", repo="over/the/cap")
    asked = image.digest if reference == "digest" else "v1"
    before = house.origin.sent_bytes("manifest")
    began = time.monotonic()
    reply = house.get(f"/v2/up.test/over/the/cap/manifests/{asked}")
    assert (reply.status, reply.error) == (502, "UNKNOWN")
    assert time.monotonic() - began < 5
    eventually(lambda: all(e.ended for e in house.origin.seen("manifest", "GET")), "the connection upstream is closed")
    assert house.origin.sent_bytes("manifest") - before < 48 << 20  # two tries, each with full socket buffers
    house.origin.mend(rule)


HEAD_FLAWS: dict[str, Change] = {
    "no digest": bad.without("Docker-Content-Digest"),
    "no length": bad.without("Content-Length"),
    "neither": bad.without("Docker-Content-Digest", "Content-Length"),
    "405": bad.refusing(405, "UNSUPPORTED"),
    "401": bad.refusing(401, "UNAUTHORIZED"),
    "garbage digest": bad.header("Docker-Content-Digest", "sha256:garbage"),
    "two digests": bad.header("Docker-Content-Digest", NEVER_THERE, "sha256:garbage"),
}


@pytest.fixture(scope="module")
def odd_house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Give a house whose upstream is odd about HEAD: Dockyard may remember that, so others have another one."""
    with Origin() as origin, open_house(origin, tmp_path_factory.mktemp("odd")) as house:
        yield house


@pytest.mark.parametrize("flaw", HEAD_FLAWS)
@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_t18_tags_of_an_upstream_whose_head_is_no_good(odd_house: House, flaw: str, method: str) -> None:
    """Where HEAD cannot be used GET is: the client gets the computed digest and length all the same."""
    repo = f"head/{method.lower()}/{flaw.replace(' ', '-')}"
    image = odd_house.origin.add_image(repo, "v1", [flaw.encode()])
    odd_house.origin.on("manifest", HEAD_FLAWS[flaw], method="HEAD", repo=repo)
    reply = odd_house.send(method, f"/v2/up.test/{repo}/manifests/v1")
    assert reply.status == 200
    assert reply.header("Docker-Content-Digest") == image.digest
    assert reply.header("Content-Length") == str(len(image.body))
    assert reply.body == (image.body if method == "GET" else b"")


def test_t18_a_digest_header_missing_on_get_too(odd_house: House) -> None:
    """An upstream that never names digests is served by computed ones."""
    image = odd_house.origin.add_image("no/digests", "v1")
    odd_house.origin.on("manifest", bad.without("Docker-Content-Digest", "ETag"), repo="no/digests")
    for _ in range(2):
        _assert_is(odd_house.get("/v2/up.test/no/digests/manifests/v1"), image)


@pytest.mark.parametrize("flaw", ["no digest", "no length", "405", "401", "garbage digest"])
def test_t18_blobs_of_an_upstream_whose_head_is_no_good(odd_house: House, flaw: str) -> None:
    """HEAD of a blob finds the size by other means, and never starts a download."""
    blob = f"a blob with {flaw}".encode() * 1000
    digest = odd_house.origin.add_blob(blob)
    odd_house.origin.on("blob", HEAD_FLAWS[flaw], method="HEAD", reference=digest)
    reply = odd_house.head(f"/v2/up.test/app/blobs/{digest}")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.header("Content-Length") == str(len(blob))
    assert reply.header("Docker-Content-Digest") == digest
    assert all(e.request.header("Range") == "bytes=0-0" for e in odd_house.origin.seen("blob", "GET", reference=digest))


def test_t19_a_tag_that_moves_between_head_and_get(house: House) -> None:
    """The GET is made by the digest that HEAD gave, so the old image is whole and the new one comes next."""
    old = house.origin.add_image("moving", "v1", [b"old"])

    def move(request: Request, answer: Answer) -> Answer:
        house.origin.add_image("moving", "v1", [b"new"])
        return answer

    house.origin.on("manifest", move, method="HEAD", reference="v1", repo="moving", times=1)
    _assert_is(house.get("/v2/up.test/moving/manifests/v1"), old)
    assert [e.request.reference for e in house.origin.seen("manifest", "GET", repo="moving")] == [old.digest]
    assert house.get("/v2/up.test/moving/manifests/v1").body == house.origin.manifest_body("moving", "v1")


def test_t19_a_hundred_clients_while_a_tag_moves(house: House) -> None:
    """Every answer is one image, whole: its body has the digest of its header, and the last ones are new."""
    images = [house.origin.add_image("herd", "v1", [b"first"])]
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(house.get, "/v2/up.test/herd/manifests/v1") for _ in range(50)]
        images.append(house.origin.add_image("herd", "v1", [b"second"]))
        asked += [pool.submit(house.get, "/v2/up.test/herd/manifests/v1") for _ in range(50)]
        replies = [each.result() for each in asked]
    known = {image.digest: image for image in images}
    for reply in replies:
        _assert_is(reply, known[reply.header("Docker-Content-Digest") or ""])
    _assert_is(house.get("/v2/up.test/herd/manifests/v1"), images[1])


def test_t20_an_unchanged_tag_costs_one_head(house: House) -> None:
    """A warm tag is checked by one HEAD and fetched by none."""
    house.origin.add_image("unchanged", "v1")
    path = "/v2/up.test/unchanged/manifests/v1"
    house.get(path)
    before = (
        house.origin.count("manifest", "HEAD", repo="unchanged"),
        house.origin.count("manifest", "GET", repo="unchanged"),
    )
    assert house.get(path).status == 200
    after = (
        house.origin.count("manifest", "HEAD", repo="unchanged"),
        house.origin.count("manifest", "GET", repo="unchanged"),
    )
    assert (after[0] - before[0], after[1] - before[1]) == (1, 0)


def test_t20_a_changed_tag_is_new_at_once(house: House) -> None:
    """A tag that moved upstream is the new image at the next request; the old digest stays served."""
    old = house.origin.add_image("changed", "v1", [b"old"])
    path = "/v2/up.test/changed/manifests"
    _assert_is(house.get(f"{path}/v1"), old)
    new = house.origin.add_image("changed", "v1", [b"new"])
    _assert_is(house.get(f"{path}/v1"), new)
    asked = house.origin.count("manifest", repo="changed")
    _assert_is(house.get(f"{path}/{old.digest}"), old)
    assert house.origin.count("manifest", repo="changed") == asked


def test_t20_a_deleted_tag_is_gone(house: House) -> None:
    """A 404 is an answer, not an outage: the tag is gone, again and again, while its digest stays served."""
    image = house.origin.add_image("deleted", "v1")
    path = "/v2/up.test/deleted/manifests"
    _assert_is(house.get(f"{path}/v1"), image)
    house.origin.remove("deleted", "v1")
    house.origin.remove("deleted", image.digest)
    for _ in range(2):
        reply = house.get(f"{path}/v1")
        assert (reply.status, reply.error) == (404, "MANIFEST_UNKNOWN")
    _assert_is(house.get(f"{path}/{image.digest}"), image)


def test_t20_a_tag_that_appears_is_there_at_once(house: House) -> None:
    """No negative cache: a tag that was unknown a moment ago is served when it was pushed."""
    path = "/v2/up.test/appears/manifests/v1"
    assert house.get(path).status == 404
    image = house.origin.add_image("appears", "v1")
    _assert_is(house.get(path), image)


def test_t20_within_the_check_interval_nobody_is_asked(make_house: Callable[..., House], origin: Origin) -> None:
    """`upstream.check_interval`: a tag that was just checked counts as fresh."""
    image = origin.add_image("fresh", "v1")
    house = make_house(upstream={"check_interval": "1h"})
    for _ in range(3):
        _assert_is(house.get("/v2/up.test/fresh/manifests/v1"), image)
    assert origin.count(reference="v1") == 1

"""Blobs: verified before they are complete, fetched once for all clients, and resumed after interruptions."""

import gzip
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

import pytest

from tests.support import faults
from tests.support.bodies import Bytes, Synthetic, digest_of, read_whole
from tests.support.deployment import Deployment, eventually, parse_cache_status, set_at_exit, stays
from tests.support.fake_registry import Change, FakeRegistry
from tests.support.http_client import is_part_of
from tests.support.raw_http import Request, ScriptedResponse

MIB = 1024 * 1024
SMALL = 100_000  # verified before the first byte is sent
LARGE = 3 * MIB  # streamed, except for its last bytes


def _random(size: int, seed: str) -> bytes:
    return Random(seed).randbytes(size)


def _wrong_bodies(size: int) -> dict[str, tuple[Change, ...]]:
    return {
        "bit flipped early": (faults.flipped(size // 100),),
        "bit flipped at the end": (faults.flipped(size - 1),),
        "shorter than its length": (faults.cut_at_offset(size - 5000),),
        "chunked and short": (faults.chunked(), faults.short(1000)),
        "close-delimited and short": (faults.close_delimited(), faults.short(1000)),
        "longer": (faults.longer(b"and more"),),
        "more than its length": (faults.wrong_length(-500),),
        "html": (faults.html_page(),),
        "gzip": (faults.encoded("gzip", gzip.compress),),
    }


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("flaw", _wrong_bodies(SMALL))
def test_a_wrong_body_is_never_complete(deployment: Deployment, flaw: str, size: int) -> None:
    """No client can take wrong bytes for a complete body, nothing is kept, and the next request fetches again."""
    fake_registry = deployment.fake_registry
    blob = _random(size, f"{flaw} {size}")
    digest = fake_registry.add_blob(blob)
    rules = [fake_registry.on("blob", change, reference=digest) for change in _wrong_bodies(size)[flaw]]
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    if response.status == 200:
        assert response.ended == "fin", "broken bodies end by FIN before Content-Length"
        assert response.header("Content-Length") is not None
        assert response.header("Transfer-Encoding") is None
        assert size > MIB, "small blobs are verified before their first byte"
    else:
        assert response.status in (502, 503)
        assert response.error in ("UNKNOWN", "UNAVAILABLE")
        deployment.assert_no_leak(response)
    assert deployment.stored_files(digest) == []
    fake_registry.remove_rules(*rules)
    count_before = fake_registry.count("blob", "GET", reference=digest)
    again = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert (again.status, again.ended, again.body == blob) == (200, "length", True)
    assert fake_registry.count("blob", "GET", reference=digest) == count_before + 1


def test_a_blob_with_a_wrong_content_encoding_is_served(deployment: Deployment) -> None:
    """A layer is a gzip file, and some web servers label it: its bytes are those of its digest."""
    blob = gzip.compress(_random(SMALL, "labelled"))
    digest = deployment.fake_registry.add_blob(blob)
    deployment.fake_registry.on("blob", faults.header("Content-Encoding", "x-gzip"), reference=digest)
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert (response.status, response.body, response.header("Content-Encoding")) == (200, blob, None)


def test_the_error_about_an_encoded_blob_says_so(deployment: Deployment) -> None:
    """A registry that encodes layers cannot be cached: their digests are those of the content."""
    digest = deployment.fake_registry.add_blob(_random(SMALL, "encoded"))
    deployment.fake_registry.on("blob", faults.encoded("gzip", gzip.compress), reference=digest)
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert response.status == 502
    assert b"declared to be encoded (gzip)" in response.body
    assert deployment.stored_files(digest) == []


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("framing", ["chunked", "range"])
def test_a_body_without_its_end_is_complete_when_its_digest_is_right(
    deployment: Deployment, size: int, framing: str
) -> None:
    """All bytes are here; only the last chunk is missing. Nothing more is requested, or a range of no bytes."""
    fake_registry = deployment.fake_registry
    blob = _random(size, f"unended {size} {framing}")
    digest = fake_registry.add_blob(blob)
    fake_registry.on("blob", faults.chunked(ended=False), reference=digest)
    if framing == "range":  # and before that it was cut, so that the rest is a range
        fake_registry.on("blob", faults.cut_at_offset(size // 2), reference=digest, times=1)
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert (response.status, response.body == blob) == (200, True)
    eventually(lambda: deployment.stored_files(digest), "the blob is kept")
    ranges = [each.request.header("Range") for each in fake_registry.received("blob", "GET", reference=digest)]
    wanted = [each for each in ranges if each != "bytes=0-0"]  # that one is for the size
    assert wanted == ([None] if framing == "chunked" else [None, f"bytes={size // 2}-"])


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
def test_a_body_without_its_end_and_with_wrong_bytes_is_never_complete(deployment: Deployment, size: int) -> None:
    """A rejected range that confirms the size does not make them right."""
    fake_registry = deployment.fake_registry
    digest = fake_registry.add_blob(_random(size, f"wrong {size}"))
    for change in (faults.flipped(size // 2), faults.chunked(ended=False)):
        fake_registry.on("blob", change, reference=digest)
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert (response.status, response.ended) == ((502, "length") if size < MIB else (200, "fin"))
    eventually(lambda: not deployment.partial_files(), "nothing is left")
    assert deployment.stored_files(digest) == []


def test_blobs_are_never_compressed(deployment: Deployment) -> None:
    """The upstream is asked for `identity` encoding, and nothing is compressed on the way to the client."""
    blob = b"compressible " * 1000
    digest = deployment.fake_registry.add_blob(blob)
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}", Accept_Encoding="zstd;q=1.0, gzip;q=0.8")
    assert (response.body, response.header("Content-Encoding")) == (blob, None)
    (fetch,) = deployment.fake_registry.received("blob", "GET", reference=digest)
    assert fetch.request.header("Accept-Encoding") == "identity"


@pytest.mark.parametrize("framing", [faults.chunked(), faults.close_delimited()], ids=["chunked", "close-delimited"])
@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_upstream_that_sends_no_length(deployment: Deployment, framing: Change, size: int, method: str) -> None:
    """The client gets the right length and the right bytes all the same."""
    blob = _random(size, f"{framing}{method}")
    digest = deployment.fake_registry.add_blob(blob)
    deployment.fake_registry.on("blob", framing, reference=digest)
    response = deployment.request(method, f"/v2/up.test/app/blobs/{digest}")
    assert (response.status, response.header("Content-Length")) == (200, str(size))
    assert response.body == (blob if method == "GET" else b"")


def test_head_starts_no_download(deployment: Deployment) -> None:
    """HEAD of a cold blob sends a HEAD upstream, and nothing else."""
    digest = deployment.fake_registry.add_blob(_random(2 * MIB, "head only"))
    response = deployment.head(f"/v2/up.test/app/blobs/{digest}")
    assert (response.status, response.header("Content-Length"), response.header("ETag")) == (
        200,
        str(2 * MIB),
        f'"{digest}"',
    )
    assert (
        deployment.fake_registry.count("blob", "HEAD", reference=digest),
        deployment.fake_registry.count("blob", "GET", reference=digest),
    ) == (1, 0)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_missing_blob(deployment: Deployment, method: str) -> None:
    """What the upstream does not have is BLOB_UNKNOWN; HEAD answers without a body."""
    response = deployment.request(method, "/v2/up.test/app/blobs/sha256:" + "1" * 64)
    assert response.status == 404
    if method == "GET":
        assert response.error == "BLOB_UNKNOWN"
        deployment.assert_no_leak(response)
    else:
        assert response.body == b""


def test_a_cold_blob_is_requested_from_its_repository(deployment: Deployment) -> None:
    """A cold blob is requested from the repository of the request; when that does not have it, it is unknown."""
    digest = deployment.fake_registry.add_blob(b"only in one repository", repos=["mine"])
    assert deployment.get(f"/v2/up.test/yours/blobs/{digest}").status == 404
    assert deployment.get(f"/v2/up.test/mine/blobs/{digest}").status == 200


def test_a_cached_blob_is_served_under_every_repository(deployment: Deployment) -> None:
    """Blobs are shared by digest: a cached blob is served under every repository. This is a documented decision."""
    digest = deployment.fake_registry.add_blob(b"shared by all", repos=["first"])
    assert deployment.get(f"/v2/up.test/first/blobs/{digest}").status == 200
    count_before = deployment.fake_registry.count()
    for path in ("/v2/up.test/second", "/v2/docker.io/library/third"):
        assert deployment.get(f"{path}/blobs/{digest}").body == b"shared by all"
        assert deployment.head(f"{path}/blobs/{digest}").status == 200
    assert deployment.fake_registry.count() == count_before


def test_parallel_open_ranges_share_one_fetch(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """Containerd's parallel download: eight open ranges of a cold layer, each reset when it has its part."""
    content = Synthetic(200 * MIB)
    digest = fake_registry.add_blob(content)
    deployment = make_deployment(workers=2)
    part = content.size // 8

    def fetch(number: int) -> tuple[int, bool]:
        start = number * part
        with deployment.stream(f"/v2/up.test/app/blobs/{digest}", Range=f"bytes={start}-") as download:
            download.head()
            is_right = True
            for at in range(start, start + part, MIB):
                is_right = is_right and is_part_of(content, at, download.read(MIB))
            download.reset()
            return download.status, is_right

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fetch, range(8))) == [(206, True)] * 8
    eventually(lambda: deployment.stored_files(digest), "the layer is stored")
    assert fake_registry.count("blob", "GET") == 1
    eventually(lambda: not deployment.partial_files(), "the partial file is deleted")


def test_a_download_continues_when_its_only_client_disconnects(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A download belongs to the server: it is finished without its client, and nothing of it is visible before that."""
    content = Synthetic(100 * MIB)
    digest = fake_registry.add_blob(content)
    deployment = make_deployment()
    path = f"/v2/up.test/app/blobs/{digest}"
    with set_at_exit(threading.Event()) as go_on:
        fake_registry.on("blob", faults.stalled(0.2, go_on))
        with deployment.stream(path) as download:
            assert is_part_of(content, 0, download.head().read(10 * MIB))
        assert deployment.stored_files(digest) == []
        go_on.set()
    eventually(lambda: deployment.stored_files(digest), "the blob is stored")
    response = deployment.get(path, Range=f"bytes={50 * MIB}-{50 * MIB + 9}")
    assert (response.status, is_part_of(content, 50 * MIB, response.body)) == (206, True)
    assert parse_cache_status(response)["hit"] is True
    assert fake_registry.count("blob", "GET") == 1


def test_a_second_client_is_not_affected_when_the_first_disconnects(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """A client that joined the download before its first client left gets all of it."""
    content = Bytes(_random(20 * MIB, "joined"))
    digest = fake_registry.add_blob(content)
    deployment = make_deployment(workers=2)
    path = f"/v2/up.test/app/blobs/{digest}"
    with set_at_exit(threading.Event()) as go_on:
        fake_registry.on("blob", faults.stalled(0.5, go_on))
        first = deployment.stream(path)
        first.head().read(MIB)
        with deployment.crowd(path, content, 4) as crowd:
            crowd.run(until=lambda: all(member.received > MIB for member in crowd.members))
            first.reset()
            go_on.set()
            crowd.run()
            assert all(member.is_right for member in crowd.members), crowd.summary()
    assert fake_registry.count("blob", "GET") == 1


def test_two_hundred_clients_of_one_cold_blob(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """One upstream request; every client has its first bytes while the upstream still holds half back."""
    content = Bytes(_random(8 * MIB, "two hundred"))
    digest = fake_registry.add_blob(content)
    deployment = make_deployment(workers=2)
    with set_at_exit(threading.Event()) as go_on:
        fake_registry.on("blob", faults.stalled(0.5, go_on))
        with deployment.crowd(f"/v2/up.test/app/blobs/{digest}", content, 200) as crowd:
            crowd.run(until=lambda: all(member.first_byte_at for member in crowd.members))
            go_on.set()
            crowd.run()
            assert all(member.is_right for member in crowd.members), crowd.summary()
    assert fake_registry.count("blob", "GET") == 1


def test_fifty_clients_of_one_cold_tag(make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """One HEAD and one GET upstream for all of them, over all workers."""
    image = fake_registry.add_image("app", "v1")
    deployment = make_deployment(workers=2, upstream={"check_timeout": "10s"})
    with set_at_exit(threading.Event()) as answer_now:
        fake_registry.on("manifest", faults.silent(answer_now), method="HEAD")
        with deployment.crowd("/v2/up.test/app/manifests/v1", Bytes(image.body), 50) as crowd:
            fake_registry.wait_for(lambda: fake_registry.count("manifest", "HEAD") > 0, "the tag is checked")
            stays(lambda: fake_registry.count("manifest", "HEAD") == 1, "one check in progress", for_s=0.5)
            answer_now.set()
            crowd.run()
            assert all(member.is_right for member in crowd.members), crowd.summary()
    assert (fake_registry.count("manifest", "HEAD"), fake_registry.count("manifest", "GET")) == (1, 1)


def test_a_download_is_resumed_after_an_upstream_reset(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The upstream resets at 60 %: Dockyard requests the rest, and the client sees one complete body."""
    content = Bytes(_random(10 * MIB, "reset"))
    digest = fake_registry.add_blob(content)
    deployment = make_deployment()
    fake_registry.on("blob", faults.cut(0.6, "rst"), times=1)
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert (response.status, response.ended, response.body == content.data) == (200, "length", True)
    first, second = fake_registry.received("blob", "GET")
    assert (first.request.header("Range"), first.ended) == (None, "rst")
    resumed_at = int((second.request.header("Range") or "").removeprefix("bytes=").removesuffix("-"))
    assert 0 < resumed_at <= 6 * MIB
    assert second.request.header("Accept-Encoding") == "identity"


@pytest.mark.parametrize("place", ["bytes 0-{last}/{size}", "bytes {start}-{last}/{wrong}", "bytes 7-{last}/{size}"])
def test_a_resume_at_the_wrong_offset_is_rejected(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, place: str
) -> None:
    """A 206 whose Content-Range is not the requested one is never appended to what was received."""
    content = Bytes(_random(4 * MIB, place))
    digest = fake_registry.add_blob(content)
    deployment = make_deployment()
    fake_registry.on("blob", faults.cut(0.5), times=1)

    def lie(request: Request, response: ScriptedResponse) -> ScriptedResponse:
        fields = {"start": response.start, "last": content.size - 1, "size": content.size, "wrong": content.size + 1}
        return response.with_header("Content-Range", place.format(**fields)) if response.status == 206 else response

    fake_registry.on("blob", lie)
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert not response.is_complete or response.body == content.data
    assert all(digest_of(path.read_bytes()) == digest for path in deployment.stored_files(digest))


def test_an_upstream_that_ignores_the_resume(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """When 200 comes instead of 206, the bytes already received are skipped, and the client does not notice."""
    content = Bytes(_random(4 * MIB, "ignored"))
    digest = fake_registry.add_blob(content)
    deployment = make_deployment()
    fake_registry.on("blob", faults.cut(0.5), times=1)
    fake_registry.on("blob", faults.ignoring_range())
    response = deployment.get(f"/v2/up.test/app/blobs/{digest}")
    assert (response.ended, response.body == content.data) == ("length", True)
    assert fake_registry.count("blob", "GET") == 2
    assert fake_registry.sent_bytes("blob") <= 2 * content.size


def test_a_client_resumes_after_a_worker_was_killed(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry
) -> None:
    """The only worker is killed during a download: nothing partial is served afterwards, and `bytes=N-` gives 206."""
    content = Synthetic(32 * MIB)
    digest = fake_registry.add_blob(content)
    deployment = make_deployment()
    path = f"/v2/up.test/app/blobs/{digest}"
    with set_at_exit(threading.Event()) as go_on:
        rule = fake_registry.on("blob", faults.stalled(0.5, go_on))
        with deployment.stream(path) as download:
            got = download.head().read(10 * MIB)
            deployment.dockyard.kill()
            more, ended = download.rest()
            assert ended in ("fin", "rst")
        fake_registry.remove_rules(rule)
    deployment.dockyard.start()
    received = len(got) + len(more)
    assert received < content.size
    response = deployment.get(path, Range=f"bytes={received}-")
    assert (response.status, response.ended) == (206, "length")
    assert is_part_of(content, 0, got + more + response.body)
    assert digest_of(read_whole(content)) == digest

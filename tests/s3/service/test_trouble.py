"""S3 in trouble: pulls go on with right bytes and at full speed, and later everything is in the bucket."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from dockyard.s3.publisher import MAX_STREAMED_UPLOADS
from tests.s3.service.bucket_view import BucketView, blob_key
from tests.s3.service.images import NAME, add_images, add_index, fetch, fill, layer, pull, put_image
from tests.s3.service.request_log import object_key
from tests.s3.store.proxy import Forward, Request, Respond, S3Proxy, s3_error
from tests.s3.store.servers import Server
from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.toxiproxy import TcpProxy

MIB = 1024 * 1024
BACK_WITHIN_S = 60.0
LAYER_BYTES = 64 * MIB
UPSTREAM_BYTES_PER_S = 48 * MIB
QUIET_S = 1.0
SLACK_S = 0.35  # of scheduling, on a machine with two cores for everybody


class Storm:
    """One way to S3 for a Dockyard, and the trouble on it."""

    def __init__(self, server: Server, toxics: TcpProxy) -> None:
        self.server = server
        self.toxics = toxics

    @property
    def endpoint(self) -> str:
        return self.toxics.authority

    @contextmanager
    def blows(self, kind: str) -> Iterator[None]:
        """Have trouble for a while."""
        self._begin(kind)
        try:
            yield
        finally:
            self._end(kind)

    def _begin(self, kind: str) -> None:
        match kind:
            case "frozen":
                self.server.freeze()
            case "5 s per call":
                self.toxics.add_latency(5.0)
            case "2 s per call":
                self.toxics.add_latency(2.0)
            case "100 KB/s":
                self.toxics.limit_bandwidth(100)

    def _end(self, kind: str) -> None:
        match kind:
            case "frozen":
                self.server.thaw()
            case _:
                self.toxics.restore()


KINDS = ["5 s per call", "100 KB/s"]  # the others are rows S01, S03 and S04 of the matrix


@pytest.fixture
def storm(minio: Server, toxics: TcpProxy) -> Storm:
    """Give trouble of all kinds."""
    return Storm(minio, toxics)


def pull_all(deployment: Deployment, *references: str) -> set[str]:
    """Pull images at the same time; their keys."""
    with ThreadPoolExecutor(len(references)) as pool:
        return set().union(*pool.map(lambda reference: pull(deployment, reference), references))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Give what ends with the test."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("kind", KINDS)
def test_pulls_go_on_and_all_is_in_the_bucket_later(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, storm: Storm, kind: str
) -> None:
    """Warm images, cold ones and one that the bucket has: all come right, and within a minute the bucket has them."""
    add_index(fake_registry, "warm")
    add_images(fake_registry, "cold-1", "cold-2", "cold-3", "elsewhere")
    deployment = start(storm.endpoint)
    fill(deployment, bucket_view, "warm")
    put_image(bucket_view, fake_registry, "elsewhere")
    with storm.blows(kind):
        keys = pull_all(deployment, "warm", "cold-1", "cold-2", "cold-3", "elsewhere")
        keys |= pull_all(deployment, "warm", "cold-1", "cold-2")
    eventually(lambda: keys <= bucket_view.listed(), "everything pulled is in the bucket", BACK_WITHIN_S)
    eventually(lambda: not bucket_view.uploads(), "no upload is unfinished", BACK_WITHIN_S)


@pytest.mark.parametrize("kind", ["frozen", "5 s per call", "100 KB/s"])
def test_a_cold_layer_is_not_held_up(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, storm: Storm, kind: str
) -> None:
    """64 MiB from the upstream with S3 known to be in trouble: at most a tenth slower than with S3 in order."""
    fake_registry.on("blob", faults.slow(UPSTREAM_BYTES_PER_S))
    before, during = (fake_registry.add_blob(Bytes(layer(f"{kind} {number}", LAYER_BYTES))) for number in range(2))
    hints = [fake_registry.add_blob(layer(f"{kind} hint {number}", 10_000)) for number in range(8)]
    deployment = start(storm.endpoint)
    usual = fetch(deployment, before)
    eventually(lambda: bucket_view.listed() == {blob_key(before)}, "the first layer is published", BACK_WITHIN_S)
    with storm.blows(kind):
        deployment.get_concurrently([f"/v2/{NAME}/blobs/{digest}" for digest in hints])  # each worker learns of it
        took = fetch(deployment, during)
    assert took <= 1.1 * usual + SLACK_S, f"{took:.2f} s instead of {usual:.2f} s"
    eventually(lambda: blob_key(during) in bucket_view.listed(), "the layer is published", BACK_WITHIN_S)


def test_an_outage_is_paid_for_once(
    start: Callable[..., Deployment], fake_registry: FakeRegistry, storm: Storm
) -> None:
    """S3 takes connections and says nothing, a cold blob after the other: all but the first come as fast as ever.

    The first may wait for as long as an operation may take (10 s); 25 s show whether it is paid for again.
    """
    deployment = start(storm.endpoint, workers=1)
    took = []
    with storm.blows("frozen"):
        until = time.monotonic() + 25
        while time.monotonic() < until:
            took.append(fetch(deployment, fake_registry.add_blob(layer(f"outage {len(took)}", 10_000))))
            time.sleep(0.05)  # the pace of the pulls, not a wait for anything
    waited = sum(each for each in took if each > 1.0)
    assert waited < 12.0, f"{waited:.0f} s of 25 s were spent waiting for S3, in {len(took)} pulls"


@pytest.mark.parametrize("at", ["the first part", "the end"])
def test_a_broken_upload_in_parts_is_aborted(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry, at: str
) -> None:
    """A multipart upload that breaks leaves nothing behind, and the blob goes up again."""
    digest = fake_registry.add_blob(layer("cut part", 6 * MIB), algorithm="sha512")
    deployment = start(proxy.host)
    broken: list[Request] = []

    def break_one(request: Request) -> Forward | Respond:
        wanted = "PUT uploadId" if at == "the first part" else "POST uploadId"
        if request.operation == wanted and len(broken) < (1 if at == "the first part" else 2):
            broken.append(request)
            return Forward(cut_request_after=3 * MIB) if at == "the first part" else s3_error(500, "InternalError")
        return Forward()

    proxy.rule = break_one
    fetch(deployment, digest)
    eventually(lambda: broken and bucket_view.listed() == {blob_key(digest)}, "the blob is published", BACK_WITHIN_S)
    assert not bucket_view.uploads()


def test_an_upload_that_s3_died_under_is_aborted(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    minio: Server,
    proxy: S3Proxy,
    fake_registry: FakeRegistry,
) -> None:
    """S3 dies in the middle of a multipart upload and comes back: in the end no upload is left unfinished.

    In the middle: with a part on its way. Before, Dockyard may not know yet how the store calls the upload.
    """
    digest = fake_registry.add_blob(layer("dying", 6 * MIB), algorithm="sha512")
    go_on = threading.Event()
    fake_registry.on("blob", faults.stalled(0.7, go_on))
    deployment = start(proxy.host)
    with deployment.stream(f"/v2/{NAME}/blobs/{digest}") as download:
        download.head()
        eventually(lambda: proxy.counted()["PUT uploadId"], "a part is on its way")
        minio.stop()
        go_on.set()
        body, ended = download.rest()
    assert (len(body), ended) == (6 * MIB, "length")
    minio.start()
    eventually(lambda: bucket_view.listed() == {blob_key(digest)}, "the blob is published", BACK_WITHIN_S)
    eventually(lambda: not bucket_view.uploads(), "no upload is unfinished", BACK_WITHIN_S)
    assert proxy.counted()["DELETE uploadId"]


def test_a_busy_store_is_given_half_as_much(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    proxy: S3Proxy,
    fake_registry: FakeRegistry,
    stack: ExitStack,
) -> None:
    """503 SlowDown to eight uploads: four of the next go up while they are fetched, and in the end all are there."""
    deployment = start(proxy.host, workers=1)
    keys: set[str] = set()
    refused: list[Request] = []
    is_well = stack.enter_context(set_at_exit(threading.Event()))

    def refuse_some(request: Request) -> Forward | Respond:
        """The first uploads; what comes later is kept waiting, so that nothing else fails or goes well."""
        if request.method != "PUT" or object_key(request) not in keys:
            return Forward()
        if len(refused) < MAX_STREAMED_UPLOADS:
            refused.append(request)
            return s3_error(503, "SlowDown")
        is_well.wait(BACK_WITHIN_S)
        return Forward()

    def begun(kind: str) -> int:
        """Twelve layers on their way at once: so many of them go up meanwhile."""
        digests = [fake_registry.add_blob(layer(f"{kind} {number}", MIB)) for number in range(12)]
        wanted = {blob_key(digest) for digest in digests}
        keys.update(wanted)
        with ExitStack() as downloads:
            go_on = downloads.enter_context(set_at_exit(threading.Event()))
            stall = fake_registry.on("blob", faults.stalled(0.5, go_on))
            for digest in digests:
                downloads.enter_context(deployment.stream(f"/v2/{NAME}/blobs/{digest}"))
            fake_registry.wait_for(lambda: fake_registry.count("blob") == len(digests), "all are being fetched")
            time.sleep(QUIET_S)  # nothing tells that no other upload begins
            fake_registry.remove_rules(stall)
            return sum(request.method == "PUT" and object_key(request) in wanted for request in list(proxy.requests))

    proxy.rule = refuse_some
    assert begun("first") == MAX_STREAMED_UPLOADS
    failed = f'dockyard_published_total{{outcome="failed"}} {MAX_STREAMED_UPLOADS}.0'
    eventually(lambda: failed in deployment.get("/metrics").body.decode(), "all that were refused have ended")
    fake_registry.clear_exchanges()
    assert begun("second") == MAX_STREAMED_UPLOADS // 2
    is_well.set()
    eventually(lambda: keys == bucket_view.listed(), "all is in the bucket", BACK_WITHIN_S)


def test_s3_alone_serves_while_it_is_slow_and_the_upstream_is_down(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, storm: Storm
) -> None:
    """A slow answer is better than none: what only a slow bucket has is still pulled."""
    add_images(fake_registry, "v1")
    put_image(bucket_view, fake_registry, "v1")
    deployment = start(storm.endpoint, workers=1)
    fake_registry.listener.close()
    with storm.blows("2 s per call"):
        pull(deployment, "v1")

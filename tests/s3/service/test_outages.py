"""Faults of S3: pulls continue with the right bytes and at full speed, and everything is published later."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from dockyard.s3.publisher import MAX_STREAMED_UPLOADS
from tests.s3.service.bucket_view import BucketView, blob_key
from tests.s3.service.images import NAME, add_images, add_index, fetch, layer, pull, pull_and_publish, put_image
from tests.s3.service.request_log import object_key
from tests.s3.store.proxy import Forward, Request, Respond, S3Proxy, s3_error
from tests.s3.store.servers import Server
from tests.support import faults
from tests.support.bodies import Bytes
from tests.support.busy_machine import EVENT_TIMEOUT_S, is_within
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_registry import FakeRegistry
from tests.support.toxiproxy import TcpProxy

MIB = 1024 * 1024
BACK_WITHIN_S = 60.0
LAYER_BYTES = 64 * MIB
UPSTREAM_BYTES_PER_S = 48 * MIB
QUIET_S = 1.0
SLACK_S = 0.35  # for scheduling on a machine with two cores


class S3Faults:
    """Injects faults between a Dockyard and its S3 server."""

    def __init__(self, server: Server, toxics: TcpProxy) -> None:
        self.server = server
        self.toxics = toxics

    @property
    def endpoint(self) -> str:
        return self.toxics.authority

    @contextmanager
    def inject(self, kind: str) -> Iterator[None]:
        """Inject a fault while the block runs."""
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


KINDS = ["5 s per call", "100 KB/s"]  # other faults are tested in tests/chaos


@pytest.fixture
def s3_faults(minio: Server, toxics: TcpProxy) -> S3Faults:
    """Injects faults of S3."""
    return S3Faults(minio, toxics)


def pull_all(deployment: Deployment, *references: str) -> set[str]:
    """Pull images at the same time; return their keys."""
    with ThreadPoolExecutor(len(references)) as pool:
        return set().union(*pool.map(lambda reference: pull(deployment, reference), references))


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """A stack that is closed when the test ends."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("kind", KINDS)
def test_pulls_continue_and_all_is_published_later(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    fake_registry: FakeRegistry,
    s3_faults: S3Faults,
    kind: str,
) -> None:
    """Warm images, cold ones and one that only the bucket has are pulled; within a minute the bucket has all."""
    add_index(fake_registry, "warm")
    add_images(fake_registry, "cold-1", "cold-2", "cold-3", "elsewhere")
    deployment = start(s3_faults.endpoint)
    pull_and_publish(deployment, bucket_view, "warm")
    put_image(bucket_view, fake_registry, "elsewhere")
    with s3_faults.inject(kind):
        keys = pull_all(deployment, "warm", "cold-1", "cold-2", "cold-3", "elsewhere")
        keys |= pull_all(deployment, "warm", "cold-1", "cold-2")
    eventually(lambda: keys <= bucket_view.listed(), "everything pulled is in the bucket", within_s=BACK_WITHIN_S)
    eventually(lambda: not bucket_view.uploads(), "no upload is unfinished")


@pytest.mark.parametrize("kind", ["frozen", "5 s per call", "100 KB/s"])
def test_a_cold_layer_is_not_slowed_down(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    fake_registry: FakeRegistry,
    s3_faults: S3Faults,
    kind: str,
) -> None:
    """64 MiB from the upstream during an outage that Dockyard has detected take at most 10 % longer than before it.

    The fastest of three counts: what else the machine does may slow down one.
    """
    fake_registry.on("blob", faults.slow(UPSTREAM_BYTES_PER_S))
    before, *during = (fake_registry.add_blob(Bytes(layer(f"{kind} {number}", LAYER_BYTES))) for number in range(4))
    hints = [fake_registry.add_blob(layer(f"{kind} hint {number}", 10_000)) for number in range(8)]
    deployment = start(s3_faults.endpoint)
    usual = fetch(deployment, before)
    eventually(lambda: bucket_view.listed() == {blob_key(before)}, "the first layer is published")
    with s3_faults.inject(kind):
        deployment.get_concurrently([f"/v2/{NAME}/blobs/{digest}" for digest in hints])  # each worker detects the fault
        is_as_usual = any(is_within(fetch(deployment, each), 1.1 * usual, slack_s=SLACK_S) for each in during)
    assert is_as_usual, f"more than {usual:.2f} s"
    eventually(lambda: blob_key(during[0]) in bucket_view.listed(), "the layer is published")


def test_only_one_pull_waits_for_an_outage(
    start: Callable[..., Deployment], fake_registry: FakeRegistry, s3_faults: S3Faults
) -> None:
    """S3 accepts connections and does not respond: of many cold blobs, only the first is slower than usual.

    The first may wait for the timeout of a request (10 s); 25 s are enough to show whether another one waits again.
    """
    deployment = start(s3_faults.endpoint, workers=1)
    usual = [fetch(deployment, fake_registry.add_blob(layer(f"before {number}", 10_000))) for number in range(5)]
    took = []
    with s3_faults.inject("frozen"):
        until = time.monotonic() + 25
        while time.monotonic() < until:
            took.append(fetch(deployment, fake_registry.add_blob(layer(f"outage {len(took)}", 10_000))))
            time.sleep(0.05)  # the rate of the pulls, not a wait for an event
    waited = sum(each for each in took if not is_within(each, 0, control_s=max(usual)))
    assert is_within(waited, 11), f"{waited:.0f} s of 25 s were spent waiting for S3, in {len(took)} pulls"


@pytest.mark.parametrize("at", ["the first part", "the end"])
def test_a_failed_multipart_upload_is_aborted(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy, fake_registry: FakeRegistry, at: str
) -> None:
    """A multipart upload that fails leaves nothing behind, and the blob is uploaded again."""
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
    eventually(lambda: broken and bucket_view.listed() == {blob_key(digest)}, "the blob is published")
    assert not bucket_view.uploads()


def test_an_upload_is_aborted_after_a_restart_of_s3(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    minio: Server,
    proxy: S3Proxy,
    fake_registry: FakeRegistry,
) -> None:
    """S3 is killed during a multipart upload and started again: in the end no upload is unfinished.

    It is killed while a part is sent: before that, Dockyard may not have the id of the upload yet.
    """
    digest = fake_registry.add_blob(layer("killed", 6 * MIB), algorithm="sha512")
    is_killed = threading.Event()

    def kill_at_the_first_part(request: Request) -> Forward:
        if request.operation == "PUT uploadId" and not is_killed.is_set():
            minio.stop()
            is_killed.set()
        return Forward()

    proxy.rule = kill_at_the_first_part
    fetch(start(proxy.host), digest)
    assert is_killed.wait(EVENT_TIMEOUT_S)
    minio.start()
    eventually(lambda: bucket_view.listed() == {blob_key(digest)}, "the blob is published")
    eventually(lambda: not bucket_view.uploads(), "no upload is unfinished")
    assert proxy.counted()["DELETE uploadId"]


def test_an_overload_halves_the_concurrent_uploads(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    proxy: S3Proxy,
    fake_registry: FakeRegistry,
    stack: ExitStack,
) -> None:
    """After 503 SlowDown to eight uploads, four of the next blobs are uploaded while they are downloaded."""
    deployment = start(proxy.host, workers=1)
    first: set[str] = set()
    second: set[str] = set()
    failed: list[Request] = []
    may_succeed = stack.enter_context(set_at_exit(threading.Event()))

    def fail_or_delay(request: Request) -> Forward | Respond:
        """Reject eight uploads. The others of the first layers fail, too, and those of the second ones take long."""
        key = object_key(request)
        if request.method == "PUT" and key in first and not may_succeed.is_set():
            failed.append(request)
            is_rejected = len(failed) <= MAX_STREAMED_UPLOADS
            return s3_error(503, "SlowDown") if is_rejected else s3_error(500, "InternalError")
        if request.method == "PUT" and key in second:
            may_succeed.wait(EVENT_TIMEOUT_S)
        return Forward()

    def count_uploads(keys: set[str], expected: int) -> int:
        """Download at least twelve layers at the same time until `expected` uploads run; return how many do then."""
        with ExitStack() as downloads:
            go_on = downloads.enter_context(set_at_exit(threading.Event()))
            stall = fake_registry.on("blob", faults.stalled(0.5, go_on))

            def download_another() -> None:
                digest = fake_registry.add_blob(layer(f"{len(first)} {len(second)}", MIB))
                keys.add(blob_key(digest))
                downloads.enter_context(deployment.stream(f"/v2/{NAME}/blobs/{digest}"))
                fake_registry.wait_for(
                    lambda: fake_registry.count("blob", reference=digest) > 0, "it is being downloaded"
                )

            def have_begun() -> bool:
                time.sleep(QUIET_S)  # there is no event when no other upload starts
                return uploads(keys) >= expected

            for _ in range(12):
                download_another()
            # A failed upload is counted a moment before another may run instead of it: then one more is needed.
            eventually(lambda: have_begun() or download_another(), "as many uploads as expected have begun")
            fake_registry.remove_rules(stall)
            return uploads(keys)

    def uploads(keys: set[str]) -> int:
        return sum(request.method == "PUT" and object_key(request) in keys for request in list(proxy.requests))

    proxy.rule = fail_or_delay
    assert count_uploads(first, MAX_STREAMED_UPLOADS) == MAX_STREAMED_UPLOADS
    eventually(
        lambda: deployment.metric("dockyard_published_total", outcome="failed") == len(failed),
        "all rejected uploads have ended",
    )
    fake_registry.clear_exchanges()
    # Once for all failures, but again for those that come after a pause, on a busy machine.
    halved = deployment.wait_for_log("503 SlowDown").count("503 SlowDown")
    expected = max(MAX_STREAMED_UPLOADS >> halved, 1)
    assert expected < MAX_STREAMED_UPLOADS
    assert count_uploads(second, expected) == expected
    may_succeed.set()
    eventually(lambda: first | second == bucket_view.listed(), "all is in the bucket")


def test_a_slow_bucket_is_used_while_the_upstream_is_down(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, s3_faults: S3Faults
) -> None:
    """An image that only a slow bucket has can be pulled."""
    add_images(fake_registry, "v1")
    put_image(bucket_view, fake_registry, "v1")
    deployment = start(s3_faults.endpoint, workers=1)
    fake_registry.listener.close()
    with s3_faults.inject("2 s per call"):
        pull(deployment, "v1")

"""A stranger asks for a blob under a repository that does not name it: the steps are the same wherever the blob is.

The steps of one worker are recorded: calls in threads, requests to the bucket and to the upstream. A test of the times
through a running server is in `test_link_timing.py`; this one finds each step that differs, however fast it is.
"""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dockyard.cache.blobs import Blobs
from dockyard.cache.downloads import Downloads
from dockyard.cache.links import Links
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.config.settings import Auth, Upstream
from dockyard.errors import BlobUnknown, FailureDetails, Outage, RegistryError, Unavailable
from dockyard.oci.reference import Digest, Name
from dockyard.routing import Target
from dockyard.s3.bucket import Bucket
from dockyard.s3.outbox import Outbox
from dockyard.s3.publisher import Publisher
from dockyard.s3.store import ObjectInfo
from dockyard.storage.local import LocalStore
from dockyard.workers.peers import Peers
from tests.support.busy_machine import EVENT_TIMEOUT_S

UPSTREAM = Upstream(prefix="up.test", registry="up.test", auth=Auth(type="anonymous"))
SECRET = Target(UPSTREAM, "secret", Name.parse("up.test/secret"))
STRANGE = Target(UPSTREAM, "open", Name.parse("up.test/open"))
BODY = os.urandom(2_000_000)
DIGEST = Digest.of(BODY)
PLACES = ["nowhere", "local store", "interrupted", "downloading", "bucket", "local store and bucket"]

T = TypeVar("T")


class RecordedThreads(Threads):
    """Threads that record what runs in them."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self._steps = steps

    async def disk(self, call: Callable[..., T], *args: object) -> T:
        self._steps.append(f"disk {call.__qualname__}")
        return await super().disk(call, *args)

    async def verify(self, call: Callable[..., T], *args: object) -> T:
        self._steps.append(f"verify {call.__qualname__}")
        return await super().verify(call, *args)

    async def links(self, call: Callable[..., T], *args: object) -> T:
        self._steps.append(f"links {call.__qualname__}")
        return await super().links(call, *args)

    async def bucket(self, call: Callable[..., T], *args: object) -> T:
        self._steps.append("bucket")
        return await super().bucket(call, *args)

    async def upstream(self, target: Target, call: Callable[..., T], *args: object, deadline: float | None = None) -> T:
        self._steps.append(f"upstream {call.__qualname__} {target.name}")
        return await super().upstream(target, call, *args, deadline=deadline)

    async def download(self, target: Target, call: Callable[..., T], *args: object) -> T:
        self._steps.append("download")
        return await super().download(target, call, *args)


class HeldBody:
    """A body of which half is sent until the gate opens."""

    is_web_page = False
    encoding = ""
    details = FailureDetails("registry.test:443", "HTTP 200 OK", "response")

    def __init__(self, gate: threading.Event) -> None:
        self.size: int | None = len(BODY)
        self.start = 0
        self._gate, self._at = gate, 0

    def read(self, amount: int) -> bytes:
        if self._at >= len(BODY) // 2:
            assert self._gate.wait(EVENT_TIMEOUT_S)
        chunk = BODY[self._at : min(self._at + amount, len(BODY) // 2 if not self._gate.is_set() else len(BODY))]
        self._at += len(chunk)
        return chunk

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self._gate.set()


class OneRepositoryUpstream:
    """An upstream that has the blob in the secret repository, or is down."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.error: RegistryError | None = None

    def head_blob(self, repository: str, digest: Digest) -> int:
        if self.error:
            raise self.error
        if (repository, digest) == ("secret", DIGEST):
            return len(BODY)
        raise BlobUnknown(f"up.test has no blob {digest}")

    def open_blob(self, repository: str, digest: Digest, start: int = 0, *_: object) -> HeldBody:
        assert (repository, digest) == ("secret", DIGEST)
        return HeldBody(self.gate)

    def with_login(self, _: object) -> "OneRepositoryUpstream":
        return self


class RecordedS3:
    """A bucket with or without the blob, and without links."""

    def __init__(self, steps: list[str]) -> None:
        self.has_blob = False
        self._steps = steps

    def has_link(self, name: Name, _: Digest) -> bool:
        self._steps.append(f"S3 link of {name}")
        return False

    def stat_blob(self, _: Digest) -> ObjectInfo | None:
        self._steps.append("S3 blob")
        return ObjectInfo(len(BODY), 1.0) if self.has_blob else None

    def open_blob(self, *_: Any) -> None:
        return None


class RecordedWorker:
    """One worker over a directory; `steps` are recorded while a question is asked."""

    def __init__(self, directory: Path) -> None:
        self.steps: list[str] = []
        self.upstream = OneRepositoryUpstream()
        self.s3 = RecordedS3(self.steps)
        self.local = LocalStore(directory, "cache/", 0)
        self.local.create_directories()
        self.threads, self.peers = RecordedThreads(self.steps), Peers(directory / "run", 1)
        bucket: Any = Bucket(self.s3)  # type: ignore[arg-type]
        publisher = Publisher(self.local, None, Outbox(directory / "unpublished"), 0, lambda _: True)
        stores = Stores(self.local, bucket, publisher)
        upstreams: Any = {"up.test": self.upstream}
        self.downloads = Downloads(stores, self.peers, upstreams, self.threads)
        blobs = Blobs(stores, self.downloads, self.peers, upstreams, self.threads, redirects=True)
        self.links = Links(stores, blobs, self.threads)
        self._bucket = bucket

    async def put_blob(self, place: str) -> None:
        """Bring the blob to a place."""
        if "local store" in place or place == "interrupted":
            partial_file = self.local.claim_partial_file(DIGEST)
            assert partial_file is not None
            partial_file.append(BODY if place != "interrupted" else BODY[:1_000_000])
            if place != "interrupted":
                assert self.local.commit(partial_file)
            partial_file.close()
        self.s3.has_blob = "bucket" in place
        if place == "downloading":
            download, _ = self.downloads.join(SECRET, DIGEST)
            await asyncio.wait_for(download.wait_for_byte(0), EVENT_TIMEOUT_S)

    async def ask(self, target: Target) -> tuple[type[RegistryError], str]:
        """Ask for the blob; return the error."""
        self.steps.clear()
        with pytest.raises(RegistryError) as caught:
            await self.links.require(target, DIGEST)
        return type(caught.value), caught.value.message

    def close(self) -> None:
        self.upstream.gate.set()
        self.downloads.stop()
        self._bucket.close()
        self.peers.close()
        self.threads.close()


@pytest.fixture
async def make_worker(tmp_path: Path) -> AsyncIterator[Callable[[], RecordedWorker]]:
    """Start workers, each over a directory of its own."""
    workers: list[RecordedWorker] = []

    def make() -> RecordedWorker:
        workers.append(RecordedWorker(tmp_path / str(len(workers))))
        return workers[-1]

    yield make
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("is_up", [True, False], ids=["upstream up", "upstream down"])
async def test_the_steps_and_the_error_do_not_depend_on_where_the_blob_is(
    make_worker: Callable[[], RecordedWorker], *, is_up: bool
) -> None:
    """For the first question and for the next ones."""
    answers = {}
    for place in PLACES:
        worker = make_worker()
        await worker.put_blob(place)
        worker.upstream.error = None if is_up else Unavailable("the upstream is down", retry_after_s=3)
        answers[place] = [(await worker.ask(STRANGE), worker.steps.copy()) for _ in range(3)]
    expected = answers["nowhere"]
    assert answers == dict.fromkeys(PLACES, expected)
    (error, steps), *_ = expected
    assert issubclass(error[0], BlobUnknown if is_up else Outage)
    assert steps == [
        "disk LinkIndex.is_current",
        *(["bucket", "S3 link of up.test/open"]),
        "upstream OneRepositoryUpstream.head_blob up.test/open",
    ]

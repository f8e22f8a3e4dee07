"""Reading images through Dockyard: first all manifests, so that it is known what to read; then every blob once.

A blob that several images share is read for the first of them. Should that fail, it is tried under the names of the
others: another upstream may have it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Final, Protocol

import attrs

from dockyard.errors import RegistryError
from dockyard.oci.manifest import Manifest
from dockyard.oci.reference import Digest
from dockyard.pull.client import Client, Watcher
from dockyard.pull.images import Image
from dockyard.pull.plan import Blob, blobs_of, choose, entries_of, is_index
from dockyard.pull.platforms import Platform
from dockyard.pull.tries import Failed

INDEX_DEPTH_AT_MOST: Final = 3
NAMES_AT_MOST: Final = 3  # under which a shared blob is tried


@attrs.frozen
class Order:
    """What was asked for; `platforms` None: all."""

    images: tuple[Image, ...]
    platforms: tuple[Platform, ...] | None
    jobs: int


@attrs.define
class Found:
    """What there is to read of an image, and what went wrong. Filled by one thread."""

    image: Image
    digest: Digest | None = None
    platforms: list[Platform] = attrs.field(factory=list)
    blobs: dict[Digest, Blob] = attrs.field(factory=dict)
    errors: list[str] = attrs.field(factory=list)


@attrs.frozen
class BlobRead:
    """How reading a blob ended; `error` is None when all is well. `size` is None when it never came."""

    digest: Digest
    size: int | None
    how: str
    tries: int
    error: str | None = None


@attrs.frozen
class ImageRead:
    """How reading an image ended. `size` is the sum of its blobs."""

    image: Image
    digest: Digest | None
    platforms: tuple[Platform, ...]
    blobs: int
    size: int
    errors: tuple[str, ...]

    @property
    def is_warm(self) -> bool:
        return not self.errors


class Show(Protocol):
    """Tells a person or a program what happens. Only `watch` and what it returns are called in other threads."""

    def plan(self, blobs: Sequence[Blob]) -> None: ...

    def watch(self, blob: Blob) -> Watcher: ...

    def blob(self, read: BlobRead) -> None: ...

    def image(self, read: ImageRead) -> None: ...


def warm(client: Client, order: Order, show: Show) -> list[ImageRead]:
    """Read what was ordered; return how each image ended, in the order of the order."""
    with _threads(client, order.jobs) as pool:
        finding = [pool.submit(find, client, image, order.platforms) for image in order.images]
        found = [future.result() for future in finding]
        return _read_blobs(pool, client, found, show)


def find(client: Client, image: Image, platforms: Sequence[Platform] | None) -> Found:
    """Read the manifests of an image."""
    found = Found(image)
    try:
        manifest = client.read_manifest(image, image.reference)
        found.digest = manifest.digest
        _look_into(client, found, manifest, platforms, INDEX_DEPTH_AT_MOST)
    except (Failed, RegistryError) as exc:
        found.errors.append(exc.message)
    return found


def _look_into(
    client: Client, found: Found, manifest: Manifest, platforms: Sequence[Platform] | None, depth: int
) -> None:
    if not is_index(manifest):
        found.blobs |= {blob.digest: blob for blob in blobs_of(manifest)}
        return
    if depth == 0:
        raise Failed.final("an index in an index in an index")
    entries = entries_of(manifest)
    choice = choose(entries, platforms)
    if choice.missing:
        there = ", ".join(sorted({str(entry.platform) for entry in entries if entry.platform})) or "none"
        found.errors.append(f"not there for {', '.join(map(str, choice.missing))}; there is: {there}")
    for entry in choice.entries:
        try:
            child = client.read_manifest(found.image, entry.digest)
            _look_into(client, found, child, platforms, depth - 1)
        except (Failed, RegistryError) as exc:
            found.errors.append(f"{entry.platform or entry.digest}: {exc.message}")
            continue
        if entry.platform and entry.platform not in found.platforms:
            found.platforms.append(entry.platform)


def _read_blobs(pool: ThreadPoolExecutor, client: Client, found: Sequence[Found], show: Show) -> list[ImageRead]:
    wanted: dict[Digest, Blob] = {}
    users: dict[Digest, list[int]] = {}
    for number, each in enumerate(found):
        for blob in each.blobs.values():
            wanted.setdefault(blob.digest, blob)
            users.setdefault(blob.digest, []).append(number)
    show.plan(list(wanted.values()))
    left = [set(each.blobs) for each in found]
    done: dict[Digest, BlobRead] = {}
    ended: dict[int, ImageRead] = {}

    def end_images(numbers: Sequence[int]) -> None:
        for number in numbers:
            if not left[number] and number not in ended:
                ended[number] = _sum_up(found[number], done)
                show.image(ended[number])

    end_images(range(len(found)))
    reading: list[Future[BlobRead]] = [
        pool.submit(_read_blob, client, blob, _names(found, users[blob.digest]), show.watch) for blob in wanted.values()
    ]
    for future in as_completed(reading):
        read = future.result()
        done[read.digest] = read
        show.blob(read)
        for number in users[read.digest]:
            left[number].discard(read.digest)
        end_images(users[read.digest])
    return [ended[number] for number in range(len(found))]


def _names(found: Sequence[Found], numbers: Sequence[int]) -> list[Image]:
    """Return one image for each name that the blob is known under."""
    by_name = {(found[number].image.ns, found[number].image.name): found[number].image for number in reversed(numbers)}
    return list(reversed(by_name.values()))[:NAMES_AT_MOST]


def _read_blob(client: Client, blob: Blob, images: Sequence[Image], watch: Callable[[Blob], Watcher]) -> BlobRead:
    watcher = watch(blob)
    error = ""
    for image in images:
        try:
            read = client.read_blob(image, blob.digest, watcher)
        except Failed as exc:
            error = error or exc.message
        else:
            return BlobRead(blob.digest, read.size, read.how, read.tries)
    return BlobRead(blob.digest, None, "", 0, error)


def _sum_up(found: Found, done: dict[Digest, BlobRead]) -> ImageRead:
    reads = [done[digest] for digest in found.blobs]
    errors = [*found.errors, *(f"{read.digest}: {read.error}" for read in reads if read.error is not None)]
    size = sum(read.size or 0 for read in reads)
    return ImageRead(found.image, found.digest, tuple(found.platforms), len(reads), size, tuple(errors))


@contextmanager
def _threads(client: Client, jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end soon when the command is interrupted."""
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="pull")
    try:
        yield pool
    except BaseException:
        client.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)

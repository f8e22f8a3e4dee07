"""Reads images through Dockyard: first all manifests, to find out which blobs there are; then every blob once.

A blob that several images share is read under the name of the first of them. If that fails, it is read under the names
of the others, whose upstreams may have it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Final, Protocol

import attrs

from dockyard.errors import RegistryError
from dockyard.oci.manifest import Manifest
from dockyard.oci.reference import Digest, Name
from dockyard.pull.client import DockyardClient, ProgressCallback
from dockyard.pull.images import Image
from dockyard.pull.plan import ImageBlob, blobs_of, entries_of, is_index, select_entries
from dockyard.pull.platforms import Platform
from dockyard.pull.retries import PullError

MAX_INDEX_DEPTH: Final = 3
MAX_NAMES_PER_BLOB: Final = 3
_NOT_KEPT: Final = (
    "was fetched and not kept: the cache of that server has no space for it (its log says which setting to raise)"
)


@attrs.define
class ImageContent:
    """The platforms and blobs of an image, and the errors in finding them. Written by one thread."""

    image: Image
    digest: Digest | None = None
    platforms: list[Platform] = attrs.field(factory=list)
    blobs: dict[Digest, ImageBlob] = attrs.field(factory=dict)
    errors: list[str] = attrs.field(factory=list)


@attrs.frozen
class BlobResult:
    """The result of reading a blob. `size` is set if it was read, and `error` is None if it is cached now."""

    digest: Digest
    size: int | None
    cache_status: str
    attempts: int
    error: str | None = None


@attrs.frozen
class ImageResult:
    """The result of reading an image. `size` is the sum of its blobs that were read.

    `image` is a text as it was given if nothing was requested.
    """

    image: Image | str
    digest: Digest | None
    platforms: tuple[Platform, ...]
    blobs: int
    size: int
    errors: tuple[str, ...]

    @property
    def is_warm(self) -> bool:
        return not self.errors


class Output(Protocol):
    """Reports progress and results. Only `watch` and the callback that it returns are called from other threads."""

    def plan(self, blobs: Sequence[ImageBlob]) -> None:
        """All manifests are read, and these blobs are to be read."""

    def watch(self, blob: ImageBlob) -> ProgressCallback:
        """A blob is about to be read."""

    def blob(self, result: BlobResult) -> None: ...

    def image(self, result: ImageResult) -> None: ...

    def end(self, results: Sequence[ImageResult], seconds: float) -> None: ...


def warm(
    client: DockyardClient, images: Sequence[Image], platforms: Sequence[Platform] | None, jobs: int, output: Output
) -> list[ImageResult]:
    """Read images in `jobs` threads, for these platforms (None: all). Return the results in the order of the images."""
    with _threads(client, jobs) as pool:
        futures = [pool.submit(read_manifests, client, image, platforms) for image in images]
        contents = [future.result() for future in futures]
        return _read_blobs(pool, client, contents, output)


def read_manifests(client: DockyardClient, image: Image, platforms: Sequence[Platform] | None) -> ImageContent:
    """Read the manifests of an image, to find its blobs."""
    content = ImageContent(image)
    try:
        manifest = client.read_manifest(image, image.reference)
        content.digest = manifest.digest
        _add_manifest(client, content, manifest, platforms, MAX_INDEX_DEPTH)
    except (PullError, RegistryError) as exc:
        content.errors.append(exc.message)
    return content


def _add_manifest(
    client: DockyardClient,
    content: ImageContent,
    manifest: Manifest,
    platforms: Sequence[Platform] | None,
    max_depth: int,
) -> None:
    if not is_index(manifest):
        content.blobs |= {blob.digest: blob for blob in blobs_of(manifest)}
        return
    if max_depth == 0:
        raise PullError.final(f"indexes are nested more than {MAX_INDEX_DEPTH} deep")
    entries = entries_of(manifest)
    selection = select_entries(entries, platforms)
    if selection.missing:
        available = ", ".join(sorted({str(entry.platform) for entry in entries if entry.platform})) or "none"
        content.errors.append(f"no manifest for {', '.join(map(str, selection.missing))}; set --platform: {available}")
    for entry in selection.entries:
        try:
            child = client.read_manifest(content.image, entry.digest)
            _add_manifest(client, content, child, platforms, max_depth - 1)
        except (PullError, RegistryError) as exc:
            content.errors.append(f"{entry.platform or entry.digest}: {exc.message}")
            continue
        if entry.platform and entry.platform not in content.platforms:
            content.platforms.append(entry.platform)


def _read_blobs(
    pool: ThreadPoolExecutor, client: DockyardClient, contents: Sequence[ImageContent], output: Output
) -> list[ImageResult]:
    blobs: dict[Digest, ImageBlob] = {}
    images_with: dict[Digest, list[int]] = {}  # digest of a blob -> indexes in `contents`
    for index, content in enumerate(contents):
        for blob in content.blobs.values():
            blobs.setdefault(blob.digest, blob)
            images_with.setdefault(blob.digest, []).append(index)
    output.plan(list(blobs.values()))
    unread = [set(content.blobs) for content in contents]
    blob_results: dict[Digest, BlobResult] = {}
    image_results: dict[int, ImageResult] = {}

    def report_finished_images(indexes: Sequence[int]) -> None:
        for index in indexes:
            if not unread[index] and index not in image_results:
                image_results[index] = _sum_up(contents[index], blob_results)
                output.image(image_results[index])

    report_finished_images(range(len(contents)))
    futures: list[Future[BlobResult]] = [
        pool.submit(
            _read_blob,
            client,
            blob,
            _distinct_names(contents[index].image for index in images_with[digest]),
            output.watch,
        )
        for digest, blob in blobs.items()
    ]
    for future in as_completed(futures):
        result = future.result()
        blob_results[result.digest] = result
        output.blob(result)
        for index in images_with[result.digest]:
            unread[index].discard(result.digest)
        report_finished_images(images_with[result.digest])
    return [image_results[index] for index in range(len(contents))]


def _distinct_names(images: Iterable[Image]) -> list[Image]:
    """Return one image for each different name, the first ones."""
    by_name: dict[tuple[str | None, Name], Image] = {}
    for image in images:
        by_name.setdefault((image.ns, image.name), image)
    return list(by_name.values())[:MAX_NAMES_PER_BLOB]


def _read_blob(
    client: DockyardClient, blob: ImageBlob, images: Sequence[Image], watch: Callable[[ImageBlob], ProgressCallback]
) -> BlobResult:
    on_progress = watch(blob)
    error: str | None = None
    for image in images:
        try:
            fetched = client.read_blob(image, blob.digest, on_progress)
        except PullError as exc:
            error = error or exc.message
        else:
            error = _NOT_KEPT if fetched.cache_status == "asked" else None
            return BlobResult(blob.digest, fetched.size, fetched.cache_status, fetched.attempts, error)
    return BlobResult(blob.digest, None, "", 0, error)


def _sum_up(content: ImageContent, blob_results: dict[Digest, BlobResult]) -> ImageResult:
    results = [blob_results[digest] for digest in content.blobs]
    errors = [*content.errors, *(f"{result.digest}: {result.error}" for result in results if result.error is not None)]
    size = sum(result.size or 0 for result in results)
    return ImageResult(content.image, content.digest, tuple(content.platforms), len(results), size, tuple(errors))


@contextmanager
def _threads(client: DockyardClient, jobs: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end soon when the command is interrupted."""
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="pull")
    try:
        yield pool
    except BaseException:
        client.stop()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()

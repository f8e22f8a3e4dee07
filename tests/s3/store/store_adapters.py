"""One interface to the local store and the S3 store, so that one conformance suite can test both."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3.store import S3Store
from dockyard.storage.directories import PARTIAL
from dockyard.storage.local import LocalStore, Pointer
from dockyard.storage.memory_budget import MemoryBudget
from dockyard.storage.partial_file import PartialFile

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


class Store(Protocol):
    """Stores blobs, manifests and tag pointers under the documented keys."""

    prefix: str

    def publish(self, digest: Digest, size: int, chunks: Iterable[bytes]) -> None:
        """Store a blob. Raises on any failure."""

    def read(self, digest: Digest, start: int = 0) -> bytes | None:
        """Read a blob from byte `start` on; None when it is absent."""

    def write_manifest(self, name: Name, digest: Digest, body: bytes) -> None:
        """Store a manifest."""

    def read_manifest(self, name: Name, digest: Digest) -> bytes | None:
        """Read a manifest; None when it is absent."""

    def write_pointer(self, name: Name, tag: Tag, digest: Digest) -> None:
        """Store a tag pointer."""

    def read_pointer(self, name: Name, tag: Tag) -> Digest | None:
        """Read a tag pointer; None when it is absent."""

    def put_raw(self, key: str, body: bytes) -> None:
        """Write an object without the store under test."""

    def get_raw(self, key: str) -> bytes | None:
        """Read an object without the store under test."""


class LocalStoreAdapter:
    """The local store, used as a download uses it."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self.prefix = prefix
        self._directory = directory
        self._store = LocalStore(directory, prefix, 0)
        self._store.create_directories()

    def publish(self, digest: Digest, size: int, chunks: Iterable[bytes]) -> None:
        path = self._directory / PARTIAL / str(digest).replace(":", "-")
        partial_file = PartialFile.claim(digest, path, None, MemoryBudget())
        if partial_file is None:
            return  # another thread is writing it
        try:
            for chunk in chunks:
                partial_file.append(chunk)
            assert partial_file.received_bytes == size
            assert partial_file.has_correct_digest()
            assert self._store.commit(partial_file)
        except BaseException:
            partial_file.discard()
            raise

    def read(self, digest: Digest, start: int = 0) -> bytes | None:
        stored = self._store.blobs.open_verified(digest)
        if stored is None:
            return None
        with open(stored.fd, "rb") as file:
            assert os.fstat(stored.fd).st_size == stored.size
            file.seek(start)
            return file.read()

    def write_manifest(self, name: Name, digest: Digest, body: bytes) -> None:
        self._store.write_manifest(name, digest, body)

    def read_manifest(self, name: Name, digest: Digest) -> bytes | None:
        return self._store.read_manifest(name, digest)

    def write_pointer(self, name: Name, tag: Tag, digest: Digest) -> None:
        assert self._store.move_pointer(name, tag, self._store.read_pointer(name, tag), Pointer(digest, time.time()))

    def read_pointer(self, name: Name, tag: Tag) -> Digest | None:
        pointer = self._store.read_pointer(name, tag)
        return pointer.digest if pointer else None

    def put_raw(self, key: str, body: bytes) -> None:
        path = self._directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    def get_raw(self, key: str) -> bytes | None:
        path = self._directory / key
        return path.read_bytes() if path.is_file() else None


class S3StoreAdapter:
    """The S3 store."""

    def __init__(self, s3: S3Store, prefix: str) -> None:
        self.prefix = prefix
        self._s3 = s3

    def publish(self, digest: Digest, size: int, chunks: Iterable[bytes]) -> None:
        self._s3.publish_blob(digest, size, reader(chunks))

    def read(self, digest: Digest, start: int = 0) -> bytes | None:
        body = self._s3.open_blob(digest, start)
        if body is None:
            return None
        assert body.start == start
        read = b"".join(iter(lambda: body.read(64 * 1024), b""))
        body.close()
        assert body.size == start + len(read)
        return read

    def write_manifest(self, name: Name, digest: Digest, body: bytes) -> None:
        self._s3.write_manifest(name, digest, body, MANIFEST_TYPE)

    def read_manifest(self, name: Name, digest: Digest) -> bytes | None:
        found = self._s3.read_manifest(name, digest)
        return found.body if found else None

    def write_pointer(self, name: Name, tag: Tag, digest: Digest) -> None:
        self._s3.write_pointer(name, tag, digest)

    def read_pointer(self, name: Name, tag: Tag) -> Digest | None:
        found = self._s3.read_pointer(name, tag)
        return found.digest if found else None

    def put_raw(self, key: str, body: bytes) -> None:
        assert self._s3._client.request("put raw", "PUT", key, body=body)

    def get_raw(self, key: str) -> bytes | None:
        response = self._s3._client.request("get raw", "GET", key, max_bytes=2**30)
        return response.body if response else None


def reader(chunks: Iterable[bytes]) -> Callable[[int], Iterator[bytes]]:
    """Return the function from which `S3Store.publish_blob` reads these chunks."""

    def read(start: int) -> Iterator[bytes]:
        for chunk in chunks:
            if start < len(chunk):
                yield chunk[start:]
            start = max(start - len(chunk), 0)

    return read


def pieces(body: bytes, length: int = 256 * 1024) -> list[bytes]:
    """Split a body into chunks."""
    return [body[start : start + length] for start in range(0, len(body), length)]

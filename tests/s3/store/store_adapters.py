"""One face for all stores, so that one suite can judge them."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from dockyard.oci.reference import Digest, Name, Tag
from dockyard.s3 import S3Store
from dockyard.storage.local import LocalStore, Pointer

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


class Store(Protocol):
    """A place for blobs, manifests and pointers, under the keys of the original."""

    prefix: str

    def publish(self, digest: Digest, size: int, chunks: Iterable[bytes]) -> None:
        """Store a blob; whatever goes wrong is raised."""

    def read(self, digest: Digest, start: int = 0) -> bytes | None:
        """A blob from a byte on."""

    def write_manifest(self, name: Name, digest: Digest, body: bytes) -> None:
        """Store a manifest."""

    def read_manifest(self, name: Name, digest: Digest) -> bytes | None:
        """A manifest."""

    def write_pointer(self, name: Name, tag: Tag, digest: Digest) -> None:
        """Store a pointer."""

    def read_pointer(self, name: Name, tag: Tag) -> Digest | None:
        """Where a tag points to."""

    def put_raw(self, key: str, body: bytes) -> None:
        """Put an object there as somebody else would."""

    def get_raw(self, key: str) -> bytes | None:
        """The object as somebody else would see it."""


class LocalStoreAdapter:
    """The local store, used as a fill uses it."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self.prefix = prefix
        self._directory = directory
        self._tier = LocalStore(directory, prefix, 0)
        self._tier.create_directories()

    def publish(self, digest: Digest, size: int, chunks: Iterable[bytes]) -> None:
        partial_file = self._tier.claim_partial_file(digest)
        if partial_file is None:
            return  # another thread writes it
        try:
            for chunk in chunks:
                partial_file.append(chunk)
            assert partial_file.received_bytes == size
            assert partial_file.has_correct_digest()
            assert self._tier.commit(partial_file)
        except BaseException:
            partial_file.discard()
            raise

    def read(self, digest: Digest, start: int = 0) -> bytes | None:
        stored = self._tier.open_blob(digest)
        if stored is None:
            return None
        with open(stored.fd, "rb") as file:
            assert os.fstat(stored.fd).st_size == stored.size
            file.seek(start)
            return file.read()

    def write_manifest(self, name: Name, digest: Digest, body: bytes) -> None:
        self._tier.write_manifest(name, digest, body)

    def read_manifest(self, name: Name, digest: Digest) -> bytes | None:
        return self._tier.read_manifest(name, digest)

    def write_pointer(self, name: Name, tag: Tag, digest: Digest) -> None:
        assert self._tier.move_pointer(name, tag, self._tier.read_pointer(name, tag), Pointer(digest, time.time()))

    def read_pointer(self, name: Name, tag: Tag) -> Digest | None:
        pointer = self._tier.read_pointer(name, tag)
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

    def __init__(self, tier: S3Store, prefix: str) -> None:
        self.prefix = prefix
        self._tier = tier

    def publish(self, digest: Digest, size: int, chunks: Iterable[bytes]) -> None:
        self._tier.publish_blob(digest, size, iter(chunks))

    def read(self, digest: Digest, start: int = 0) -> bytes | None:
        body = self._tier.open_blob(digest, start)
        if body is None:
            return None
        assert body.start == start
        read = b"".join(iter(lambda: body.read(64 * 1024), b""))
        body.close()
        assert body.size == start + len(read)
        return read

    def write_manifest(self, name: Name, digest: Digest, body: bytes) -> None:
        self._tier.write_manifest(name, digest, body, MANIFEST_TYPE)

    def read_manifest(self, name: Name, digest: Digest) -> bytes | None:
        found = self._tier.read_manifest(name, digest)
        return found.body if found else None

    def write_pointer(self, name: Name, tag: Tag, digest: Digest) -> None:
        self._tier.write_pointer(name, tag, digest)

    def read_pointer(self, name: Name, tag: Tag) -> Digest | None:
        found = self._tier.read_pointer(name, tag)
        return found.digest if found else None

    def put_raw(self, key: str, body: bytes) -> None:
        assert self._tier._client.request("put raw", "PUT", key, body=body)

    def get_raw(self, key: str) -> bytes | None:
        answer = self._tier._client.request("get raw", "GET", key, max_bytes=2**30)
        return answer.body if answer else None


def pieces(body: bytes, length: int = 256 * 1024) -> list[bytes]:
    """A body in chunks."""
    return [body[start : start + length] for start in range(0, len(body), length)]

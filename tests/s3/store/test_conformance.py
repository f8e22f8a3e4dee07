"""The conformance suite of stores: one set of tests for the local store and for the S3 store on real servers."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dockyard.oci.reference import Digest, Name, Tag
from tests.s3.store.servers import MIB, make_s3_store
from tests.s3.store.store_adapters import LocalStoreAdapter, S3StoreAdapter, Store, pieces

NAME = Name.parse("docker.io/library/app")
TAG = Tag.parse("latest")
BODY = os.urandom(1_000_003)
LARGE = os.urandom(13 * MIB + 1)  # larger than one PUT of a store under test
MANIFEST = b'{"schemaVersion":2}'


@pytest.fixture(params=["local", "minio", "versitygw"])
def store(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Iterator[Store]:
    """Each kind of store, empty below its own prefix."""
    if request.param == "local":
        yield LocalStoreAdapter(tmp_path, prefix)
        return
    s3 = make_s3_store(request.getfixturevalue(request.param).settings(prefix))
    yield S3StoreAdapter(s3, prefix)
    s3.close()


@pytest.mark.parametrize("body", [BODY, b"x", b"", LARGE], ids=["blob", "byte", "empty", "in parts"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_is_read_back(store: Store, body: bytes, algorithm: str) -> None:
    """A published blob has the same bytes."""
    digest = Digest.of(body, algorithm)
    store.publish(digest, len(body), pieces(body))
    assert store.read(digest) == body


@pytest.mark.parametrize("start", [1, 65_536, len(BODY) - 1])
def test_a_blob_is_read_from_any_byte(store: Store, start: int) -> None:
    """A download that was interrupted can be resumed."""
    digest = Digest.of(BODY)
    store.publish(digest, len(BODY), pieces(BODY))
    assert store.read(digest, start) == BODY[start:]


def test_an_object_that_was_never_stored_is_none(store: Store) -> None:
    """A missing object is not an error."""
    digest = Digest.of(b"never stored")
    found = (store.read(digest), store.read_manifest(NAME, digest), store.read_pointer(NAME, TAG))
    assert found == (None, None, None)


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["blob", "in parts"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_wrong_bytes_are_not_stored(store: Store, body: bytes, algorithm: str) -> None:
    """A blob with another digest than announced is rejected."""
    digest = Digest.of(body, algorithm)
    wrong = body[:-1] + bytes([body[-1] ^ 1])
    with pytest.raises(Exception):  # noqa: B017, PT011 - stores raise different exceptions
        store.publish(digest, len(body), pieces(wrong))
    assert store.read(digest) is None


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["blob", "in parts"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.999])
def test_an_incomplete_blob_is_not_stored(store: Store, body: bytes, kept: float) -> None:
    """A download that fails leaves no object, and its exception is raised."""

    class BreakingChunks:
        """May be read several times, as a file."""

        def __iter__(self) -> Iterator[bytes]:
            yield from pieces(body[: int(len(body) * kept)])
            raise ConnectionResetError("the upstream is gone")

    digest = Digest.of(body)
    with pytest.raises(ConnectionResetError, match="the upstream is gone"):
        store.publish(digest, len(body), BreakingChunks())
    assert store.read(digest) is None


@pytest.mark.parametrize("announced", [len(BODY) - 1, len(BODY) + 1])
def test_a_blob_of_another_size_is_not_stored(store: Store, announced: int) -> None:
    """A blob with another size than announced is rejected."""
    digest = Digest.of(BODY)
    with pytest.raises(Exception):  # noqa: B017, PT011 - stores raise different exceptions
        store.publish(digest, announced, pieces(BODY))
    assert store.read(digest) is None


def test_a_blob_can_be_published_again(store: Store) -> None:
    """Publishing a blob that is stored already changes nothing."""
    digest = Digest.of(BODY)
    for _ in range(2):
        store.publish(digest, len(BODY), pieces(BODY))
    assert store.read(digest) == BODY


def test_a_failed_upload_does_not_change_a_stored_blob(store: Store) -> None:
    """Uploading wrong bytes for a digest that is stored already does not damage it."""
    digest = Digest.of(BODY)
    store.publish(digest, len(BODY), pieces(BODY))
    with pytest.raises(Exception):  # noqa: B017, PT011 - stores raise different exceptions
        store.publish(digest, len(BODY), pieces(bytes(len(BODY))))
    assert store.read(digest) == BODY


def test_a_blob_can_be_published_concurrently(store: Store) -> None:
    """Replicas may upload the same layer at the same time."""
    digest = Digest.of(BODY)
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(store.publish, digest, len(BODY), pieces(BODY)) for _ in range(8)]:
            done.result()
    assert store.read(digest) == BODY


def test_a_manifest_is_read_back_in_its_repository_only(store: Store) -> None:
    """A manifest is stored for each repository separately."""
    digest = Digest.of(MANIFEST)
    store.write_manifest(NAME, digest, MANIFEST)
    assert store.read_manifest(NAME, digest) == MANIFEST
    assert store.read_manifest(Name.parse("docker.io/library/other"), digest) is None


def test_a_pointer_can_be_moved(store: Store) -> None:
    """The pointer that was written last is read."""
    first, second = Digest.of(b"first"), Digest.of(b"second", "sha512")
    store.write_pointer(NAME, TAG, first)
    store.write_pointer(NAME, TAG, second)
    assert store.read_pointer(NAME, TAG) == second


@pytest.mark.parametrize("garbage", [b"", b"latest", b"sha256:1234", b"\xff\xfe", b"sha256:" + b"a" * 2000])
def test_a_pointer_that_is_not_a_digest_is_none(store: Store, garbage: bytes) -> None:
    """A damaged pointer is treated as absent."""
    store.put_raw(f"{store.prefix}manifests/{NAME}/tags/{TAG}", garbage)
    assert store.read_pointer(NAME, TAG) is None


def test_objects_have_the_documented_keys(store: Store) -> None:
    """Another program finds the objects by these keys."""
    blob, manifest = Digest.of(BODY), Digest.of(MANIFEST)
    store.publish(blob, len(BODY), pieces(BODY))
    store.write_manifest(NAME, manifest, MANIFEST)
    store.write_pointer(NAME, TAG, manifest)
    root = store.prefix
    assert store.get_raw(f"{root}blobs/sha256/{blob.encoded[:2]}/{blob.encoded}") == BODY
    assert store.get_raw(f"{root}manifests/docker.io/library/app/sha256/{manifest.encoded}") == MANIFEST
    assert store.get_raw(f"{root}manifests/docker.io/library/app/tags/latest") == str(manifest).encode()


def test_objects_of_another_program_are_read(store: Store) -> None:
    """Objects that another program wrote are found by their keys; a pointer may end with a line feed."""
    blob, manifest = Digest.of(BODY), Digest.of(MANIFEST)
    root = store.prefix
    store.put_raw(f"{root}blobs/sha256/{blob.encoded[:2]}/{blob.encoded}", BODY)
    store.put_raw(f"{root}manifests/docker.io/library/app/sha256/{manifest.encoded}", MANIFEST)
    store.put_raw(f"{root}manifests/docker.io/library/app/tags/latest", f"{manifest}\n".encode())
    assert store.read(blob) == BODY
    assert store.read_manifest(NAME, manifest) == MANIFEST
    assert store.read_pointer(NAME, TAG) == manifest


def test_an_empty_object_is_not_a_blob(store: Store) -> None:
    """Some services leave an empty object after a crash."""
    digest = Digest.of(BODY)
    store.put_raw(f"{store.prefix}blobs/sha256/{digest.encoded[:2]}/{digest.encoded}", b"")
    assert store.read(digest) is None

"""What every store does, judged on the local store and on real S3 servers: one suite, so that none can lie."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dockyard.oci.reference import Digest, Name, Tag
from tests.s3.store.servers import MIB, make_tier
from tests.s3.store.store_adapters import LocalStoreAdapter, S3StoreAdapter, Store, pieces

NAME = Name.parse("docker.io/library/app")
TAG = Tag.parse("latest")
BODY = os.urandom(1_000_003)
LARGE = os.urandom(13 * MIB + 1)  # more than one PUT, to a tier under test
MANIFEST = b'{"schemaVersion":2}'


@pytest.fixture(params=["local", "minio", "versitygw"])
def store(request: pytest.FixtureRequest, tmp_path: Path, prefix: str) -> Iterator[Store]:
    """Each kind of store, empty below a prefix of its own."""
    if request.param == "local":
        yield LocalStoreAdapter(tmp_path, prefix)
        return
    tier = make_tier(request.getfixturevalue(request.param).settings(prefix))
    yield S3StoreAdapter(tier, prefix)
    tier.close()


@pytest.mark.parametrize("body", [BODY, b"x", b"", LARGE], ids=["blob", "byte", "empty", "in parts"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_blob_is_read_back(store: Store, body: bytes, algorithm: str) -> None:
    """What was published is there, to the byte."""
    digest = Digest.of(body, algorithm)
    store.publish(digest, len(body), pieces(body))
    assert store.read(digest) == body


@pytest.mark.parametrize("start", [1, 65_536, len(BODY) - 1])
def test_a_blob_is_read_from_any_byte(store: Store, start: int) -> None:
    """A fill that broke goes on where it was."""
    digest = Digest.of(BODY)
    store.publish(digest, len(BODY), pieces(BODY))
    assert store.read(digest, start) == BODY[start:]


def test_what_was_never_stored_is_not_there(store: Store) -> None:
    """A miss is None, and no error."""
    nobody = Digest.of(b"nobody")
    found = (store.read(nobody), store.read_manifest(NAME, nobody), store.read_pointer(NAME, TAG))
    assert found == (None, None, None)


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["blob", "in parts"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_wrong_bytes_are_not_stored(store: Store, body: bytes, algorithm: str) -> None:
    """Nothing is ever found under a digest that is not its own."""
    digest = Digest.of(body, algorithm)
    wrong = body[:-1] + bytes([body[-1] ^ 1])
    with pytest.raises(Exception):  # noqa: B017, PT011 - stores differ in how they say it
        store.publish(digest, len(body), pieces(wrong))
    assert store.read(digest) is None


@pytest.mark.parametrize("body", [BODY, LARGE], ids=["blob", "in parts"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.999])
def test_half_a_blob_is_not_stored(store: Store, body: bytes, kept: float) -> None:
    """A fill that fails leaves nothing behind, and its error is the one that is seen."""

    def breaking() -> Iterator[bytes]:
        yield from pieces(body[: int(len(body) * kept)])
        raise ConnectionResetError("the upstream is gone")

    digest = Digest.of(body)
    with pytest.raises(ConnectionResetError, match="the upstream is gone"):
        store.publish(digest, len(body), breaking())
    assert store.read(digest) is None


@pytest.mark.parametrize("announced", [len(BODY) - 1, len(BODY) + 1])
def test_another_number_of_bytes_is_not_stored(store: Store, announced: int) -> None:
    """The size is part of what was promised."""
    digest = Digest.of(BODY)
    with pytest.raises(Exception):  # noqa: B017, PT011 - stores differ in how they say it
        store.publish(digest, announced, pieces(BODY))
    assert store.read(digest) is None


def test_a_blob_can_be_published_again(store: Store) -> None:
    """The same digest is the same bytes: whoever comes second changes nothing."""
    digest = Digest.of(BODY)
    for _ in range(2):
        store.publish(digest, len(BODY), pieces(BODY))
    assert store.read(digest) == BODY


def test_a_failed_publication_leaves_what_was_there(store: Store) -> None:
    """Wrong bytes under a digest that is stored already do not damage it."""
    digest = Digest.of(BODY)
    store.publish(digest, len(BODY), pieces(BODY))
    with pytest.raises(Exception):  # noqa: B017, PT011 - stores differ in how they say it
        store.publish(digest, len(BODY), pieces(bytes(len(BODY))))
    assert store.read(digest) == BODY


def test_many_may_publish_the_same_blob_at_once(store: Store) -> None:
    """Replicas that fetched the same layer do not hurt each other."""
    digest = Digest.of(BODY)
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(store.publish, digest, len(BODY), pieces(BODY)) for _ in range(8)]:
            done.result()
    assert store.read(digest) == BODY


def test_a_manifest_is_read_back_in_its_repository_only(store: Store) -> None:
    """Manifests are kept for each repository."""
    digest = Digest.of(MANIFEST)
    store.write_manifest(NAME, digest, MANIFEST)
    assert store.read_manifest(NAME, digest) == MANIFEST
    assert store.read_manifest(Name.parse("docker.io/library/other"), digest) is None


def test_a_pointer_moves(store: Store) -> None:
    """The last one written counts."""
    first, second = Digest.of(b"first"), Digest.of(b"second", "sha512")
    store.write_pointer(NAME, TAG, first)
    store.write_pointer(NAME, TAG, second)
    assert store.read_pointer(NAME, TAG) == second


@pytest.mark.parametrize("garbage", [b"", b"latest", b"sha256:1234", b"\xff\xfe", b"sha256:" + b"a" * 2000])
def test_a_pointer_that_is_no_digest_is_none(store: Store, garbage: bytes) -> None:
    """What cannot be read is fetched again."""
    store.put_raw(f"{store.prefix}manifests/{NAME}/tags/{TAG}", garbage)
    assert store.read_pointer(NAME, TAG) is None


def test_the_keys_are_those_of_the_original(store: Store) -> None:
    """What we wrote, it finds."""
    blob, manifest = Digest.of(BODY), Digest.of(MANIFEST)
    store.publish(blob, len(BODY), pieces(BODY))
    store.write_manifest(NAME, manifest, MANIFEST)
    store.write_pointer(NAME, TAG, manifest)
    root = store.prefix
    assert store.get_raw(f"{root}blobs/sha256/{blob.encoded[:2]}/{blob.encoded}") == BODY
    assert store.get_raw(f"{root}manifests/docker.io/library/app/sha256/{manifest.encoded}") == MANIFEST
    assert store.get_raw(f"{root}manifests/docker.io/library/app/tags/latest") == str(manifest).encode()


def test_a_store_of_the_original_serves_as_it_is(store: Store) -> None:
    """What it wrote, we find; it ends its pointers with a line feed or not."""
    blob, manifest = Digest.of(BODY), Digest.of(MANIFEST)
    root = store.prefix
    store.put_raw(f"{root}blobs/sha256/{blob.encoded[:2]}/{blob.encoded}", BODY)
    store.put_raw(f"{root}manifests/docker.io/library/app/sha256/{manifest.encoded}", MANIFEST)
    store.put_raw(f"{root}manifests/docker.io/library/app/tags/latest", f"{manifest}\n".encode())
    assert store.read(blob) == BODY
    assert store.read_manifest(NAME, manifest) == MANIFEST
    assert store.read_pointer(NAME, TAG) == manifest


def test_an_empty_object_is_not_a_blob(store: Store) -> None:
    """Some stores leave one when they crash."""
    digest = Digest.of(BODY)
    store.put_raw(f"{store.prefix}blobs/sha256/{digest.encoded[:2]}/{digest.encoded}", b"")
    assert store.read(digest) is None

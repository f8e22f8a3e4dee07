"""Manifests in memory, and the record of their use on the disk."""

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dockyard.cache import manifests as manifests_module
from dockyard.cache.manifests import Manifests
from dockyard.cache.stores import Stores
from dockyard.cache.threads import Threads
from dockyard.config.settings import Auth, Upstream
from dockyard.oci.reference import Digest, Name
from dockyard.routing import Target
from dockyard.s3.bucket import Bucket
from dockyard.s3.outbox import Outbox
from dockyard.s3.publisher import Publisher
from dockyard.storage.local import LocalStore
from dockyard.workers.peers import Peers

NAME = Name.parse("up.test/app")
BODY = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'
DIGEST = Digest.of(BODY)
TARGET = Target(Upstream(prefix="up.test", registry="up.test", auth=Auth(type="anonymous")), "app", NAME)


@pytest.fixture
async def manifests(tmp_path: Path) -> AsyncIterator[Manifests]:
    """The manifests of a store that has one, which was not used for long."""
    store = LocalStore(tmp_path, "cache/", 0)
    store.create_directories()
    store.write_manifest(NAME, DIGEST, BODY)
    os.utime(path_of(tmp_path), (0, 0))
    threads, peers = Threads(), Peers(tmp_path / "run", 1)
    publisher = Publisher(store, None, Outbox(tmp_path / "unpublished"), 0, lambda _: True)
    yield Manifests(Stores(store, Bucket(None), publisher), peers, {}, threads)
    threads.close()
    peers.close()


def path_of(directory: Path) -> Path:
    """Return the path of the manifest."""
    return directory / "cache/manifests/up.test/app/sha256" / DIGEST.encoded


@pytest.mark.parametrize("ttl_s", [0.0, 600.0])
async def test_the_use_of_a_manifest_in_memory_is_recorded_now_and_then(
    manifests: Manifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ttl_s: float
) -> None:
    """So that a manifest that is in use is not evicted as the least recently used."""
    monkeypatch.setattr(manifests_module, "MEMORY_TTL_S", ttl_s)
    for is_recorded in (True, ttl_s == 0.0):
        assert (await manifests.get(TARGET, DIGEST)).manifest.body == BODY
        assert (time.time() - path_of(tmp_path).stat().st_atime < 60) == is_recorded
        os.utime(path_of(tmp_path), (0, 0))


async def test_a_manifest_in_memory_is_served_when_its_file_is_gone(
    manifests: Manifests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, it may be the only copy."""
    monkeypatch.setattr(manifests_module, "MEMORY_TTL_S", 0.0)
    for _ in range(3):
        assert (await manifests.get(TARGET, DIGEST)).manifest.body == BODY
        path_of(tmp_path).unlink(missing_ok=True)

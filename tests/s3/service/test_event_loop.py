"""Nothing that blocks runs on the event loop: it calls no function of a store and opens no file of the local store."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from dockyard.oci.reference import Digest
from tests.s3.service.bucket_view import BucketView
from tests.s3.service.images import NAME, REPO, add_images, add_index, layer, pull, pull_and_publish, put_image
from tests.support import event_loop_guard, faults
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import Deployment, eventually, set_at_exit
from tests.support.fake_lists import descriptor, offer_referrers, offer_tags
from tests.support.fake_registry import FakeRegistry

MIB = 2**20


def test_no_store_is_used_on_the_event_loop(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """Cold and cached pulls, tags that move, lists, downloads that are joined, an outage: over two workers."""
    environ, report_file = event_loop_guard.environment(tmp_path, tmp_path)
    add_images(fake_registry, "v1", "stale")
    add_index(fake_registry, "many")
    put_image(bucket_view, fake_registry, "stale", days_ago=3)
    offer_tags(fake_registry, REPO, ["v1", "v2"])
    subject = fake_registry.add_image(REPO, "subject").digest
    offer_referrers(fake_registry, REPO, subject, [descriptor(subject)])
    deployment = start(environ=environ, storage={"touch_threshold": "1h"})
    assert deployment.dockyard.storage.is_relative_to(tmp_path)
    for _ in range(3):
        pull_and_publish(deployment, bucket_view, "v1", "many", "stale")
        assert deployment.get(f"/v2/{NAME}/tags/list").status == 200
        assert deployment.get(f"/v2/{NAME}/referrers/{subject}").status == 200
    add_images(fake_registry, "v1", size=3 * MIB)
    pull(deployment, "v1")
    _join_a_running_download(deployment, fake_registry)
    fake_registry.on(None, faults.error_response(503))
    for _ in range(3):
        pull(deployment, "v1")
        assert deployment.get(f"/v2/{NAME}/tags/list").status == 200
        assert deployment.get(f"/v2/{NAME}/blobs/{Digest.of(b'nowhere')}").status == 503
    deployment.dockyard.stop()
    assert report_file.read_text() == ""


def _join_a_running_download(deployment: Deployment, fake_registry: FakeRegistry) -> None:
    body = layer("joined", 4 * MIB)
    path = f"/v2/{NAME}/blobs/{fake_registry.add_blob(body)}"
    with set_at_exit(threading.Event()) as go_on:
        fake_registry.on("blob", faults.stalled(2 * MIB, go_on), times=1)
        readers = [deployment.stream(path) for _ in range(8)]
        for reader in readers:
            reader.head()
            assert reader.read(1000) == body[:1000]
        go_on.set()
        for reader in readers:
            while reader.received < len(body):
                assert reader.read(MIB)
            reader.reset()
    eventually(lambda: not deployment.partial_files(), "the blob is kept")


def test_the_guard_finds_blocking_work_on_the_event_loop(tmp_path: Path) -> None:
    """A function of a store that a coroutine calls, and a file that it opens; not the same calls in a thread."""
    storage = tmp_path / "storage"
    environ, report_file = event_loop_guard.environment(tmp_path, storage)
    program = f"""
import asyncio, pathlib
from dockyard.oci.reference import Name
from dockyard.storage.local import LocalStore
store = LocalStore(pathlib.Path({str(storage)!r}), "", 0)
store.create_directories()
file = pathlib.Path({str(storage)!r}, "file")
file.touch()

async def main():
    await asyncio.to_thread(store.read_list, Name.parse("up.test/app"), None)
    await asyncio.to_thread(file.read_bytes)
    {{}}

asyncio.run(main())
"""
    for line, found in (
        ("pass", []),
        ("store.read_list(Name.parse('up.test/app'), None)", ["LocalStore.read_list", "open"]),
        ("file.read_bytes()", ["open"]),
        ("store.touch_times.mark_published", []),
    ):
        report_file.write_text("")
        subprocess.run(
            [sys.executable, "-c", program.format(line)],
            env={"PATH": os.environ["PATH"], **environ},
            check=True,
            timeout=EVENT_TIMEOUT_S,
        )
        reported = [line.split()[0] for line in report_file.read_text().splitlines()]
        assert list(dict.fromkeys(reported)) == found  # one call may open a file in two audited steps

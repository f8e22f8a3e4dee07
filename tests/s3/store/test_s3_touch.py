"""Touching: an object is new again, and is what it was."""

import threading
import time

import pytest

from dockyard.oci.reference import Digest
from dockyard.s3 import S3Error, S3Store
from dockyard.storage import keys
from tests.s3.store.proxy import Forward, Request, S3Proxy, s3_error
from tests.s3.store.servers import Server, make_tier
from tests.s3.store.store_adapters import pieces

SMALL = b"layer" * 1000
LARGE = bytes(range(256)) * (13 * 4096)  # 13 MiB
HEADERS = {
    "Content-Type": "application/vnd.thing",
    "Cache-Control": "max-age=60",
    "Content-Disposition": "inline",
    "x-amz-meta-written-by": "somebody else",
}


def publish(tier: S3Store, body: bytes) -> str:
    """Publish a blob; its key."""
    digest = Digest.of(body)
    tier.publish_blob(digest, len(body), iter(pieces(body)))
    return keys.blob_key(tier._prefix, digest)


def modified(tier: S3Store, key: str) -> float:
    """When the store says that the object was written."""
    found = tier._head(key)
    assert found is not None
    return found.last_modified


def wait_for_the_next_second_but_one(tier: S3Store, key: str) -> None:
    """The store tells whole seconds, and versitygw's clock is up to one behind: wait until a touch can be seen."""
    begun = modified(tier, key)
    deadline = time.monotonic() + 10
    while (head := tier._head(key)) and head.date < begun + 3:
        assert time.monotonic() < deadline
        threading.Event().wait(0.2)


def test_a_touched_object_is_new_and_what_it_was(tier: S3Store, direct: S3Store) -> None:
    """Bytes, type and all that somebody noted on it stay: small or large, and an empty one too."""
    prefix = direct._prefix
    bodies = {f"{prefix}small": SMALL, f"{prefix}empty": b"", publish(direct, LARGE): LARGE}
    for key in (f"{prefix}small", f"{prefix}empty"):
        assert direct._client.request("put", "PUT", key, headers=HEADERS, body=bodies[key])
    before = {key: modified(direct, key) for key in bodies}
    wait_for_the_next_second_but_one(direct, list(bodies)[-1])
    for key, body in bodies.items():
        assert tier.touch(key)
        answer = direct._client.request("get", "GET", key, max_bytes=2**30)
        assert answer is not None
        assert answer.body == body
        assert answer.last_modified > before[key]
        if body != LARGE:
            assert HEADERS.items() <= {**answer.headers, **_titled(answer.headers)}.items()
        else:
            assert answer.headers["Content-Type"] == "application/octet-stream"
    assert direct.abort_stale_uploads(0) == 0


def _titled(headers: object) -> dict[str, str]:
    """Metadata in the case in which we sent it."""
    return {name.lower(): value for name, value in dict(headers).items() if name.lower().startswith("x-amz-meta-")}  # type: ignore[call-overload]


@pytest.mark.parametrize("server", ["minio"], indirect=True)
def test_a_touch_is_a_head_and_a_copy(tier: S3Store, direct: S3Store, proxy: S3Proxy) -> None:
    """And no byte of it passes through us."""
    key = publish(direct, SMALL)
    assert tier.touch(key)
    assert proxy.counted() == {"HEAD": 1, "PUT copy": 1}


@pytest.mark.parametrize("server", ["minio"], indirect=True)
def test_a_large_object_is_copied_in_parts(tier: S3Store, direct: S3Store, proxy: S3Proxy) -> None:
    """One copy may have 5 GiB; parts are as many as it takes."""
    key = publish(direct, LARGE)
    assert tier.touch(key)
    assert proxy.counted() == {"HEAD": 1, "POST uploads": 1, "PUT uploadId copy": 3, "POST uploadId": 1}


@pytest.mark.parametrize("server", ["versitygw"], indirect=True)
def test_a_store_that_copies_and_does_not_renew_is_learnt(tier: S3Store, direct: S3Store, proxy: S3Proxy) -> None:
    """The first touch finds out and copies as a part; later ones do so at once."""
    key = publish(direct, SMALL)
    for expected in (
        {"HEAD": 1, "PUT copy": 1, "POST uploads": 1, "PUT uploadId copy": 1, "POST uploadId": 1},
        {"HEAD": 1, "POST uploads": 1, "PUT uploadId copy": 1, "POST uploadId": 1},
    ):
        wait_for_the_next_second_but_one(direct, key)
        before = modified(direct, key)
        proxy.requests.clear()
        assert tier.touch(key)
        assert proxy.counted() == expected
        assert modified(direct, key) > before


def test_an_object_that_is_gone_is_not_touched(tier: S3Store, proxy: S3Proxy) -> None:
    """Nothing is copied, and whoever has it publishes it again."""
    assert tier.touch(f"{tier._prefix}nothing") is False
    assert "PUT copy" not in proxy.counted()


@pytest.mark.parametrize("server", ["minio"], indirect=True)
@pytest.mark.parametrize("body", [SMALL, LARGE], ids=["small", "large"])
def test_a_touch_never_puts_old_bytes_over_new_ones(
    tier: S3Store, direct: S3Store, proxy: S3Proxy, body: bytes
) -> None:
    """A pointer may move between the look and the copy: what was written then stays."""
    key = publish(direct, body)

    def rule(request: Request) -> Forward:
        if request.operation.endswith("copy"):
            direct._client.request("put", "PUT", key, body=b"newer")
        return Forward()

    proxy.rule = rule
    tier.touch(key)
    answer = direct._client.request("get", "GET", key)
    assert answer is not None
    assert answer.body == b"newer"
    assert direct.abort_stale_uploads(0) == 0


@pytest.mark.parametrize("server", ["minio"], indirect=True)
def test_a_large_touch_that_fails_leaves_no_upload(tier: S3Store, direct: S3Store, proxy: S3Proxy) -> None:
    """As with publishing."""
    key = publish(direct, LARGE)
    proxy.rule = lambda request: s3_error(403, "AccessDenied") if "partNumber=2" in request.target else Forward()
    with pytest.raises(S3Error):
        tier.touch(key)
    assert direct.abort_stale_uploads(0) == 0


def test_odd_prefixes_are_copied_too(server: Server, prefix: str) -> None:
    """What is put before the keys is the operator's choice."""
    tier = make_tier(server.settings(f"{prefix}a b+c=d/é%41/"))
    key = publish(tier, SMALL)
    assert tier.touch(key)
    found = tier.open_blob(Digest.of(SMALL))
    assert found is not None
    found.close()

"""A bucket that cannot be used: the operator is told in plain words, and pulls work all the same."""

from collections.abc import Callable

import pytest

from tests.bucket.place import Place, is_missing
from tests.bucket.pulls import add_images, pull
from tests.bucket.witness import key_of
from tests.house import House, eventually
from tests.origin import Origin
from tests.stores.proxy import Forward, Proxy, error
from tests.stores.servers import SECRET_KEY, Server

WITHIN_S = 15.0
BACK_WITHIN_S = 60.0


def see_said(house: House, *words: str) -> None:
    """Wait for one line of the log that has all these words."""
    eventually(
        lambda: any(all(word in line for word in words) for line in house.dockyard.said().splitlines()),
        f"{words} in the log",
        WITHIN_S,
    )
    assert SECRET_KEY not in house.dockyard.said()


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ({"bucket": "no-such-bucket"}, ("bucket no-such-bucket does not exist", "storage.bucket")),
        ({"secret_key": "wrong-secret"}, ("the secret key is wrong", "storage.secret_key")),
        ({"access_key": "nobody-at-all"}, ("does not take our access key", "storage.access_key")),
    ],
    ids=["no bucket", "wrong secret key", "wrong access key"],
)
def test_a_bucket_that_cannot_be_used(
    start: Callable[..., House], place: Place, origin: Origin, storage: dict[str, str], words: tuple[str, ...]
) -> None:
    """The mistake is in the log with the setting to change; a cold pull and a warm one work."""
    add_images(origin, "v1")
    house = start(storage=storage)
    see_said(house, *words)
    pull(house, "v1")
    pull(house, "v1")
    assert place.listed() == set()


def test_a_login_without_the_right_to_list(
    start: Callable[..., House], place: Place, proxy: Proxy, origin: Origin
) -> None:
    """Without ListBucket AWS S3 says that what is missing is forbidden: that is told, and all that is pulled published.

    MinIO says that it is missing all the same, so the proxy speaks for AWS.
    """
    add_images(origin, "v1")
    proxy.rule = lambda request: (
        error(403, "AccessDenied") if request.method != "PUT" and is_missing(place, key_of(request)) else Forward()
    )
    house = start(proxy.host)
    see_said(house, "s3:ListBucket", place.bucket)
    keys = pull(house, "v1")
    eventually(lambda: place.listed() == keys, "everything pulled is in the bucket", BACK_WITHIN_S)


def test_a_login_without_the_right_to_write(start: Callable[..., House], place: Place, origin: Origin) -> None:
    """Without PutObject: that is said, and pulls work."""
    add_images(origin, "v1")
    house = start(storage=place.add_login("s3:GetObject", "s3:ListBucket"))
    see_said(house, "s3:PutObject", place.bucket)
    pull(house, "v1")
    assert place.listed() == set()


def test_a_store_that_is_not_there_yet(
    start: Callable[..., House], place: Place, origin: Origin, minio: Server
) -> None:
    """Dockyard starts before S3: it says so, serves, and publishes when S3 has come."""
    add_images(origin, "v1")
    minio.stop()
    try:
        house = start()
        see_said(house, "does not take connections", "storage.endpoint")
        keys = pull(house, "v1")
    finally:
        minio.start()
    eventually(lambda: place.listed() == keys, "everything pulled is in the bucket", BACK_WITHIN_S)


def test_a_bucket_that_is_made_later(start: Callable[..., House], place: Place, origin: Origin, minio: Server) -> None:
    """The bucket is made after the first pull: it is used without a restart."""
    add_images(origin, "v1")
    late = Place(minio)
    house = start(storage={"bucket": late.bucket})
    keys = pull(house, "v1")
    late.make()
    eventually(lambda: late.listed() == keys, "everything pulled is in the bucket", BACK_WITHIN_S)
    assert late.audit() == []
    late.close()


def test_a_clock_that_is_wrong(start: Callable[..., House], proxy: Proxy, origin: Origin) -> None:
    """S3 refuses our signatures for their time: the clock is named."""
    add_images(origin, "v1")
    proxy.rule = lambda _: error(403, "RequestTimeTooSkewed")
    house = start(proxy.host)
    see_said(house, "clock")
    pull(house, "v1")
    proxy.rule = lambda _: Forward()

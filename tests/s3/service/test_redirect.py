"""`storage.redirect`: clients are redirected to the bucket for a blob that only the bucket has."""

import threading
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.s3.service.bucket_view import BucketView, blob_key
from tests.s3.service.images import (
    NAME,
    REPO,
    add_images,
    add_index,
    fetch,
    layer,
    pull_and_publish,
    put_image,
)
from tests.s3.service.request_log import S3RequestLog
from tests.s3.store.proxy import S3Proxy, Stall
from tests.s3.store.servers import SECRET_KEY
from tests.security.test_gate import ANN, write_passwords
from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.busy_machine import EVENT_TIMEOUT_S
from tests.support.deployment import Deployment, eventually, set_at_exit, stays, upstream
from tests.support.fake_registry import FakeRegistry
from tests.support.http_client import Response
from tests.support.image_clients import Crane, Skopeo
from tests.support.programs import Programs

REDIRECTS = {"redirect": True}
CANARY = "Basic Y2FuYXJ5OmNhbmFyeQ=="


def follow(reply: Response, **headers: str) -> tuple[int, bytes]:
    """Send a GET to the Location of a response, with these headers only."""
    url = urlsplit(reply.header("Location") or "")
    connection = HTTPConnection(url.netloc, timeout=EVENT_TIMEOUT_S)
    try:
        connection.request("GET", f"{url.path}?{url.query}", headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_blob_that_only_the_bucket_has_is_redirected(
    start: Callable[..., Deployment], bucket_view: BucketView
) -> None:
    """The status is 307; the URL gives the blob, or a range of it, without credentials."""
    body = layer("redirected", 200_000)
    bucket_view.put_blob(body)
    deployment = start(storage=REDIRECTS)
    reply = deployment.get(f"/v2/{NAME}/blobs/{digest_of(body)}")
    assert (reply.status, reply.header("Cache-Control")) == (307, "no-store")
    assert follow(reply) == (200, body)
    assert follow(reply, Range="bytes=1000-1999") == (206, body[1000:2000])


def test_ranges_of_a_lazy_upstream_are_not_redirected(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A range that was 206 once is never 307 later: stargz-snapshotter does not follow a redirect then."""
    bodies = [layer("lazy", 2_000_000), layer("lazy with a range", 2_000_000)]
    for body in bodies:
        bucket_view.put_blob(body)
    lazy = upstream("up.test", fake_registry.url, lazy=True)
    deployment = start(storage=REDIRECTS, upstreams=[lazy])
    paths = [f"/v2/{NAME}/blobs/{digest_of(body)}" for body in bodies]
    assert deployment.get(paths[0]).status == 307
    reply = deployment.get(paths[1], Range="bytes=1000-1999")
    assert (reply.status, reply.body) == (206, bodies[1][1000:2000])
    assert fake_registry.received("blob") == []


def test_a_redirect_carries_no_credentials(start: Callable[..., Deployment], bucket_view: BucketView) -> None:
    """The URL contains a signature, but neither the client's credentials nor those of the bucket."""
    body = layer("canary", 10_000)
    bucket_view.put_blob(body)
    deployment = start(storage=REDIRECTS)
    reply = deployment.get(f"/v2/{NAME}/blobs/{digest_of(body)}", Authorization=CANARY)
    assert reply.status == 307
    text = str(reply.headers) + reply.body.decode()
    assert not [secret for secret in (CANARY.split()[1], "canary", SECRET_KEY) if secret in text]
    assert CANARY.split()[1] not in deployment.read_log()


def test_only_who_may_pull_a_blob_is_redirected(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry, tmp_path: Path
) -> None:
    """For a minute where access is restricted. Others get what they get for a blob that nobody has."""
    body = layer("for the team", 100_000)
    bucket_view.put_blob(body)
    fake_registry.add_image("team/app", "latest", [body])
    digest = fake_registry.add_blob(body, repos=["team/app"])
    access = {
        "htpasswd": str(write_passwords(tmp_path / "htpasswd", "ann")),
        "rules": [
            {"allow": True, "repositories": ["up.test/open/**"]},
            {"allow": True, "who": ["authenticated"]},
        ],
    }
    deployment = start(storage=REDIRECTS, access=access)
    path, other = f"/v2/up.test/team/app/blobs/{digest}", f"/v2/up.test/open/app/blobs/{digest}"
    assert deployment.get("/v2/up.test/team/app/manifests/latest", Authorization=ANN).status == 200

    reply = deployment.get(path, Authorization=ANN)
    assert (reply.status, reply.header("Vary")) == (307, "Authorization")
    assert "X-Amz-Expires=60&" in f"{reply.header('Location')}&"
    assert follow(reply) == (200, body)

    assert deployment.get(path).status == 401
    assert deployment.get(path).header("Location") is None
    unknown = deployment.get(other.replace(digest, f"sha256:{'0' * 64}"))
    for authorization in ({}, {"Authorization": ANN}):
        denied = deployment.get(other, **authorization)
        assert (denied.status, denied.body, denied.header("Location")) == (404, unknown.body, None)


def test_a_local_hit_is_not_redirected(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A blob in the local store is served from there."""
    (image,) = add_images(fake_registry, "v1")
    deployment = start(storage=REDIRECTS)
    pull_and_publish(deployment, bucket_view, "v1")
    assert deployment.get(f"/v2/{NAME}/blobs/{image.layers[0]}").status == 200


def test_a_running_download_is_not_redirected(start: Callable[..., Deployment], fake_registry: FakeRegistry) -> None:
    """Clients that request a blob while it is downloaded join the download, at any worker."""
    body = layer("running", 3_000_000)
    digest = fake_registry.add_blob(body)
    deployment = start(storage=REDIRECTS)
    with set_at_exit(threading.Event()) as go_on, ExitStack() as downloads:
        fake_registry.on("blob", faults.stalled(0.5, go_on))
        running = [downloads.enter_context(deployment.stream(f"/v2/{NAME}/blobs/{digest}")).head() for _ in range(6)]
        assert [download.status for download in running] == [200] * 6
        go_on.set()
        assert [download.rest() for download in running] == [(body, "length")] * 6
    assert fake_registry.count("blob", "GET") == 1


def test_a_missing_blob_is_downloaded(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """A blob that the bucket does not have is fetched from the upstream and published."""
    digest = fake_registry.add_blob(layer("missing", 100_000))
    fetch(start(storage=REDIRECTS), digest)
    eventually(lambda: bucket_view.listed() == {blob_key(digest)}, "the blob is published")


def test_clients_are_not_redirected_to_a_failed_bucket(
    start: Callable[..., Deployment], proxy: S3Proxy, fake_registry: FakeRegistry
) -> None:
    """S3 does not respond: the client gets the blob from the upstream."""
    digest = fake_registry.add_blob(layer("outage", 100_000))
    deployment = start(proxy.host, storage=REDIRECTS)
    proxy.rule = lambda _: Stall()
    fetch(deployment, digest)


def test_a_redirect_to_a_new_blob_does_not_touch_it(
    start: Callable[..., Deployment], bucket_view: BucketView, proxy: S3Proxy
) -> None:
    """The bucket gets one HEAD, and is not changed."""
    body = layer("new", 10_000)
    bucket_view.put_blob(body)
    deployment = start(proxy.host, storage=REDIRECTS)
    request_log = S3RequestLog(proxy)
    assert deployment.get(f"/v2/{NAME}/blobs/{digest_of(body)}").status == 307
    stays(lambda: request_log.counted() == {"HEAD": 1}, "one HEAD", 1.0)


def test_a_redirect_to_an_old_blob_touches_it(start: Callable[..., Deployment], bucket_view: BucketView) -> None:
    """A blob that clients fetch from the bucket does not expire either."""
    body = layer("old", 10_000)
    key = bucket_view.put_blob(body, days_ago=30)
    deployment = start(storage=REDIRECTS)
    assert deployment.get(f"/v2/{NAME}/blobs/{digest_of(body)}").status == 307
    eventually(lambda: bucket_view.age(key).days < 1, "the blob is touched")


def test_clients_are_not_redirected_to_an_empty_object(
    start: Callable[..., Deployment], bucket_view: BucketView, fake_registry: FakeRegistry
) -> None:
    """An empty object of a blob that is not empty is ignored: the blob is fetched from the upstream."""
    digest = fake_registry.add_blob(layer("emptied", 100_000))
    bucket_view.put(blob_key(digest), b"")
    deployment = start(storage=REDIRECTS)
    fetch(deployment, digest)
    eventually(lambda: bucket_view.stat(blob_key(digest)).size, "the bucket is repaired")


@pytest.mark.parametrize("client", ["crane", "skopeo"])
def test_a_real_client_follows_the_redirect(
    start: Callable[..., Deployment],
    bucket_view: BucketView,
    fake_registry: FakeRegistry,
    programs: Programs,
    tmp_path: Path,
    client: str,
) -> None:
    """Crane and skopeo pull an image whose blobs are only in the bucket; none is requested from the upstream."""
    image = add_images(fake_registry, "v1")[0] if client == "skopeo" else add_index(fake_registry, "v1")
    put_image(bucket_view, fake_registry, "v1")
    deployment = start(storage=REDIRECTS)
    (tmp_path / client).mkdir()
    puller = {"crane": Crane, "skopeo": Skopeo}[client](programs.need(client), tmp_path / client)
    tree = puller.pull(f"{deployment.dockyard.host}/{NAME}:v1")
    assert tree.top == image.digest
    assert fake_registry.count("blob") == 0
    deployment.wait_for_log("redirected")
    assert fake_registry.count("manifest", "GET", repo=REPO) == 0

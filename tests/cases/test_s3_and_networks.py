"""S3 and networks: resumed downloads, sizes that are known, proxies, checksums, regions, lazy ranges, restarts."""

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.deployment import Deployment, eventually, upstream
from tests.support.fake_registry import OCI_LAYER, OCI_MANIFEST, FakeRegistry
from tests.support.processes import SetupError
from tests.support.raw_http import Request, ScriptedResponse

MIB = 1024 * 1024
RETENTION = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters"


@pytest.fixture
def s3() -> Iterator[FakeRegistry]:
    """A listener that an S3 service is scripted on."""
    with FakeRegistry() as s3:
        yield s3


def bucket(s3: FakeRegistry, **more: Any) -> dict[str, Any]:
    """The settings of a bucket there."""
    keys = {"access_key": "AKIA-OURS", "secret_key": "canary-secret"}
    return {"bucket": "cache-bucket", "endpoint": s3.authority, "force_path_style": True, **keys, **more}


def xml_error(status: int, code: str, message: str = "") -> ScriptedResponse:
    """An error response of S3."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    return ScriptedResponse.of(status, body, ("Content-Type", "application/xml"))


# Downloads


@pytest.mark.parametrize("is_right", [True, False], ids=["right digest", "wrong digest"])
def test_a_body_without_its_end_is_whole_when_its_digest_is_right(
    make_deployment: Callable[..., Deployment],
    fake_registry: FakeRegistry,
    is_right: bool,  # noqa: FBT001
) -> None:
    """All bytes came, the last chunk did not; a range that begins at the end is 416. With a wrong digest: nothing."""
    content = Random(1).randbytes(3 * MIB)
    layer = fake_registry.add_blob(content)
    if not is_right:
        fake_registry.on("blob", faults.flipped(2 * MIB))
    fake_registry.on("blob", faults.chunked(ended=False), when=lambda request: request.header("Range") is None)
    deployment = make_deployment()
    response = deployment.get(f"/v2/up.test/org/app/blobs/{layer}")
    if is_right:
        assert (response.status, response.is_complete, response.body == content) == (200, True, True)
        eventually(lambda: deployment.stored_files(layer), "kept")
        assert fake_registry.count("blob", "GET") <= 2
    else:
        assert response.status >= 500 or not response.is_complete
        assert deployment.stored_files(layer) == []


@pytest.mark.parametrize("known_from", ["HEAD", "manifest"])
def test_a_body_without_a_length_starts_at_once_when_the_size_is_known(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, known_from: str
) -> None:
    """The size comes from HEAD or from a manifest; the digest decides as always."""
    content = Random(1).randbytes(3 * MIB)
    layer = fake_registry.add_blob(content)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2},
        "layers": [{"mediaType": OCI_LAYER, "digest": layer, "size": len(content)}],
    }
    fake_registry.add_manifest("org/app", "v1", document, OCI_MANIFEST)
    go_on = threading.Event()
    fake_registry.on("blob", faults.chunked(), method="GET")
    fake_registry.on("blob", faults.stalled(2 * MIB, go_on), method="GET")
    deployment = make_deployment()
    if known_from == "HEAD":
        assert deployment.head(f"/v2/up.test/org/app/blobs/{layer}").header("Content-Length") == str(len(content))
    else:
        assert deployment.get("/v2/up.test/org/app/manifests/v1").status == 200
    with deployment.stream(f"/v2/up.test/org/app/blobs/{layer}") as download:
        try:
            download.head()  # while the upstream is in the middle of the body
            assert download.length == len(content)
            assert download.read(MIB) == content[:MIB]
        finally:
            go_on.set()
        body, ended = download.rest()
    assert (body == content[MIB:], ended) == (True, "length")


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_partial_file_survives_a_restart(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, how: str
) -> None:
    """The rest is asked for by Range; the digest is checked over the whole."""
    content = Random(1).randbytes(8 * MIB)
    layer = fake_registry.add_blob(content)
    stall = fake_registry.on("blob", faults.stalled(6 * MIB, threading.Event()), times=1)
    deployment = make_deployment(server={"drain_timeout": "1s"})
    path = f"/v2/up.test/org/app/blobs/{layer}"
    with deployment.stream(path) as download:
        download.head()
        assert download.read(5 * MIB) == content[: 5 * MIB]
        getattr(deployment.dockyard, how)()
    fake_registry.remove_rules(stall)
    fake_registry.clear_exchanges()
    deployment.dockyard.start()
    response = deployment.get(path)
    assert (response.status, response.is_complete, response.body == content) == (200, True, True)
    [exchange] = fake_registry.received("blob", "GET")
    assert (exchange.request.header("Range") or "").startswith("bytes=")
    assert exchange.sent_bytes <= 4 * MIB


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_proxy_variables_are_used_or_named_at_start(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, variable: str
) -> None:
    """They are set for every program in a company network; the key `proxy` of an upstream is the other way."""
    image = fake_registry.add_image("org/app", "v1")
    with FakeRegistry() as proxy:
        proxied = proxy.add_image("org/app", "v1")
        deployment = make_deployment(
            upstreams=[upstream("corp.test", "http://registry.corp.invalid")], environ={variable: proxy.url}
        )
        response = deployment.get("/v2/corp.test/org/app/manifests/v1")
        is_used = response.status == 200 and response.body == proxied.body and bool(proxy.received())

        def is_named() -> bool:
            return any(variable in line and "prox" in line for line in deployment.dockyard.read_log().splitlines())

        assert is_used or eventually(is_named, "a line in the log")
    assert image.body


# S3


def test_a_bucket_with_object_lock_is_published_to(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, s3: FakeRegistry
) -> None:
    """Every PUT has the checksum of its body."""
    stored: dict[str, bytes] = {}

    def answer(request: Request, _: ScriptedResponse) -> ScriptedResponse:
        if request.method == "GET":
            return xml_error(404, "NoSuchKey" if not request.query else "NoSuchLifecycleConfiguration")
        checksum = request.header("x-amz-checksum-sha256")
        if checksum is None and request.header("Content-MD5") is None:
            return xml_error(400, "InvalidRequest", RETENTION)
        if checksum != base64.b64encode(hashlib.sha256(request.body).digest()).decode():
            return xml_error(400, "BadDigest")
        stored[request.path] = request.body
        return ScriptedResponse.of(200).with_header("ETag", '"1"')

    s3.on(None, answer)
    image = fake_registry.add_image("org/app", "v1", [Random(1).randbytes(2 * MIB)])
    deployment = make_deployment(storage=bucket(s3))
    for path in ("manifests/v1", f"blobs/{image.layers[0]}", f"blobs/{image.config}"):
        assert deployment.get(f"/v2/up.test/org/app/{path}").status == 200
    eventually(lambda: len(stored) == 4, "pointer, manifest and two blobs are published")
    assert "InvalidRequest" not in deployment.read_log()


def test_the_words_of_the_store_reach_the_operator(
    make_deployment: Callable[..., Deployment], fake_registry: FakeRegistry, s3: FakeRegistry
) -> None:
    """At start, and with the warning about what cannot be published; bounded, and without the secret."""
    message = f"{RETENTION}; canary-secret {'x' * 3000}"

    def answer(request: Request, _: ScriptedResponse) -> ScriptedResponse:
        return xml_error(404, "NoSuchKey") if request.method == "GET" else xml_error(400, "InvalidRequest", message)

    s3.on(None, answer)
    image = fake_registry.add_image("org/app", "v1")
    deployment = make_deployment(storage=bucket(s3))

    def lines(word: str) -> list[str]:
        found = [line for line in deployment.dockyard.read_log().splitlines() if word in line]
        assert all("canary-secret" not in line and len(line) < 2000 for line in found)
        return found

    eventually(lambda: any(RETENTION in line for line in lines("bucket check failed")), "at start")
    assert deployment.get(f"/v2/up.test/org/app/blobs/{image.layers[0]}").status == 200
    eventually(lambda: any(RETENTION in line for line in lines("cannot publish")), "when publishing")


@pytest.mark.parametrize("half", ["access_key", "secret_key"])
def test_half_a_pair_of_keys_does_not_start(
    make_deployment: Callable[..., Deployment], s3: FakeRegistry, half: str
) -> None:
    """Nothing is signed as somebody else whose keys are in the environment."""
    storage = bucket(s3)
    del storage[half]
    others = {"AWS_ACCESS_KEY_ID": "AKIA-OTHER", "AWS_SECRET_ACCESS_KEY": "other"}
    with pytest.raises(SetupError, match=f"storage.{half}"):
        make_deployment(storage=storage, environ=others)
    assert s3.received() == []


@pytest.mark.parametrize(
    ("environ", "region", "signed"),
    [
        ({"AWS_REGION": "eu-central-1", "AWS_DEFAULT_REGION": "eu-west-1"}, None, "eu-central-1"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, None, "eu-west-1"),
        ({"AWS_REGION": "eu-central-1"}, "us-west-2", "us-west-2"),
        ({"AWS_REGION": ""}, None, "us-east-1"),
    ],
)
def test_requests_are_signed_for_the_region(
    make_deployment: Callable[..., Deployment],
    s3: FakeRegistry,
    environ: dict[str, str],
    region: str | None,
    signed: str,
) -> None:
    """Of the setting, else of AWS_REGION, else of AWS_DEFAULT_REGION."""
    s3.on(None, lambda *_: xml_error(404, "NoSuchKey"))
    make_deployment(storage=bucket(s3, **({"region": region} if region else {})), environ=environ)
    s3.wait_for(lambda: s3.count() > 0, "the check of the bucket")
    [exchange, *_] = s3.received()
    assert f"/{signed}/s3/aws4_request" in (exchange.request.header("Authorization") or "")


@pytest.mark.parametrize("is_versioned", [True, False, None], ids=["versioned", "not versioned", "not allowed to see"])
def test_a_versioned_bucket_is_named_at_start(
    make_deployment: Callable[..., Deployment],
    s3: FakeRegistry,
    is_versioned: bool | None,  # noqa: FBT001
) -> None:
    """Each touch makes a version. Keys that may not see it are no reason to complain."""

    def answer(request: Request, _: ScriptedResponse) -> ScriptedResponse:
        if "versioning" in request.query and is_versioned is None:
            return xml_error(403, "AccessDenied")
        if "versioning" in request.query:
            status = "<Status>Enabled</Status>" if is_versioned else ""
            return ScriptedResponse.of(200, f"<VersioningConfiguration>{status}</VersioningConfiguration>".encode())
        if request.method == "GET":
            return xml_error(404, "NoSuchLifecycleConfiguration" if "lifecycle" in request.query else "NoSuchKey")
        return xml_error(400, "XAmzContentSHA256Mismatch")

    s3.on(None, answer)
    deployment = make_deployment(storage=bucket(s3))
    s3.wait_for(lambda: any("uploads" in each.request.query for each in s3.received()), "the check has ended")
    deployment.dockyard.stop()  # the log is written by a thread: now it is complete
    assert ("NoncurrentVersionExpiration" in deployment.dockyard.read_log()) == bool(is_versioned)
    assert "bucket check failed" not in deployment.dockyard.read_log()


@pytest.mark.parametrize("variable", ["SERVER_PORT", "SERVER_WORKERS", "STORAGE_MAX_SIZE", "UPSTREAM_CHECK_TIMEOUT"])
def test_an_empty_variable_is_treated_alike_for_all_keys(
    make_deployment: Callable[..., Deployment], variable: str
) -> None:
    """Compose passes a variable that is not set as an empty text: it counts as not set where empty is no value."""
    deployment = make_deployment(environ={variable: ""})
    assert deployment.get("/v2/").status == 200

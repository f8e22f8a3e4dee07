"""A registry as the cache sees it: right answers from registries that are odd, wrong or down."""

import gzip
import json
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from dockyard.errors import (
    BadUpstream,
    BlobUnknown,
    Denied,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    TooManyRequests,
    Unavailable,
    UpstreamTimeout,
)
from dockyard.oci.manifest import ACCEPT, MAX_MANIFEST_BYTES
from dockyard.oci.reference import Digest, Tag
from dockyard.upstream.client import RegistryClient
from dockyard.upstream.network_zones import NetworkZone
from tests.support import faults
from tests.support.bodies import digest_of
from tests.support.busy_machine import is_within
from tests.support.fake_auth import FakeTokenService, require_authorization
from tests.support.fake_registry import OCI_MANIFEST, Change, Image, basic
from tests.support.raw_http import Request, ScriptedResponse
from tests.support.upstreams import BASIC, LATEST, MODERATE, SHORT, Ward, error_text, methods, only_if, pretend

BLOB = bytes(range(256)) * 8


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    """Give a fake registry and what asks it."""
    with Ward(tmp_path) as ward:
        yield ward


@pytest.fixture
def image(ward: Ward) -> Image:
    """Give an image at the fake registry."""
    return ward.fake_registry.add_image("lib/app", "latest")


def received(registry: RegistryClient, repository: str, digest: str, start: int = 0) -> bytes:
    """A whole blob, read in pieces."""
    source = registry.open_blob(repository, Digest.parse(digest), start)
    pieces = []
    while piece := source.read(1000):
        pieces.append(piece)
    source.close()
    return b"".join(pieces)


# Manifests


def test_a_check_is_one_head(ward: Ward, image: Image) -> None:
    """With every media type that we know, and digest, size and type from the headers."""
    found = ward.registry().head_manifest("lib/app", LATEST)
    assert (str(found.digest), found.size, found.media_type) == (image.digest, len(image.body), image.media_type)
    (seen,) = ward.fake_registry.received()
    assert seen.request.method == "HEAD"
    assert seen.request.header("Accept") == ", ".join(ACCEPT)


@pytest.mark.parametrize("reference", ["tag", "digest"])
def test_a_manifest_comes_as_it_is(ward: Ward, image: Image, reference: str) -> None:
    """The same bytes, by tag and by digest."""
    asked = LATEST if reference == "tag" else Digest.parse(image.digest)
    manifest = ward.registry().get_manifest("lib/app", asked)
    assert (manifest.body, str(manifest.digest), manifest.media_type) == (image.body, image.digest, image.media_type)
    assert methods(ward.fake_registry.received()) == ["GET"]


@pytest.mark.parametrize(
    "change",
    [
        faults.without("Docker-Content-Digest"),
        faults.without("Content-Length"),
        faults.header("Docker-Content-Digest", "sha256:garbage"),
        faults.header("Content-Type", "text/plain"),
        faults.header("Content-Encoding", "gzip"),
        faults.error_response(405),
        faults.error_response(401),
        faults.error_response(403),
        faults.error_response(400),
        faults.error_response(501),
    ],
)
def test_an_incomplete_head_response_is_followed_by_a_get(ward: Ward, image: Image, change: Change) -> None:
    """The digest is then computed from the body."""
    ward.fake_registry.on("manifest", change, method="HEAD")
    found = ward.registry().head_manifest("lib/app", LATEST)
    assert (str(found.digest), found.size, found.media_type) == (image.digest, len(image.body), image.media_type)
    assert methods(ward.fake_registry.received("manifest")) == ["HEAD", "GET"]


def test_a_registry_without_head_gets_no_further_head_requests(ward: Ward, image: Image) -> None:
    """For a while, after 405."""
    ward.fake_registry.on("manifest", faults.error_response(405), method="HEAD")
    registry = ward.registry()
    for _ in range(3):
        assert str(registry.head_manifest("lib/app", LATEST).digest) == image.digest
    assert methods(ward.fake_registry.received("manifest")) == ["HEAD", "GET", "GET", "GET"]


def test_a_head_with_a_different_digest_is_ignored(ward: Ward, image: Image) -> None:
    """The body decides."""
    ward.fake_registry.on("manifest", faults.header("Docker-Content-Digest", digest_of(b"other")), method="HEAD")
    digest = Digest.parse(image.digest)
    assert ward.registry().head_manifest("lib/app", digest).digest == digest


@pytest.mark.parametrize(
    "change",
    [
        faults.with_body(b'{"config":{},"layers":[]}'),
        faults.header("Docker-Content-Digest", digest_of(b"other")),
        faults.html_page(),
        faults.with_body(b'{"errors":[]}'),
        faults.encoded("gzip", lambda body: gzip.compress(body + b" ")),
        faults.encoded("gzip", lambda body: gzip.compress(body)[:-1]),
        faults.encoded("gzip", lambda body: gzip.compress(body) + b"x"),
        faults.encoded("gzip", lambda body: gzip.compress(body + b" " * MAX_MANIFEST_BYTES)),
        faults.encoded("gzip, gzip", lambda body: gzip.compress(gzip.compress(body))),
        faults.encoded("br", lambda body: b"\x0b\x02\x80" + body),
        faults.header("Content-Type", "application/vnd.oci.image.index.v1+json"),
        faults.replaced(204),
        faults.replaced(206, b"{}", ("Content-Range", "bytes 0-1/2")),
        faults.replaced(418),
        faults.replaced(304),
        faults.replaced(300),
    ],
)
def test_a_manifest_that_cannot_be_right_is_bad(ward: Ward, image: Image, change: Change) -> None:
    """Other bytes, pages, encodings, and statuses that mean nothing here."""
    rule = ward.fake_registry.on("manifest", change)
    registry = ward.registry()
    with pytest.raises(BadUpstream):
        registry.get_manifest("lib/app", LATEST)
    assert ward.fake_registry.count() == 1
    ward.fake_registry.remove_rules(rule)
    assert registry.get_manifest("lib/app", LATEST).body == image.body


RAW_DEFLATE = -15


@pytest.mark.parametrize(
    "change",
    [
        *(faults.header("Content-Encoding", name) for name in ("gzip", "x-gzip", "deflate", "br", "aws-chunked", "")),
        faults.encoded("gzip", gzip.compress),
        faults.encoded("x-gzip", gzip.compress),
        faults.encoded("GZip", gzip.compress),
        faults.encoded("deflate", zlib.compress),
        faults.encoded("deflate", lambda body: zlib.compress(body, wbits=RAW_DEFLATE)),
    ],
)
@pytest.mark.parametrize("has_digest", [True, False])
@pytest.mark.parametrize("reference", ["tag", "digest"])
def test_an_encoded_manifest_is_unpacked(
    ward: Ward,
    image: Image,
    change: Change,
    has_digest: bool,  # noqa: FBT001
    reference: str,
) -> None:
    """Although only identity is accepted; and one that is not encoded stays as it is, whatever its header says."""
    ward.fake_registry.on("manifest", change)
    if not has_digest:
        ward.fake_registry.on("manifest", faults.without("Docker-Content-Digest"))
    registry = ward.registry()
    asked = LATEST if reference == "tag" else Digest.parse(image.digest)
    assert registry.get_manifest("lib/app", asked).body == image.body
    found = registry.head_manifest("lib/app", asked)
    assert (str(found.digest), found.size) == (image.digest, len(image.body))
    assert ward.fake_registry.received()[0].request.header("Accept-Encoding") == "identity"


def test_the_error_about_a_wrong_manifest_names_its_encoding(ward: Ward, image: Image) -> None:
    """The operator of the registry can find the cause."""
    ward.fake_registry.on("manifest", faults.encoded("br", lambda body: b"\x0b\x02\x80" + body))
    with pytest.raises(BadUpstream, match=r"declared to be encoded \(br\)"):
        ward.registry().get_manifest("lib/app", LATEST)


def test_two_lengths_that_differ_are_bad(ward: Ward, image: Image) -> None:
    """Nobody can know where such a body ends."""
    ward.fake_registry.on("manifest", lambda request, answer: answer.with_header("Content-Length", "5"))
    ward.fake_registry.on("blob", lambda request, answer: answer.with_header("Content-Length", "5"))
    registry = ward.registry()
    with pytest.raises(BadUpstream):
        registry.get_manifest("lib/app", LATEST)
    with pytest.raises(BadUpstream):
        registry.open_blob("lib/app", Digest.parse(image.config))


@pytest.mark.parametrize("size", [MAX_MANIFEST_BYTES, MAX_MANIFEST_BYTES + 1])
@pytest.mark.parametrize("framing", [[], [faults.chunked()]])
def test_a_manifest_has_at_most_four_mebibytes(ward: Ward, size: int, framing: list[Change]) -> None:
    """Up to the last byte, with and without a Content-Length."""
    head, tail = b'{"config":{},"layers":[],"x":"', b'"}'
    body = head + b" " * (size - len(head) - len(tail)) + tail
    ward.fake_registry.add_manifest("lib/app", "latest", body, OCI_MANIFEST)
    for change in framing:
        ward.fake_registry.on("manifest", change)
    registry = ward.registry()
    if size <= MAX_MANIFEST_BYTES:
        assert registry.get_manifest("lib/app", LATEST).size == size
        return
    with pytest.raises(BadUpstream):
        registry.get_manifest("lib/app", LATEST)


def test_an_endless_manifest_is_cut_off(ward: Ward, image: Image) -> None:
    """After four mebibytes, and what is on the way."""
    ward.fake_registry.on("manifest", faults.endless())
    with pytest.raises(BadUpstream):
        ward.registry().get_manifest("lib/app", LATEST)
    assert ward.fake_registry.sent_bytes("manifest") < MAX_MANIFEST_BYTES + 16 * 2**20


@pytest.mark.parametrize(
    "changes", [[faults.cut(50, "rst")], [faults.cut(50)], [faults.close_delimited(), faults.short(20)]]
)
def test_a_truncated_manifest_is_requested_once_more(ward: Ward, image: Image, changes: list[Change]) -> None:
    """Reset, short, and short without a length."""
    for change in changes:
        ward.fake_registry.on("manifest", change, times=1)
    assert ward.registry().get_manifest("lib/app", LATEST).body == image.body
    assert ward.fake_registry.count("manifest") == 2


def test_a_registry_that_closes_the_connection_gets_two_requests(ward: Ward, image: Image) -> None:
    """A request without a response is retried in one place, not in two."""
    ward.fake_registry.on("manifest", faults.disconnected())
    with pytest.raises(Unavailable):
        ward.registry().get_manifest("lib/app", Digest.parse(image.digest))
    assert methods(ward.fake_registry.received("manifest")) == ["GET", "GET"]


def test_a_manifest_that_always_breaks_off_is_an_error(ward: Ward, image: Image) -> None:
    """After two attempts; the circuit breaker stays closed, because the registry responded."""
    ward.fake_registry.on("manifest", faults.cut(50, "rst"))
    registry = ward.registry()
    with pytest.raises(Unavailable):
        registry.get_manifest("lib/app", LATEST)
    assert ward.fake_registry.count("manifest") == 2
    assert registry.head_blob("lib/app", Digest.parse(image.config))


# Statuses


@pytest.mark.parametrize(
    ("status", "auth_error", "error"),
    [
        (401, Denied, ManifestUnknown),
        (403, Denied, ManifestUnknown),
        (404, ManifestUnknown, ManifestUnknown),
        (410, ManifestUnknown, ManifestUnknown),
        (451, Denied, ManifestUnknown),
        (408, UpstreamTimeout, UpstreamTimeout),
        (429, TooManyRequests, TooManyRequests),
        (400, BadUpstream, BadUpstream),
        (418, BadUpstream, BadUpstream),
        (500, Unavailable, Unavailable),
        (502, Unavailable, Unavailable),
        (503, Unavailable, Unavailable),
        (504, Unavailable, Unavailable),
    ],
)
def test_each_status_has_its_error(
    ward: Ward, image: Image, status: int, auth_error: type[RegistryError], error: type[RegistryError]
) -> None:
    """Valid responses and outages are distinguished; with credentials 403 is "denied", without it is "not found"."""
    ward.fake_registry.on("manifest", faults.error_response(status))
    with pytest.raises(error) as caught:
        ward.registry().get_manifest("lib/app", LATEST)
    assert type(caught.value) is error
    assert "message from the upstream" not in error_text(caught.value)
    ward.fake_registry.remove_rules()
    require_authorization(ward.fake_registry, basic("ann", "s3cret-pass"))
    ward.fake_registry.on("manifest", faults.error_response(status))
    with pytest.raises(auth_error) as caught:
        ward.registry(auth=BASIC).get_manifest("lib/app", LATEST)
    assert type(caught.value) is auth_error
    assert "s3cret" not in error_text(caught.value)


@pytest.mark.parametrize(("value", "seconds"), [("1", 1), ("60", 60), ("999999", 60), ("abc", 5), (None, 5)])
def test_a_rate_limit_is_reported_and_kept(ward: Ward, image: Image, value: str | None, seconds: int) -> None:
    """One request per window, for all callers and operations."""
    ward.fake_registry.on("manifest", faults.error_response(429, "TOOMANYREQUESTS", value))
    registry = ward.registry()
    with pytest.raises(TooManyRequests) as caught:
        registry.head_manifest("lib/app", LATEST)
    assert (caught.value.retry_after_s, caught.value.remembered) == (seconds, False)
    for _ in range(5):
        with pytest.raises(TooManyRequests) as caught:
            registry.get_manifest("lib/app", Tag("other"))
        assert caught.value.remembered
        assert 1 <= (caught.value.retry_after_s or 0) <= seconds
    assert ward.fake_registry.count() == 1


def test_the_retry_after_of_an_outage_is_passed_on(ward: Ward) -> None:
    """Within a minute."""
    ward.fake_registry.on("manifest", faults.error_response(503, retry_after="120"))
    with pytest.raises(Unavailable) as caught:
        ward.registry().head_manifest("lib/app", LATEST)
    assert caught.value.retry_after_s == 60


def test_an_outage_is_remembered(ward: Ward, image: Image) -> None:
    """The second call costs no request; a running download may try to go on all the same."""
    registry = ward.registry()
    ward.fake_registry.listener.close()
    with pytest.raises(Unavailable):
        registry.head_manifest("lib/app", LATEST)
    ward.fake_registry.listener.open()
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            registry.head_manifest("lib/app", LATEST)
        assert caught.value.remembered
    assert ward.fake_registry.count() == 0
    assert received(registry, "lib/app", image.config, start=10)
    assert registry.head_manifest("lib/app", LATEST)


def test_five_server_errors_in_a_row_are_an_outage(ward: Ward, image: Image) -> None:
    """Four, followed by a valid response, are not."""
    registry = ward.registry()
    rule = ward.fake_registry.on("manifest", faults.error_response(500), times=4)
    for _ in range(4):
        with pytest.raises(Unavailable):
            registry.head_manifest("lib/app", LATEST)
    registry.head_manifest("lib/app", LATEST)
    rule.times = None
    for _ in range(6):
        with pytest.raises(Unavailable):
            registry.head_manifest("lib/app", LATEST)
    assert ward.fake_registry.count("manifest") == 4 + 1 + 5


@pytest.mark.parametrize("fault", ["slow", "500", "reset"])
def test_a_repository_that_fails_is_no_outage(ward: Ward, image: Image, fault: str) -> None:
    """Its next requests fail at once; other repositories are asked all the time."""
    changes = {"slow": faults.silent(), "500": faults.error_response(500), "reset": faults.disconnected()}
    ward.fake_registry.on("manifest", changes[fault], repo="lib/bad")
    registry = ward.registry(limits=MODERATE)
    for number in range(8):
        with pytest.raises((Unavailable, UpstreamTimeout)):
            registry.head_manifest("lib/bad", Tag(f"v{number}"))
        assert str(registry.head_manifest("lib/app", LATEST).digest) == image.digest
    with pytest.raises((Unavailable, UpstreamTimeout)) as caught:
        registry.get_manifest("lib/bad", LATEST)
    assert caught.value.remembered
    assert not registry.is_breaker_open
    assert ward.fake_registry.count("manifest", repo="lib/bad") == {"slow": 1, "500": 5, "reset": 2}[fault]


def test_a_registry_behind_its_front_end_is_down(ward: Ward, image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """`/v2/` is answered, and no manifest: the check of another repository opens the circuit breaker."""
    monkeypatch.setattr("dockyard.upstream.circuit_breaker.CONFIRM_TIMEOUT_S", 0.3)
    ward.fake_registry.add_image("lib/other", "latest")
    registry = ward.registry(limits=MODERATE)
    for repository in ("lib/app", "lib/other"):
        registry.head_manifest(repository, LATEST)
    ward.fake_registry.on("manifest", faults.silent())
    with pytest.raises(UpstreamTimeout):
        registry.head_manifest("lib/app", LATEST)
    with pytest.raises(UpstreamTimeout) as caught:
        registry.head_manifest("lib/third", LATEST)  # waits for the check of lib/other
    assert caught.value.remembered
    assert registry.is_breaker_open
    assert ward.fake_registry.count("manifest", repo="lib/third") == 0


def test_a_check_that_had_no_time_says_nothing_about_the_upstream(ward: Ward, image: Image) -> None:
    """It waited for a thread until little of its time was left: neither its repository nor the registry fails."""
    is_over = threading.Event()
    ward.fake_registry.on("manifest", faults.silent(is_over))
    registry = ward.registry()
    with pytest.raises(UpstreamTimeout):
        registry.head_manifest("lib/app", LATEST, time.monotonic() + 0.1)
    is_over.set()
    assert str(registry.head_manifest("lib/app", LATEST).digest) == image.digest
    assert ward.fake_registry.count("ping") == 0


@pytest.mark.parametrize("limit_s", [0.1, 5.0])
def test_a_check_has_the_deadline_that_it_is_given(ward: Ward, image: Image, limit_s: float) -> None:
    """A tag that nobody has may take longer than `check_timeout`; one that waited for a thread has less."""
    is_over = threading.Event()
    ward.fake_registry.on("manifest", faults.silent(is_over), times=1)
    threading.Timer(0.6, is_over.set).start()
    registry = ward.registry(limits=attrs.evolve(SHORT, stall_timeout=5.0))
    begun = time.monotonic()
    if limit_s > 1:
        assert registry.head_manifest("lib/app", LATEST, begun + limit_s)
    else:
        with pytest.raises(UpstreamTimeout):
            registry.head_manifest("lib/app", LATEST, begun + limit_s)
        assert is_within(time.monotonic() - begun, limit_s, slack_s=0.4)


def test_bad_content_is_no_outage(ward: Ward, image: Image) -> None:
    """However often: the next request is sent."""
    ward.fake_registry.on("manifest", faults.html_page())
    registry = ward.registry()
    for _ in range(7):
        with pytest.raises(BadUpstream) as caught:
            registry.get_manifest("lib/app", LATEST)
        assert not caught.value.remembered
    assert ward.fake_registry.count() == 7


# A registry that contradicts itself, and what is not a registry


def test_a_404_to_head_is_confirmed_by_get(ward: Ward, image: Image) -> None:
    """A registry that imports images for a GET: from then on this repository is checked with GET for a while."""
    ward.fake_registry.on("manifest", faults.error_response(404, "MANIFEST_UNKNOWN"), method="HEAD")
    registry = ward.registry()
    for _ in range(3):
        assert str(registry.head_manifest("lib/app", LATEST).digest) == image.digest
    assert methods(ward.fake_registry.received("manifest")) == ["HEAD", "GET", "GET", "GET"]


@pytest.mark.parametrize("status", [404, 410])
def test_a_missing_tag_costs_one_get_for_a_while(ward: Ward, image: Image, status: int) -> None:
    """For each tag; a digest costs none."""
    ward.fake_registry.on("manifest", faults.error_response(status), reference="no")
    ward.fake_registry.on("manifest", faults.error_response(status), reference=digest_of(b"no"))
    registry = ward.registry()
    for _ in range(3):
        with pytest.raises(ManifestUnknown):
            registry.head_manifest("lib/app", Tag("no"))
    assert methods(ward.fake_registry.received("manifest")) == ["HEAD", "GET", "HEAD", "HEAD"]
    ward.fake_registry.clear_exchanges()
    with pytest.raises(ManifestUnknown):
        registry.head_manifest("lib/app", Digest.parse(digest_of(b"no")))
    assert methods(ward.fake_registry.received("manifest")) == ["HEAD"]
    assert registry.head_manifest("lib/app", LATEST)


def test_a_404_that_cannot_be_confirmed_is_no_404(ward: Ward, image: Image) -> None:
    """GET fails with 503: whether the tag exists is not known, and it is asked again."""
    ward.fake_registry.on("manifest", faults.error_response(404), method="HEAD")
    ward.fake_registry.on("manifest", faults.error_response(503), method="GET", times=1)
    registry = ward.registry()
    with pytest.raises(Unavailable):
        registry.head_manifest("lib/app", LATEST)
    assert registry.head_manifest("lib/app", LATEST)


def page(status: int, media_type: str | None = "text/html; charset=utf-8", body: bytes = faults.HTML) -> Change:
    """A page with a status."""
    return faults.replaced(status, body, *([("Content-Type", media_type)] if media_type else []))


OCI_ERROR = b'{"errors":[{"code":"DENIED","message":"message from the upstream"}]}'


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
@pytest.mark.parametrize(
    ("media_type", "body", "is_page"),
    [
        ("text/html", faults.HTML, True),
        ("TEXT/HTML; charset=utf-8", b"Access denied in your country", True),
        ("application/xhtml+xml", b"<?xml version='1.0'?><html></html>", True),
        ("text/html", b"x" * 100_000, True),
        ("text/html", b'{"message": "no OCI error"}', True),
        (None, b"\n<!DOCTYPE html><title>Blocked</title>", True),
        ("text/plain", b"<html><body>Blocked</body></html>", True),
        ("text/html", OCI_ERROR, False),
        ("application/json", OCI_ERROR, False),
        ("application/json", b'{"message": "Not Found"}', False),
        ("text/plain", b"404 page not found", False),
        ("text/html", b"", False),
        (None, b"", False),
    ],
)
@pytest.mark.parametrize("operation", ["head_manifest", "get_manifest", "head_blob", "open_blob", "list_tags"])
def test_a_web_page_is_not_the_word_of_the_registry(
    ward: Ward,
    image: Image,
    status: int,
    media_type: str | None,
    body: bytes,
    is_page: bool,  # noqa: FBT001
    operation: str,
) -> None:
    """A page of a firewall is an outage. An OCI error, an empty body and plain text mean what their status says."""
    ward.fake_registry.on(None, page(status, media_type, body))
    registry = ward.registry()
    reference = Digest.parse(image.config) if operation.endswith("blob") else LATEST
    with pytest.raises(BadUpstream if is_page else (ManifestUnknown, BlobUnknown, NameUnknown)) as caught:
        getattr(registry, operation)("lib/app", *([] if operation == "list_tags" else [reference]))
    assert not is_page or "web page" in caught.value.message
    assert not caught.value.remembered
    assert not registry.is_breaker_open


@pytest.mark.parametrize(("status", "error"), [(401, Denied), (403, Denied), (451, Denied), (404, BadUpstream)])
def test_with_credentials_a_web_page_may_be_a_refusal(
    ward: Ward, image: Image, status: int, error: type[RegistryError]
) -> None:
    """What was pulled with a login is not served to anybody when the login may have been rejected."""
    require_authorization(ward.fake_registry, basic("ann", "s3cret-pass"))
    registry = ward.registry(auth=BASIC)
    assert registry.head_manifest("lib/app", LATEST)
    ward.fake_registry.on("manifest", page(status))
    with pytest.raises(error):
        registry.head_manifest("lib/app", LATEST)


def test_a_challenge_with_a_web_page_is_a_refusal(ward: Ward, image: Image) -> None:
    """Registries behind a web server."""
    ward.fake_registry.on(
        "manifest", lambda request, answer: page(401)(request, answer).with_header("WWW-Authenticate", "Basic realm=x")
    )
    with pytest.raises(ManifestUnknown):
        ward.registry().head_manifest("lib/app", LATEST)


# Blobs


@pytest.mark.parametrize("content", [BLOB, b""])
def test_zero_bytes_are_the_size_of_one_digest_only(ward: Ward, content: bytes) -> None:
    """A front end that says 0 to HEAD: the first byte is requested; for the empty blob 0 is right."""
    digest = ward.fake_registry.add_blob(content)
    ward.fake_registry.on("blob", faults.replaced(200, b""), method="HEAD")
    assert ward.registry().head_blob("lib/app", Digest.parse(digest)) == len(content)
    assert methods(ward.fake_registry.received("blob")) == (["HEAD", "GET"] if content else ["HEAD"])


@pytest.mark.parametrize("get", [faults.replaced(200, b""), faults.replaced(416, b"", ("Content-Range", "bytes */0"))])
def test_a_size_of_zero_is_never_returned(ward: Ward, get: Change) -> None:
    """An error, if the registry has nothing better to say."""
    digest = ward.fake_registry.add_blob(BLOB)
    ward.fake_registry.on("blob", faults.replaced(200, b""), method="HEAD")
    ward.fake_registry.on("blob", get, method="GET")
    with pytest.raises(BadUpstream, match="size"):
        ward.registry().head_blob("lib/app", Digest.parse(digest))


def test_the_size_of_a_blob_that_is_labelled_as_a_web_page(ward: Ward) -> None:
    """From a response to its first byte, which a login form does not have."""
    digest = ward.fake_registry.add_blob(BLOB)
    ward.fake_registry.on("blob", faults.header("Content-Type", "text/html"))
    assert ward.registry().head_blob("lib/app", Digest.parse(digest)) == len(BLOB)
    assert methods(ward.fake_registry.received("blob")) == ["HEAD", "GET"]
    ward.fake_registry.on("blob", faults.html_page())
    with pytest.raises(BadUpstream, match="size"):
        ward.registry().head_blob("lib/app", Digest.parse(digest))


@pytest.mark.parametrize("start", [0, 1000])
def test_a_blob_that_is_labelled_as_a_web_page_hides_its_size(ward: Ward, start: int) -> None:
    """So it is verified as a whole before anything of it is sent; a body that is too short is still noticed."""
    digest = ward.fake_registry.add_blob(BLOB)
    ward.fake_registry.on("blob", faults.header("Content-Type", "text/html"))
    source = ward.registry().open_blob("lib/app", Digest.parse(digest), start)
    assert (source.size, source.start, source.is_web_page) == (None, start, True)
    source.close()
    assert received(ward.registry(), "lib/app", digest, start) == BLOB[start:]
    ward.fake_registry.on("blob", faults.cut(100))
    with pytest.raises(Unavailable):
        received(ward.registry(), "lib/app", digest, start)


def test_a_blob_has_a_size(ward: Ward) -> None:
    """By HEAD."""
    digest = ward.fake_registry.add_blob(BLOB)
    assert ward.registry().head_blob("lib/app", Digest.parse(digest)) == len(BLOB)
    assert methods(ward.fake_registry.received()) == ["HEAD"]


@pytest.mark.parametrize(
    "change",
    [
        faults.error_response(401),
        faults.error_response(403),
        faults.error_response(405),
        faults.without("Content-Length"),
        faults.chunked(),
    ],
)
@pytest.mark.parametrize("content", [BLOB, b""])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_size_missing_in_head_is_requested_by_range(
    ward: Ward,
    change: Change,
    content: bytes,
    ranges: bool,  # noqa: FBT001
) -> None:
    """From the response to the first byte, or from one without ranges; also for an empty blob."""
    digest = ward.fake_registry.add_blob(content)
    ward.fake_registry.on("blob", change, method="HEAD")
    if not ranges:
        ward.fake_registry.on("blob", faults.ignoring_range())
    if not ranges and not content:
        ward.fake_registry.on("blob", faults.replaced(200, b""), method="GET")
    assert ward.registry().head_blob("lib/app", Digest.parse(digest)) == len(content)
    head, get = ward.fake_registry.received("blob")
    assert (head.request.method, get.request.method, get.request.header("Range")) == ("HEAD", "GET", "bytes=0-0")


def test_the_size_behind_an_address_signed_for_get_is_found(ward: Ward) -> None:
    """A HEAD that was redirected to it is forbidden there."""
    digest = ward.fake_registry.add_blob(BLOB)
    ward.fake_registry.on("blob", faults.redirected(lambda request: ward.fake_registry.presign(digest)))
    assert ward.registry().head_blob("lib/app", Digest.parse(digest)) == len(BLOB)
    assert methods(ward.fake_registry.received("cdn")) == ["HEAD", "GET"]


@pytest.mark.parametrize("operation", ["head", "open"])
def test_a_blob_that_is_not_there_is_unknown(ward: Ward, operation: str) -> None:
    """One request, and no retry."""
    registry, digest = ward.registry(), Digest.parse(digest_of(b"nothing"))
    with pytest.raises(BlobUnknown):
        registry.head_blob("lib/app", digest) if operation == "head" else registry.open_blob("lib/app", digest)
    assert ward.fake_registry.count() == 1


def test_a_blob_is_read_whole(ward: Ward) -> None:
    """Size and bytes."""
    digest = ward.fake_registry.add_blob(BLOB)
    source = ward.registry().open_blob("lib/app", Digest.parse(digest))
    assert (source.size, source.start) == (len(BLOB), 0)
    source.close()
    assert received(ward.registry(), "lib/app", digest) == BLOB
    assert ward.fake_registry.received()[0].request.header("Range") is None


@pytest.mark.parametrize("start", [1, 1000, len(BLOB) - 1])
def test_a_blob_is_read_from_a_byte_on(ward: Ward, start: int) -> None:
    """By Range; the size is that of the whole blob."""
    digest = ward.fake_registry.add_blob(BLOB)
    registry = ward.registry()
    source = registry.open_blob("lib/app", Digest.parse(digest), start)
    assert (source.size, source.start) == (len(BLOB), start)
    source.close()
    assert received(registry, "lib/app", digest, start) == BLOB[start:]
    assert ward.fake_registry.received()[0].request.header("Range") == f"bytes={start}-"


def test_a_range_that_is_ignored_starts_at_the_beginning(ward: Ward) -> None:
    """`start` is 0 then."""
    digest = ward.fake_registry.add_blob(BLOB)
    ward.fake_registry.on("blob", faults.ignoring_range())
    source = ward.registry().open_blob("lib/app", Digest.parse(digest), 1000)
    assert (source.size, source.start) == (len(BLOB), 0)
    source.close()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "items 1000-2047/2048",
        "bytes 999-2047/2048",
        "bytes 1000-2046/2048",
        "bytes 1001-2047/*",
        "bytes 1000-2046/*",
        "bytes 1000-2047/2049",
        "bytes 1000-2048/2048",
    ],
)
def test_a_different_range_is_a_bad_response(ward: Ward, value: str) -> None:
    """Bytes at a wrong place would be found by the digest only at the end."""
    digest = ward.fake_registry.add_blob(BLOB)
    ward.fake_registry.on("blob", faults.header("Content-Range", value))
    with pytest.raises(BadUpstream):
        ward.registry().open_blob("lib/app", Digest.parse(digest), 1000)


@pytest.mark.parametrize(
    ("start", "change"),
    [
        (0, faults.header("Transfer-Encoding", "gzip, chunked")),
        (0, faults.replaced(206, b"x", ("Content-Range", "bytes 0-0/1"))),
        (5, faults.replaced(416, b"", ("Content-Range", "bytes */6"))),
        (0, faults.replaced(416, b"", ("Content-Range", "bytes */0"))),
        (0, faults.replaced(204)),
    ],
)
def test_what_is_no_blob_is_bad(ward: Ward, start: int, change: Change) -> None:
    """Unknown framing, and ranges that were not requested."""
    digest = ward.fake_registry.add_blob(BLOB)
    ward.fake_registry.on("blob", change)
    with pytest.raises(BadUpstream):
        ward.registry().open_blob("lib/app", Digest.parse(digest), start)


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "br", "identity", "GZIP, x"])
def test_a_blob_is_not_unpacked_whatever_its_header_says(ward: Ward, encoding: str) -> None:
    """Some registries label layers that are gzip files; their bytes are right. Its size is that of a range."""
    layer = gzip.compress(BLOB)
    digest = Digest.parse(ward.fake_registry.add_blob(layer))
    ward.fake_registry.on("blob", faults.header("Content-Encoding", encoding))
    registry = ward.registry()
    assert received(registry, "lib/app", str(digest)) == layer
    assert received(registry, "lib/app", str(digest), 10) == layer[10:]
    assert registry.head_blob("lib/app", digest) == len(layer)


def test_the_length_of_an_encoded_blob_is_no_size(ward: Ward) -> None:
    """Neither of HEAD nor of GET, when the registry encodes what it sends."""
    digest = Digest.parse(ward.fake_registry.add_blob(BLOB))
    ward.fake_registry.on("blob", faults.ignoring_range())
    ward.fake_registry.on("blob", faults.encoded("gzip", gzip.compress))
    with pytest.raises(BadUpstream, match="does not announce the size"):
        ward.registry().head_blob("lib/app", digest)


def test_a_rejected_range_at_the_end_is_the_end(ward: Ward) -> None:
    """All bytes are here: the response tells the size."""
    digest = Digest.parse(ward.fake_registry.add_blob(BLOB))
    source = ward.registry().open_blob("lib/app", digest, len(BLOB))
    assert (source.size, source.start, source.read(1000)) == (len(BLOB), len(BLOB), b"")
    source.close()
    assert ward.fake_registry.count() == 1


@pytest.mark.parametrize("value", ["bytes */*", "bytes */5", "bytes */99999999", "", None])
def test_after_another_rejected_range_the_whole_blob_is_requested(ward: Ward, value: str | None) -> None:
    """The registry has no ranges, or not now."""
    digest = ward.fake_registry.add_blob(BLOB)
    rejected = faults.replaced(416, b"", *([("Content-Range", value)] if value is not None else []))
    ward.fake_registry.on("blob", rejected, when=lambda request: request.header("Range") is not None)
    source = ward.registry().open_blob("lib/app", Digest.parse(digest), 1000)
    assert (source.size, source.start) == (len(BLOB), 0)
    source.close()
    assert [each.request.header("Range") for each in ward.fake_registry.received()] == ["bytes=1000-", None]


def test_a_range_may_hide_the_size(ward: Ward) -> None:
    """`bytes first-last/*`."""
    digest = ward.fake_registry.add_blob(BLOB)
    hidden = f"bytes 1000-{len(BLOB) - 1}/*"
    ward.fake_registry.on("blob", faults.header("Content-Range", hidden))
    assert received(ward.registry(), "lib/app", digest, 1000) == BLOB[1000:]


@pytest.mark.parametrize("change", [faults.chunked(), faults.close_delimited()])
def test_a_blob_may_hide_its_size(ward: Ward, change: Change) -> None:
    """It is None then, and the bytes are right."""
    digest = ward.fake_registry.add_blob(BLOB)
    ward.fake_registry.on("blob", change)
    registry = ward.registry()
    source = registry.open_blob("lib/app", Digest.parse(digest))
    assert source.size is None
    source.close()
    assert received(registry, "lib/app", digest) == BLOB


@pytest.mark.parametrize("changes", [[faults.wrong_length(10)], [faults.chunked(ended=False)], [faults.cut(100)]])
def test_a_short_blob_does_not_end_well(ward: Ward, changes: list[Change]) -> None:
    """Less than the length, or chunks without an end."""
    digest = ward.fake_registry.add_blob(BLOB)
    for change in changes:
        ward.fake_registry.on("blob", change)
    with pytest.raises(Unavailable):
        received(ward.registry(), "lib/app", digest)


def test_chunks_win_over_a_length(ward: Ward) -> None:
    """The size is not known then."""
    digest = ward.fake_registry.add_blob(BLOB)
    ward.fake_registry.on("blob", faults.chunked())
    ward.fake_registry.on("blob", faults.header("Content-Length", "5"))
    source = ward.registry().open_blob("lib/app", Digest.parse(digest))
    assert source.size is None
    assert source.read(5000) == BLOB
    source.close()


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_download_elsewhere_gets_no_credentials(ward: Ward, status: int) -> None:
    """But the range, and our own headers."""
    digest = ward.fake_registry.add_blob(BLOB)
    FakeTokenService(ward.fake_registry, login=basic("ann", "s3cret-pass"))
    ward.fake_registry.listen("cdn")
    place = ward.fake_registry.presign(digest, listener="cdn")
    ward.fake_registry.on(
        "blob", only_if(lambda request: bool(request.header("Authorization")), faults.redirected(place, status))
    )
    assert received(ward.registry(auth=BASIC), "lib/app", digest, 1000) == BLOB[1000:]
    (seen,) = ward.fake_registry.received("cdn")
    assert seen.request.header("Range") == "bytes=1000-"
    assert {name for name, _ in seen.request.headers} == {"Host", "User-Agent", "Accept-Encoding", "Range"}


def test_authorization_is_for_one_origin_only(ward: Ward) -> None:
    """Not another port, not another name of the same host; and it is back when the way leads back."""
    digest = ward.fake_registry.add_blob(BLOB)
    want = basic("ann", "s3cret-pass")
    home, port, other = (
        ward.fake_registry.authority,
        ward.fake_registry.listener.port,
        ward.fake_registry.listen("other port"),
    )
    path = f"/v2/lib/app/blobs/{digest}"
    hops = iter([f"{other.url}{path}", f"http://localhost:{port}{path}", f"{ward.fake_registry.url}{path}?last=1"])

    def lead_on(request: Request, answer: ScriptedResponse) -> ScriptedResponse:
        if request.header("Host") == home and not request.header("Authorization"):
            return faults.challenged('Basic realm="x"')(request, answer)
        return answer if "last" in request.query else faults.redirected(next(hops))(request, answer)

    ward.fake_registry.on("blob", lead_on)
    registry = ward.registry(auth=BASIC, trusted_hosts=("localhost",))
    assert received(registry, "lib/app", digest) == BLOB
    hosts = [
        (each.request.header("Host"), each.request.header("Authorization"))
        for each in ward.fake_registry.received("blob")
    ]
    assert hosts == [
        (home, None),
        (home, want),
        (other.authority, None),
        (f"localhost:{port}", None),
        (home, want),
    ]


def test_a_relative_location_is_followed(ward: Ward, image: Image) -> None:
    """For manifests as for blobs."""
    ward.fake_registry.on("manifest", faults.redirected("/v2/lib/app/manifests/moved"), reference="latest")
    ward.fake_registry.add_manifest("lib/app", "moved", image.body, image.media_type)
    assert ward.registry().get_manifest("lib/app", LATEST).body == image.body
    assert ward.fake_registry.count("manifest") == 2


@pytest.mark.parametrize("hops", [10, 11])
def test_ten_hops_are_followed(ward: Ward, image: Image, hops: int) -> None:
    """The eleventh is one too many."""

    def further(request: object) -> str:
        return f"/v2/lib/app/manifests/latest?{ward.fake_registry.count('manifest')}"

    ward.fake_registry.on("manifest", faults.redirected(further), times=hops)
    registry = ward.registry()
    if hops == 10:
        assert registry.head_manifest("lib/app", LATEST)
    else:
        with pytest.raises(BadUpstream, match="redirects"):
            registry.head_manifest("lib/app", LATEST)
    assert ward.fake_registry.count("manifest") == 11


@pytest.mark.parametrize("location", [None, "", "file:///etc/passwd", "gopher://127.0.0.1/", "http://u:p@127.0.0.1/"])
def test_a_location_that_leads_nowhere_is_bad(ward: Ward, location: str | None) -> None:
    """And its text is in no message."""
    ward.fake_registry.on(
        "manifest", faults.replaced(307, b"", *([("Location", location)] if location is not None else []))
    )
    with pytest.raises(BadUpstream) as caught:
        ward.registry().get_manifest("lib/app", LATEST)
    assert not location or location not in error_text(caught.value)
    assert ward.fake_registry.count() == 1


FORBIDDEN = [
    *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::1]", "0.1.2.3"),
    *("[::ffff:127.0.0.1]", "[::127.0.0.1]", "[2002:7f00:1::]", "[64:ff9b::7f00:1]", "[fec0::1]", "[fc00::1]"),
    *("[fe80::1]", "[ff02::1]", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254", "224.0.0.1"),
]


@pytest.mark.parametrize("host", FORBIDDEN)
def test_a_public_registry_does_not_lead_inside(ward: Ward, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by redirect nor by realm, however the address is spelt; nothing is connected to."""
    pretend(monkeypatch, {"127.0.0.2": NetworkZone.PUBLIC})
    public = ward.fake_registry.listen("public", "127.0.0.2")
    inside = f"http://{host}:{ward.fake_registry.listener.port}"
    ward.fake_registry.on("manifest", faults.redirected(f"{inside}/v2/"), reference="moved")
    ward.fake_registry.on(
        "manifest", faults.challenged(f'Bearer realm="{inside}/token",service="s"'), reference="locked"
    )
    registry = ward.registry(at=public.url)
    for reference in ("moved", "locked"):
        with pytest.raises(BadUpstream, match="not allowed") as caught:
            registry.head_manifest("lib/app", Tag(reference))
        assert host not in str(caught.value)
    assert ward.fake_registry.listener.connections == 0
    assert public.connections == 1


def test_a_registry_inside_may_point_to_its_neighbours(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not to the machine itself, nor to metadata services; unless that is listed."""
    pretend(
        monkeypatch,
        {"127.0.0.2": NetworkZone.PRIVATE, "127.0.0.3": NetworkZone.PRIVATE, "127.0.0.4": NetworkZone.FORBIDDEN},
    )
    digest = ward.fake_registry.add_blob(BLOB)
    at = ward.fake_registry.listen("registry inside", "127.0.0.2").url
    ward.fake_registry.listen("neighbour", "127.0.0.3")
    metadata = ward.fake_registry.listen("metadata", "127.0.0.4")
    places = {"registry": BadUpstream, "metadata": BadUpstream, "neighbour": None}
    for listener, error in places.items():
        rule = ward.fake_registry.on("blob", faults.redirected(ward.fake_registry.presign(digest, listener=listener)))
        if error is None:
            assert received(ward.registry(at=at), "lib/app", digest) == BLOB
        else:
            with pytest.raises(error):
                ward.registry(at=at).open_blob("lib/app", Digest.parse(digest))
        ward.fake_registry.remove_rules(rule)
    assert (ward.fake_registry.listener.connections, metadata.connections) == (0, 0)
    ward.fake_registry.on("blob", faults.redirected(ward.fake_registry.presign(digest, listener="metadata")))
    for hosts in (("127.0.0.4",), (metadata.authority,)):
        assert received(ward.registry(at=at, trusted_hosts=hosts), "lib/app", digest) == BLOB


@pytest.mark.parametrize("listener", ["cdn", "registry"])
def test_an_address_that_expired_is_fetched_anew(ward: Ward, listener: str) -> None:
    """Through the registry, once; the old address is not used again, wherever it is."""
    digest = ward.fake_registry.add_blob(BLOB)
    ward.fake_registry.listen("cdn")
    uses = iter([0, None])
    ward.fake_registry.on(
        "blob",
        faults.redirected(lambda request: ward.fake_registry.presign(digest, listener=listener, uses=next(uses))),
    )
    assert received(ward.registry(), "lib/app", digest, 1000) == BLOB[1000:]
    assert ward.fake_registry.count("blob") == 2
    targets = [exchange.request.target for exchange in ward.fake_registry.received("cdn")]
    assert len(set(targets)) == len(targets) == 2


def test_a_download_host_that_refuses_for_good_is_an_outage(ward: Ward) -> None:
    """It is not the registry that denies, and the registry stays open to others."""
    digest = ward.fake_registry.add_blob(BLOB)
    image = ward.fake_registry.add_image("lib/app", "latest")
    ward.fake_registry.listen("cdn")
    ward.fake_registry.on(
        "blob", faults.redirected(lambda request: ward.fake_registry.presign(digest, listener="cdn", uses=0))
    )
    registry = ward.registry()
    for _ in range(3):
        with pytest.raises(Unavailable, match="redirects to") as caught:
            registry.open_blob("lib/app", Digest.parse(digest))
        assert "Signature" not in error_text(caught.value)
        assert not caught.value.remembered
    assert ward.fake_registry.count("blob") == 6
    assert str(registry.head_manifest("lib/app", LATEST).digest) == image.digest


@pytest.mark.parametrize("how", ["refused", "silent", "500", "429"])
def test_a_dead_download_host_does_not_close_the_registry(ward: Ward, image: Image, how: str) -> None:
    """Two fresh redirects at most, and tags stay fresh."""
    cdn = ward.fake_registry.listen("cdn")
    changes = {"silent": faults.silent(), "500": faults.error_response(500), "429": faults.error_response(429)}
    if how == "refused":
        cdn.close()
    else:
        ward.fake_registry.on("cdn", changes[how])
    ward.fake_registry.on("blob", faults.redirected(f"{cdn.url}/cdn/{image.config}?X-Amz-Signature=x"))
    registry = ward.registry(limits=SHORT if how == "silent" else attrs.evolve(SHORT, stall_timeout=3.0))
    for _ in range(5):
        with pytest.raises((Unavailable, UpstreamTimeout, TooManyRequests)) as caught:
            registry.open_blob("lib/app", Digest.parse(image.config))
        assert not caught.value.remembered
    assert ward.fake_registry.count("blob") <= 10
    assert registry.head_manifest("lib/app", LATEST)


def test_a_registry_that_redirects_everything_may_require_a_login_there(ward: Ward, image: Image) -> None:
    """The host behind it gets an anonymous token for itself, and nothing of ours (registry.k8s.io)."""
    backend = ward.fake_registry.listen("backend")
    challenge = f'Bearer realm="{backend.url}/token",service="backend",scope="repository:images/app:pull"'
    ward.fake_registry.add_manifest("images/app", "latest", image.body, image.media_type)
    ward.fake_registry.on(
        "manifest", faults.redirected(f"{backend.url}/v2/images/app/manifests/latest"), listener="registry"
    )
    ward.fake_registry.on(
        "manifest",
        only_if(
            lambda request: request.header("Authorization") != "Bearer an-anonymous-token", faults.challenged(challenge)
        ),
        listener="backend",
    )
    assert str(ward.registry().head_manifest("lib/app", LATEST).digest) == image.digest
    (token,) = ward.fake_registry.received("token")
    assert token.request.query == {"service": "backend", "scope": "repository:images/app:pull"}
    assert token.request.header("Authorization") is None


def test_content_of_the_wrong_kind_is_a_bad_response(ward: Ward) -> None:
    """A 200 with the registry's own error document is no manifest."""
    body = json.dumps({"errors": [{"code": "TOOMANYREQUESTS"}]}).encode()
    ward.fake_registry.on("manifest", faults.replaced(200, body, ("Content-Type", "application/json")))
    with pytest.raises(BadUpstream):
        ward.registry().head_manifest("lib/app", LATEST)


def test_a_registry_that_is_known_to_have_no_api_version(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """404 to `/v2/` is an error of the settings, but for registries that have only manifests and blobs."""
    ward.fake_registry.on("ping", faults.replaced(404, b"404 page not found"))
    with pytest.raises(BadUpstream, match="is not a registry"):
        ward.registry().check_api()
    monkeypatch.setattr("dockyard.upstream.client.HOSTS_WITHOUT_API_VERSION", {"127.0.0.1"})
    assert "no /v2/" in ward.registry().check_api()

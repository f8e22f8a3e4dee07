"""The table of what to do about a tag, row by row."""

import pytest

from dockyard import errors
from dockyard.cache.freshness import Cached, Decision, Fail, Fetch, Serve, decide
from dockyard.errors import RegistryError
from dockyard.oci.manifest import OCI_INDEX, Descriptor
from dockyard.oci.reference import Digest

OLD, NEW = Digest.of(b"old"), Digest.of(b"new")
CACHED = Cached(OLD, checked_at=1_700_000_000.0)

NO_ANSWER = [
    errors.Outage("?"),
    errors.BadUpstream("a wrong digest"),
    errors.Unavailable("refused"),
    errors.UpstreamTimeout("slow"),
    errors.Unavailable("the breaker is open", remembered=True),
    errors.TooManyRequests("slow down", retry_after_s=30),
    errors.TooManyRequests("slow down", retry_after_s=30, remembered=True),
]
ANSWERS = [
    errors.ManifestUnknown("deleted"),
    errors.NameUnknown("gone"),
    errors.Denied("not with this login"),
    errors.BlobUnknown("?"),
    errors.ReferenceInvalid("?"),
    errors.RegistryError("a fault of our own"),
]


def described(digest: Digest) -> Descriptor:
    """Return what a HEAD tells of a digest."""
    return Descriptor(OCI_INDEX, digest, 3)


@pytest.mark.parametrize(
    ("cached", "digest", "expected"),
    [
        (CACHED, OLD, Serve(OLD)),
        (CACHED, NEW, Fetch(NEW)),
        (None, NEW, Fetch(NEW)),
        (Cached(Digest.of(b"old", "sha512"), 0.0), OLD, Fetch(OLD)),
    ],
)
def test_a_digest_from_the_upstream_is_served_or_fetched(
    cached: Cached | None, digest: Digest, expected: Decision
) -> None:
    """The same digest is served from the cache, any other is fetched."""
    assert decide(cached, described(digest)) == expected


@pytest.mark.parametrize("error", NO_ANSWER, ids=repr)
def test_without_a_usable_answer_the_cached_digest_is_served_stale(error: RegistryError) -> None:
    """A pull goes on, and says why it may be old."""
    assert decide(CACHED, error) == Serve(OLD, stale=error)


@pytest.mark.parametrize("error", [*NO_ANSWER, *ANSWERS], ids=repr)
def test_an_error_is_the_answer_when_nothing_is_cached(error: RegistryError) -> None:
    """There is nothing to fall back on."""
    assert decide(None, error) == Fail(error)


@pytest.mark.parametrize("error", ANSWERS, ids=repr)
def test_an_answer_is_not_an_outage(error: RegistryError) -> None:
    """A deleted tag and a refused login are passed on, whatever is cached."""
    assert decide(CACHED, error) == Fail(error)

"""The decision about a tag, for each row of the table."""

import pytest

from dockyard import errors
from dockyard.cache.freshness import Cached, Decision, Fail, Fetch, Serve, decide
from dockyard.errors import RegistryError
from dockyard.oci.manifest import OCI_INDEX, Descriptor
from dockyard.oci.reference import Digest

OLD, NEW = Digest.of(b"old"), Digest.of(b"new")
CACHED = Cached(OLD, checked_at=1_700_000_000.0)

OUTAGES = [
    errors.Outage("?"),
    errors.BadUpstream("a wrong digest"),
    errors.Unavailable("refused"),
    errors.UpstreamTimeout("slow"),
    errors.Unavailable("the breaker is open", remembered=True),
    errors.TooManyRequests("slow down", retry_after_s=30),
    errors.TooManyRequests("slow down", retry_after_s=30, remembered=True),
]
RESPONSES = [
    errors.ManifestUnknown("deleted"),
    errors.NameUnknown("gone"),
    errors.Denied("not with this login"),
    errors.BlobUnknown("?"),
    errors.ReferenceInvalid("?"),
    errors.RegistryError("internal error"),
]


def descriptor_of(digest: Digest) -> Descriptor:
    """The descriptor that a HEAD request returns."""
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
    assert decide(cached, descriptor_of(digest)) == expected


@pytest.mark.parametrize("error", OUTAGES, ids=repr)
def test_in_an_outage_the_cached_digest_is_served_stale(error: RegistryError) -> None:
    """The pull succeeds, and the response says why it may be outdated."""
    assert decide(CACHED, error) == Serve(OLD, stale=error)


@pytest.mark.parametrize("error", [*OUTAGES, *RESPONSES], ids=repr)
def test_without_a_cached_digest_the_error_is_returned(error: RegistryError) -> None:
    """Nothing can be served."""
    assert decide(None, error) == Fail(error)


@pytest.mark.parametrize("error", RESPONSES, ids=repr)
def test_not_found_and_denied_are_no_outages(error: RegistryError) -> None:
    """A deleted tag and a rejected login are passed on, whatever is cached."""
    assert decide(CACHED, error) == Fail(error)

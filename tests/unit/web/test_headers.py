"""The headers of responses: what an error says about the upstream."""

import pytest

from dockyard.errors import (
    BadUpstream,
    FailureDetails,
    ManifestUnknown,
    RegistryError,
    TooManyRequests,
    Unavailable,
    UpstreamTimeout,
)
from dockyard.web.headers import failure_headers

OF_UPSTREAM = FailureDetails("registry.test:443", "HTTP 503 Service Unavailable", "response")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Unavailable("down", details=OF_UPSTREAM), "Dockyard; fwd=uri-miss"),
        (UpstreamTimeout("slow", details=OF_UPSTREAM.with_cure("x")), "Dockyard; fwd=uri-miss"),
        (BadUpstream("bad", details=FailureDetails(stage="token")), "Dockyard; fwd=uri-miss"),
        (TooManyRequests("limited", details=OF_UPSTREAM), "Dockyard; fwd=uri-miss; fwd-status=429"),
        (Unavailable("down", details=OF_UPSTREAM, remembered=True), "Dockyard; detail=breaker"),
        (Unavailable("overloaded"), None),
        (TooManyRequests("too many wrong logins", details=FailureDetails(error="x")), None),
        (Unavailable("the bucket", details=FailureDetails(stage="bucket")), None),
        (ManifestUnknown("no such tag", details=OF_UPSTREAM), None),
        (RegistryError("internal error"), None),
    ],
)
def test_a_failure_of_the_upstream_is_marked(error: RegistryError, status: str | None) -> None:
    """So that a Dockyard of an inner tier knows that this server works; its own failures are not marked."""
    assert failure_headers(error).get("cache-status") == status

"""How a case verifies that its fault is active: by a direct client of the same upstream, or by the rules applied."""

import re
from collections.abc import Callable

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import REPO, IsolatedUpstream
from tests.chaos.engine.limits import Limits

L = Limits()
BLOBS = (State.BLOB_CACHED, State.BLOB_COLD, State.BLOB_DOWNLOAD)
MANIFEST_PATH = f"/v2/{REPO}/manifests/cached"

Verify = Callable[[IsolatedUpstream, State], None]


def direct_client_gets(manifest: str, blob: str = "") -> Verify:
    """A direct client gets these (regular expressions) for a manifest and for a layer; by default the same."""

    def verify(upstream: IsolatedUpstream, state: State) -> None:
        if any(rule.applied for rule in upstream.one_time_rules):
            return  # Dockyard has got the response that is changed once
        pattern, path = manifest, MANIFEST_PATH
        if state in BLOBS:
            pattern, path = blob or manifest, upstream.upstream_path(upstream.blob_path("cold"))
        expect_match(pattern, upstream, upstream.request_directly(path))

    return verify


def expect_match(pattern: str, upstream: IsolatedUpstream, seen: str) -> None:
    """Check what a direct client got. Raises AssertionError."""
    assert re.fullmatch(pattern, seen), f"a direct client of {upstream.name} gets {seen!r}, not {pattern!r}"

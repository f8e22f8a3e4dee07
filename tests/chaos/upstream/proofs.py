"""How a cell proves that its fault was there: by a plain client in the same lane, or by the answers that had it."""

import re
from collections.abc import Callable

from tests.chaos.cells import State
from tests.chaos.lanes import REPO, Lane
from tests.chaos.limits import Limits

L = Limits()
BLOBS = (State.BLOB_CACHED, State.BLOB_COLD, State.BLOB_DOWNLOAD)
MANIFEST_PATH = f"/v2/{REPO}/manifests/cached"

Prove = Callable[[Lane, State], None]


def sees(manifest: str, blob: str = "") -> Prove:
    """A plain client sees this, of a manifest and of a layer; `blob` defaults to the same."""

    def prove(lane: Lane, state: State) -> None:
        if any(rule.applied for rule in lane.once):
            return  # Dockyard was given what is given once
        pattern, path = manifest, MANIFEST_PATH
        if state in BLOBS:
            pattern, path = blob or manifest, lane.path_upstream(lane.blob_path("cold"))
        expect(pattern, lane, lane.look(path))

    return prove


def expect(pattern: str, lane: Lane, seen: str) -> None:
    """The plain client saw this."""
    assert re.fullmatch(pattern, seen), f"a plain client sees {seen!r} in lane {lane.name}, not {pattern!r}"

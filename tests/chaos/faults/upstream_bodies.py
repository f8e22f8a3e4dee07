"""What the faults of response bodies share.

The cached tag points to another image when one of them is injected, so that its manifest is requested: the check of a
tag that has not moved needs no body.
"""

from collections.abc import Callable

from tests.chaos.engine.case import State
from tests.chaos.engine.isolated_upstream import IsolatedUpstream
from tests.chaos.engine.outcomes import Outcome, hit
from tests.chaos.faults.upstream_checks import BLOBS
from tests.support.fake_registry import Change


def by_state(
    tag_cached: Outcome, tag_cold: Outcome, manifest: Outcome, blob_cold: Outcome, blob_download: Outcome
) -> dict[State, tuple[Outcome, ...]]:
    """Outcomes by state; what is cached by digest is always a hit."""
    return {
        State.TAG_CACHED: (tag_cached,),
        State.TAG_COLD: (tag_cold,),
        State.MANIFEST: (hit(), manifest),
        State.BLOB_CACHED: (hit(),),
        State.BLOB_COLD: (blob_cold,),
        State.BLOB_DOWNLOAD: (blob_download,),
    }


def change_bodies(change: Change, blob_change: Change | None = None) -> Callable[[IsolatedUpstream, State], None]:
    """Change every body."""

    def inject(upstream: IsolatedUpstream, _: State) -> None:
        upstream.on("manifest", change, method="GET")
        upstream.on("blob", blob_change or change, method="GET")

    return inject


def change_next_body(change: Change) -> Callable[[IsolatedUpstream, State], None]:
    """Change the next body that Dockyard requests; every body where Dockyard requests none (a cached blob)."""

    def inject(upstream: IsolatedUpstream, state: State) -> None:
        if state is State.BLOB_CACHED:
            upstream.on("blob", change, method="GET")
        else:
            upstream.on_once("blob" if state in BLOBS else "manifest", change, method="GET")

    return inject

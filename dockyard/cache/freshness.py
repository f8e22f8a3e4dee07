"""What to do about a tag, from what is cached and what the upstream answered.

| upstream says                 | cached copy             | none cached |
|-------------------------------|-------------------------|-------------|
| same digest                   | serve                   | fetch       |
| new digest                    | fetch                   | fetch       |
| nothing usable, or a limit    | serve, marked stale     | fail        |
| no, or not with this login    | fail                    | fail        |

The last row is an answer, not an outage: a deleted tag must not live on here.
"""

import attrs

from dockyard.errors import Outage, RegistryError, TooManyRequests
from dockyard.oci.manifest import Descriptor
from dockyard.oci.reference import Digest


@attrs.frozen
class Cached:
    """What a tag pointed to when it was last checked with success, in seconds of the wall clock."""

    digest: Digest
    checked_at: float


@attrs.frozen
class Serve:
    """Answer with this digest. `stale` is why it could not be checked, None when it was."""

    digest: Digest
    stale: RegistryError | None = None


@attrs.frozen
class Fetch:
    """Get this digest from the upstream and point the tag to it."""

    digest: Digest


@attrs.frozen
class Fail:
    """Answer with this error."""

    error: RegistryError


Answer = Descriptor | RegistryError
Decision = Serve | Fetch | Fail


def decide(cached: Cached | None, answer: Answer) -> Decision:
    """Return what to do; the table above."""
    match answer:
        case Descriptor(digest=digest) if cached and digest == cached.digest:
            return Serve(digest)
        case Descriptor(digest=digest):
            return Fetch(digest)
        case Outage() | TooManyRequests() if cached:
            return Serve(cached.digest, stale=answer)
        case _:
            return Fail(answer)

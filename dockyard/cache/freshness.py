"""What to do about a tag, given the cached pointer and the response of the upstream.

| response of the upstream            | tag cached          | not cached |
|-------------------------------------|---------------------|------------|
| the same digest                     | serve               | fetch      |
| another digest                      | fetch               | fetch      |
| an outage, or a rate limit (429)    | serve, marked stale | fail       |
| not found, or access denied         | fail                | fail       |

The last row is not an outage: a tag that was deleted upstream is not served any longer.
"""

import attrs

from dockyard.errors import Outage, RegistryError, TooManyRequests
from dockyard.oci.manifest import Descriptor
from dockyard.oci.reference import Digest


@attrs.frozen
class Cached:
    """The cached pointer of a tag. `checked_at` is the last successful check, in seconds since the epoch."""

    digest: Digest
    checked_at: float


@attrs.frozen
class Serve:
    """Serve the cached digest. `stale` is the error of the check, None when it succeeded."""

    digest: Digest
    stale: RegistryError | None = None


@attrs.frozen
class Fetch:
    """Fetch this digest from the upstream, then point the tag to it."""

    digest: Digest


@attrs.frozen
class Fail:
    """Respond with this error."""

    error: RegistryError


Checked = Descriptor | RegistryError
Decision = Serve | Fetch | Fail


def decide(cached: Cached | None, checked: Checked) -> Decision:
    """The decision, by the table above."""
    match checked:
        case Descriptor(digest=digest) if cached and digest == cached.digest:
            return Serve(digest)
        case Descriptor(digest=digest):
            return Fetch(digest)
        case Outage() | TooManyRequests() if cached:
            return Serve(cached.digest, stale=checked)
        case _:
            return Fail(checked)

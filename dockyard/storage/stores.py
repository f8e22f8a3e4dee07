"""Where bytes rest, all of it: the local tier, the bucket behind it, and what brings them from one to the other."""

import attrs

from dockyard.storage.bucket import Bucket
from dockyard.storage.local import LocalTier
from dockyard.storage.publisher import Publisher


@attrs.frozen
class Stores:
    """The stores of one worker. Without S3 the bucket is empty and the publisher does nothing."""

    local: LocalTier
    bucket: Bucket
    publisher: Publisher

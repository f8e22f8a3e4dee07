"""Where bytes rest, all of it: the local store, the bucket behind it, and what brings them from one to the other."""

import attrs

from dockyard.s3.bucket import Bucket
from dockyard.s3.publisher import Publisher
from dockyard.storage.local import LocalStore


@attrs.frozen
class Stores:
    """The stores of one worker. Without S3 the bucket is empty and the publisher does nothing."""

    local: LocalStore
    bucket: Bucket
    publisher: Publisher

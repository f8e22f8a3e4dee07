"""The stores of one worker: the local store, the bucket behind it, and the publisher between them."""

import attrs

from dockyard.s3.bucket import Bucket
from dockyard.s3.publisher import Publisher
from dockyard.storage.local import LocalStore


@attrs.frozen
class Stores:
    """Without S3 the bucket is empty and the publisher does nothing."""

    local: LocalStore
    bucket: Bucket
    publisher: Publisher

"""The S3 tier, in rooms of its own; the only ones that know minio-py."""

from dockyard.storage.s3.body import S3Body
from dockyard.storage.s3.faults import StorageFault
from dockyard.storage.s3.tier import S3Tier, Stat, StoredObject
from dockyard.storage.s3.wire import find_urls

__all__ = ["S3Body", "S3Tier", "Stat", "StorageFault", "StoredObject", "find_urls"]

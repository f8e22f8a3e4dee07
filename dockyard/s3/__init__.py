"""The S3 store, in rooms of its own; the only ones that know minio-py."""

from dockyard.s3.body import S3Body
from dockyard.s3.client import find_urls
from dockyard.s3.errors import StorageFault
from dockyard.s3.store import S3Store, Stat, StoredObject

__all__ = ["S3Body", "S3Store", "Stat", "StorageFault", "StoredObject", "find_urls"]

"""The S3 store, in rooms of its own; the only ones that know minio-py."""

from dockyard.s3.body import S3BlobStream
from dockyard.s3.client import make_base_url
from dockyard.s3.errors import S3Error
from dockyard.s3.store import ObjectInfo, S3Object, S3Store

__all__ = ["ObjectInfo", "S3BlobStream", "S3Error", "S3Object", "S3Store", "make_base_url"]

"""The S3 store: a client for S3-compatible services, and what keeps the bucket up to date. Blocking.

Only this package uses minio-py.
"""

from dockyard.s3.blob_stream import S3BlobStream
from dockyard.s3.client import make_base_url
from dockyard.s3.errors import S3Error
from dockyard.s3.store import ObjectInfo, S3Object, S3Store

__all__ = ["ObjectInfo", "S3BlobStream", "S3Error", "S3Object", "S3Store", "make_base_url"]

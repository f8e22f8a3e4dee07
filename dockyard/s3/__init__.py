"""The S3 store: a client for S3-compatible services, and what keeps the bucket up to date. Blocking.

Only this package uses minio-py, whose import takes about 100 ms. Only `store` needs it, directly or not; other packages
import `store` only if there is a bucket.
"""

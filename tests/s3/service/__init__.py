"""Dockyard servers over a bucket: MinIO, seen through an S3 proxy that records requests and injects errors."""

"""The S3 store in this process: against MinIO, VersityGW and the like, and a fake endpoint for its failures."""

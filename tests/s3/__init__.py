"""The bucket: `store` tests the S3 store itself, `service` Dockyard servers over a bucket."""

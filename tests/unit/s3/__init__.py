"""Parts of the bucket store that need no bucket: the outbox, the limit on concurrent uploads."""

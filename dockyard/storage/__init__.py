"""Where bytes rest: object keys, the local store, and the partial file of a running fill."""

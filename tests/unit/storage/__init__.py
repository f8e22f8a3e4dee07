"""The local store, partial files and object keys, on a temporary directory."""

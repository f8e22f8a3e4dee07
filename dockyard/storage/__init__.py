"""The local store: object keys, complete objects on disk, and the partial files of running downloads. Blocking."""

"""Settings: the tree of keys, where values come from, and how they are parsed and checked."""

"""What can be set: the settings tree, where it is read from, and what its values may be."""

"""Talking to upstream registries: blocking, and run in threads."""

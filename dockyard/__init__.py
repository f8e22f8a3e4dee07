"""A pull-through cache for OCI images."""

__version__ = "0.1.0"

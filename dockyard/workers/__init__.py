"""Shared-nothing shards: which worker owns a key, and how workers ask each other."""

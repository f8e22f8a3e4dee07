"""Measurements: of parts (pytest-benchmark) and side by side with other caches (`python -m bench.peers`)."""

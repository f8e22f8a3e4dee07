"""Benchmarks: of parts of Dockyard (pytest-benchmark), and of Dockyard and other caches (`python -m bench.peers`)."""

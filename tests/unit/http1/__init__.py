"""Tests of `dockyard/http1/`."""

"""Dockyard and other caches side by side, before the same upstream, on one machine."""

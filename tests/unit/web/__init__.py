"""Paths and bodies of the web layer, without a server."""

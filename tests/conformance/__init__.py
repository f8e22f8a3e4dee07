"""The conformance suite of the OCI distribution specification, with its reads through Dockyard.

Its pushes go to a real registry (distribution or olareg), its reads to a Dockyard in front of that registry.
"""

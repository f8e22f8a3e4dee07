"""Clients that pull lazily: their requests, replayed against a running Dockyard, and Podman itself."""

"""The container image: built from the Dockerfile by a real Docker daemon, started, and inspected."""

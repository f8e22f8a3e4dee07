"""The client of the `pull` command, which reads images through a running Dockyard to warm its cache."""
